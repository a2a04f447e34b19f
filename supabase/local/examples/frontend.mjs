// What a frontend does, with supabase-js and nothing else. Run it against `make demo`:
//   SUPABASE_URL=… SUPABASE_KEY=<publishable key> node supabase/local/examples/frontend.mjs
// It prints one JSON line with what it heard; the tests run it and look at that line.

import { createClient } from '@supabase/supabase-js'

const supabase = createClient(process.env.SUPABASE_URL, process.env.SUPABASE_KEY)
const heard = { broadcast: [], postgres_changes: [] }

const { data: { user }, error: refused } = await supabase.auth.signUp({
  email: `${crypto.randomUUID()}@example.com`,
  password: crypto.randomUUID(),
})
if (refused) throw refused
await supabase.realtime.setAuth()   // private channels need the user's token

// 1. Listen: the user's own topic, and changes of the table. Either is enough; this shows both.
const finished = new Promise((resolve) => {
  supabase
    .channel(`user:${user.id}`, { config: { private: true } })
    .on('broadcast', { event: '*' }, ({ payload }) => {
      heard.broadcast.push(payload.record.status)
      if (payload.record.completed_at) resolve(payload)
    })
    .subscribe(joined('broadcast'))
})
const seen = new Promise((resolve) => {
  supabase
    .channel('my-jobs')
    .on('postgres_changes', { event: '*', schema: 'public', table: 'jobs' }, ({ new: job }) => {
      heard.postgres_changes.push(job.status)
      if (job.completed_at) resolve(job)
    })
    .subscribe(joined('postgres_changes'))
})
const ready = {}
function joined(name) {
  return (status, error) => {
    if (status === 'SUBSCRIBED') ready[name]?.()
    else if (error) throw error
  }
}
await Promise.all(['broadcast', 'postgres_changes'].map((name) => new Promise((resolve) => { ready[name] = resolve })))

// 2. Ask.
const { data: job, error } = await supabase
  .from('jobs')
  .insert({ job_type: 'sdxl_image_fast', prompt: 'a yellow star on a black background', target_worker: process.env.TARGET ?? 'sdxl' })
  .select()
  .single()
if (error) throw error

// 3. Wait for the last word, then fetch the picture by a signed URL.
const [{ record, images }] = await Promise.all([finished, seen])
if (record.status !== 'completed') throw new Error(`${record.error_code}: ${record.error_message}`)
const { data: link, error: notSigned } = await supabase.storage.from(images[0].bucket).createSignedUrl(images[0].path, 60)
if (notSigned) throw notSigned
const bytes = Buffer.from(await (await fetch(link.signedUrl)).arrayBuffer())

console.log(JSON.stringify({ job: job.id, user: user.id, heard, picture: bytes.toString('base64') }))
await supabase.removeAllChannels()
process.exit(0)
