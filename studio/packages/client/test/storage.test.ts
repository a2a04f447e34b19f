// References up to the bucket, and a job that uses one.

import assert from 'node:assert/strict'
import { before, test } from 'node:test'
import { imageUrls, SDXLError, type SDXLErrorCode, submitSDXLJob, uploadReference, watchJob } from '@ourvidz/sdxl-client'
import { collect, Flaky, type Server, signUp, startSupabase, startWorker, type User } from './harness.ts'

let server: Server
let user: User
before(async () => {
  server = await startSupabase()
  await startWorker(server)
  user = await signUp(server)
})

/** The smallest PNG: one pixel. */
const PNG = Buffer.from(
  'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==',
  'base64',
)
const WEBP = Buffer.from('RIFF\x1a\0\0\0WEBPVP8L', 'latin1')

const refused = (code: SDXLErrorCode) => (error: unknown) => {
  assert.ok(error instanceof SDXLError, String(error))
  assert.deepEqual([error.code, error.field], [code, 'reference_image_path'])
  return true
}

test('an exact copy without a prompt, of a reference just uploaded', async () => {
  const reference_image_path = await uploadReference(user.supabase, new File([PNG], 'dot.png', { type: 'image/png' }))
  assert.match(reference_image_path, new RegExp(`^${user.id}/[^/]+\\.png$`))
  const asked = { job_type: 'sdxl_image_high', exact_copy_mode: true, reference_image_path } as const
  const { id } = await submitSDXLJob(user.supabase, asked)
  const last = (await collect(watchJob(user.supabase, id))).at(-1)
  assert.ok(last?.type === 'state')
  assert.equal(last.job.status, 'completed', last.job.error_message ?? '')
  const [copy] = await imageUrls(user.supabase, last.job)
  assert.equal((await fetch(copy?.url ?? '')).headers.get('content-type'), 'image/png')
  // the copy may be the next job's reference as it lies
  const again = { ...asked, reference_image_path: `${copy?.bucket}/${copy?.path}` }
  const { id: next } = await submitSDXLJob(user.supabase, again)
  const end = (await collect(watchJob(user.supabase, next))).at(-1)
  assert.ok(end?.type === 'state' && end.job.status === 'completed')
})

test('a file is what its first bytes say', async () => {
  const path = await uploadReference(user.supabase, new Blob([WEBP])) // no name, no type
  const { data } = await user.supabase.storage.from('reference_images').download(path)
  assert.equal(data?.type, 'image/webp')
  await assert.rejects(
    uploadReference(user.supabase, new File(['GIF89a'], 'x.png', { type: 'image/png' })),
    refused('reference_type_is_png_webp_or_jpeg'),
  )
})

test('what the bucket would refuse is not sent', async () => {
  await assert.rejects(uploadReference(user.supabase, new Blob([])), refused('reference_is_empty'))
  const large = (bytes: number) => new Blob([PNG, new Uint8Array(bytes - PNG.length)])
  await assert.rejects(uploadReference(user.supabase, large(20 * 1024 * 1024 + 1)), refused('reference_has_at_most_20_mb'))
  await uploadReference(user.supabase, large(20 * 1024 * 1024)) // and this the bucket takes
})

test('who has not signed in uploads nothing', async () => {
  const { supabase } = await signUp(server)
  await supabase.auth.signOut({ scope: 'local' })
  await assert.rejects(uploadReference(supabase, new Blob([PNG])), { code: 'not_signed_in' })
})

test('the pictures of several jobs come with one request for each bucket', async () => {
  const proxy = await new Flaky(server).start()
  const user = await signUp(server, proxy.url)
  const ids = []
  for (const job_type of ['sdxl_image_fast', 'sdxl_image_fast', 'sdxl_image_high'] as const) {
    ids.push((await submitSDXLJob(user.supabase, { job_type, prompt: 'a cat', width: 128, height: 128 })).id)
  }
  const jobs = []
  for (const id of ids) {
    const last = (await collect(watchJob(user.supabase, id))).at(-1)
    if (last?.type === 'state') jobs.push(last.job)
  }
  const urls = await imageUrls(user.supabase, jobs)
  assert.equal(proxy.requests.filter((line) => line.includes('/object/sign/')).length, 2)
  assert.deepEqual(
    urls.map(({ job_id }) => job_id),
    ids,
  )
  for (const { url } of urls) assert.ok(url && (await fetch(url)).ok)
  assert.deepEqual(await imageUrls(user.supabase, []), [])
})
