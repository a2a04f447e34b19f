// What a page does all the time, in a process of its own: it watches the user's jobs and each of them, lists them when it is told to, and
// subscribes to postgres_changes itself. It says line by line what it hears.

import { listJobs, SDXLError, watchJob, watchJobs } from '@ourvidz/sdxl-client'
import { createClient } from '@supabase/supabase-js'

const { url, key, session, userId } = JSON.parse(process.env.PAGE ?? '')
const supabase = createClient(url, key)
await supabase.auth.setSession(session)
await supabase.realtime.setAuth()
const say = (line: string): void => void process.stdout.write(`${line}\n`)
const watched = new Set<string>()

async function follow(id: string): Promise<void> {
  watched.add(id)
  for await (const event of watchJob(supabase, id)) if (event.type === 'progress') say(`progress ${id} ${event.step}`)
}

function subscribe(): void {
  supabase
    .channel('changes', { config: { private: false } })
    .on('postgres_changes', { event: '*', schema: 'public', table: 'jobs', filter: `user_id=eq.${userId}` }, ({ new: row }) => {
      if ('id' in row) say(`changes ${row.id} ${row.status}`)
    })
    .subscribe((status) => {
      if (status === 'SUBSCRIBED') say('ready')
      // as supabase-js leaves it to the page
      if (status === 'CLOSED') setTimeout(subscribe, 1_000)
    })
}
subscribe()

try {
  for await (const event of watchJobs(supabase)) {
    if (event.type === 'state') {
      say(`topic ${event.job.id} ${event.job.status}`)
      if (!watched.size) void follow(event.job.id)
    } else say(event.type)
    if (event.type === 'joined') {
      const list = async (): Promise<void> => {
        for (const job of await listJobs(supabase, { limit: 100 })) say(`listed ${job.id} ${job.status}`)
      }
      list().catch((error: unknown) => say(`unlisted ${error}`))
    }
  }
} catch (error) {
  say(`ended ${error instanceof SDXLError ? error.code : error}`)
}
