// What a frontend does with jobs, against the real database and a worker that paints plain colours.

import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { before, test } from 'node:test'
import {
  cancelJob,
  createSDXLClient,
  deleteEverything,
  getJob,
  imageUrls,
  isFinished,
  jobError,
  listJobs,
  queuePosition,
  retryJob,
  SDXLError,
  type SDXLJob,
  type SDXLParams,
  submitSDXLJob,
  uploadReference,
  watchJob,
} from '@ourvidz/sdxl-client'
import {
  collect,
  Flaky,
  PAINTABLE,
  PNG,
  type Server,
  service,
  signUp,
  startSupabase,
  startWorker,
  statesOf,
  type User,
} from './harness.ts'

let server: Server
let user: User
before(async () => {
  server = await startSupabase()
  await Promise.all([startWorker(server), startWorker(server, { target: 'slow', stepSeconds: 0.1 })])
  user = await signUp(server)
})

const refused = (code: string, field?: string) => (error: unknown) => {
  assert.ok(error instanceof SDXLError, String(error))
  assert.deepEqual([error.code, error.field], [code, field])
  return true
}

test('a job goes from the insert to a picture that can be downloaded', async () => {
  const { submitSDXLJob, watchJob, imageUrls } = createSDXLClient(user.supabase)
  const { id, status, images } = await submitSDXLJob({ ...PAINTABLE, batch_size: 3, target_worker: 'slow' })
  assert.deepEqual([status, images], ['queued', []])
  const events = await collect(watchJob(id))
  assert.match(statesOf(events).join(), /^(queued,)?processing,completed$/) // a worker may be quicker than the first reading
  const previews = events.flatMap((event) => (event.type === 'preview' ? [event] : []))
  for (const { index, image } of previews) {
    assert.ok(index >= 0 && index < 3)
    assert.match(await image.text(), /^RIFF....WEBP/s)
  }
  const steps = events.flatMap((event) => (event.type === 'progress' ? [event] : []))
  assert.ok(steps.length >= 3, `${steps.length} steps`)
  assert.ok(steps.every(({ step, total, progress }) => total === 15 && progress === Math.round((100 * step) / 15)))
  const last = events.at(-1)
  assert.ok(last?.type === 'state')
  assert.deepEqual(last.job, await getJob(user.supabase, id)) // what came by broadcast is what the row says
  const urls = await imageUrls(last.job, { expiresInSeconds: 60 })
  assert.deepEqual(
    urls.map(({ index, seed }) => [index, seed - (urls[0]?.seed ?? 0)]),
    [0, 1, 2].map((i) => [i, i]),
  )
  for (const { url, thumbnailUrl, bytes, expiresAt } of urls) {
    assert.ok(url && thumbnailUrl)
    assert.equal((await (await fetch(url)).blob()).size, bytes)
    assert.equal((await fetch(thumbnailUrl)).headers.get('content-type'), 'image/webp')
    assert.ok(Math.abs(expiresAt.getTime() - Date.now() - 60_000) < 5000)
  }
  assert.deepEqual(user.supabase.getChannels(), [])
  assert.deepEqual(statesOf(await collect(watchJob(id))), ['completed']) // and is told to whoever comes later
})

test('a running job is cancelled within a step', async () => {
  const { id } = await submitSDXLJob(user.supabase, { ...PAINTABLE, steps: 100, target_worker: 'slow' })
  const states: string[] = []
  for await (const event of watchJob(user.supabase, id)) {
    if (event.type === 'state') states.push(event.job.status + (event.job.cancel_requested_at ? ', asked to cancel' : ''))
    if (event.type === 'progress' && states.at(-1) === 'processing') await cancelJob(user.supabase, id)
  }
  const different = states.filter((state, i) => state !== states[i - 1] && state !== 'queued')
  assert.deepEqual(different, ['processing', 'processing, asked to cancel', 'cancelled, asked to cancel'])
  assert.equal((await cancelJob(user.supabase, id)).status, 'cancelled') // again is no harm
})

test('a waiting job is cancelled at once, and a completed one stays as it is', async () => {
  const waiting = await submitSDXLJob(user.supabase, { ...PAINTABLE, target_worker: 'nobody' })
  assert.equal((await cancelJob(user.supabase, waiting.id)).status, 'cancelled')
  const { id } = await submitSDXLJob(user.supabase, PAINTABLE)
  await collect(watchJob(user.supabase, id))
  assert.equal((await cancelJob(user.supabase, id)).status, 'completed')
  await assert.rejects(cancelJob(user.supabase, randomUUID()), refused('job_not_found'))
})

test('a job is deleted with its pictures, whatever its status, and twice is no error', async () => {
  const { submitSDXLJob, watchJob, deleteJob } = createSDXLClient(user.supabase)
  const done = await submitSDXLJob(PAINTABLE)
  await collect(watchJob(done.id))
  const [image] = (await getJob(user.supabase, done.id)).images
  assert.ok(image)
  const running = await submitSDXLJob({ ...PAINTABLE, steps: 100, target_worker: 'slow' })
  const watched = (async () => {
    for await (const event of watchJob(running.id)) if (event.type === 'progress') await deleteJob(running.id)
  })()
  await assert.rejects(watched, refused('job_not_found'))
  for (const _ of [1, 2]) await deleteJob(done.id)
  for (const { id } of [done, running]) await assert.rejects(getJob(user.supabase, id), refused('job_not_found'))
  const { error } = await user.supabase.storage.from(image.bucket).download(image.path)
  assert.ok(error)
})

test('everything is deleted, of this user alone', async () => {
  const [one, other] = [await signUp(server), await signUp(server)]
  const path = await uploadReference(one.supabase, new Blob([PNG], { type: 'image/png' }))
  for (const each of [one, other]) await submitSDXLJob(each.supabase, { ...PAINTABLE, target_worker: 'nobody' })
  await deleteEverything(one.supabase)
  assert.deepEqual([(await listJobs(one.supabase)).length, (await listJobs(other.supabase)).length], [0, 1])
  const { data } = await service(server).schema('public').rpc('sweep_orphans', { p_pause_seconds: 0 })
  assert.ok((data as { path: string }[] | null)?.some((object) => object.path === path) ?? false)
})

test('a waiting job knows how many come before it', async () => {
  const ask = () => submitSDXLJob(user.supabase, { ...PAINTABLE, target_worker: 'queue' })
  const [first, second] = [await ask(), await ask()]
  assert.deepEqual([await queuePosition(user.supabase, first.id), await queuePosition(user.supabase, second.id)], [0, 1])
  await cancelJob(user.supabase, first.id)
  assert.deepEqual([await queuePosition(user.supabase, first.id), await queuePosition(user.supabase, second.id)], [null, 0])
  const { supabase } = await signUp(server)
  assert.equal(await queuePosition(supabase, second.id), null)
})

test('a failed job says why, in a code and in the worker’s words', async () => {
  const { id } = await submitSDXLJob(user.supabase, { ...PAINTABLE, prompt: 'raise ContentRefused' })
  const last = (await collect(watchJob(user.supabase, id))).at(-1)
  assert.ok(last?.type === 'state')
  assert.equal(last.job.status, 'failed')
  const error = jobError(last.job)
  assert.deepEqual([error?.code, error?.message], ['content_refused', 'This request is not allowed here.'])
})

test('a finished job is tried again as a new one, with changes where wanted', async () => {
  const params = { ...PAINTABLE, seed: 7, negative_prompt: 'dogs', metadata: { fit: 'contain', mine: [1] } } satisfies SDXLParams
  const first = await submitSDXLJob(user.supabase, { ...params, target_worker: 'nobody', idempotency_key: 'first' })
  await assert.rejects(retryJob(user.supabase, first.id), refused('job_is_active'))
  await cancelJob(user.supabase, first.id)
  const second = await retryJob(user.supabase, first.id, { steps: 3 })
  assert.notEqual(second.id, first.id)
  assert.notEqual(second.idempotency_key, 'first')
  const { negative_prompt, seed, metadata, steps, target_worker } = second
  assert.deepEqual({ negative_prompt, seed, metadata }, { negative_prompt: 'dogs', seed: 7, metadata: params.metadata })
  assert.deepEqual([steps, target_worker], [3, 'nobody'])
})

test('other users see nothing of a job', async () => {
  const { id } = await submitSDXLJob(user.supabase, PAINTABLE)
  await collect(watchJob(user.supabase, id))
  const job = await getJob(user.supabase, id)
  const { supabase } = await signUp(server)
  for (const attempt of [getJob, cancelJob, retryJob]) await assert.rejects(attempt(supabase, id), refused('job_not_found'))
  await assert.rejects(collect(watchJob(supabase, id)), refused('job_not_found'))
  assert.deepEqual(await listJobs(supabase), [])
  const [taken] = await imageUrls(supabase, job)
  assert.deepEqual([taken?.url, taken?.thumbnailUrl], [null, null])
})

test('an idempotency key counts once, whatever is sent with it, and also where no place is left', async () => {
  const { supabase } = await signUp(server)
  const params: SDXLParams = { ...PAINTABLE, target_worker: 'nobody', idempotency_key: 'click-1' }
  const both = await Promise.all([submitSDXLJob(supabase, params), submitSDXLJob(supabase, params)])
  assert.equal(both[0].id, both[1].id)
  const { error } = await supabase
    .from('jobs')
    .insert(Array.from({ length: 199 }, () => ({ ...PAINTABLE, target_worker: 'nobody' })))
  assert.equal(error, null)
  await assert.rejects(submitSDXLJob(supabase, { ...PAINTABLE, target_worker: 'nobody' }), refused('too_many_active_jobs'))
  assert.equal((await submitSDXLJob(supabase, params)).id, both[0].id)
})

test('a lost reply makes no second job, and a lost network is no refusal', async () => {
  const flaky = await new Flaky(server).start()
  const { supabase } = await signUp(server, flaky.url)
  let lost = 0
  flaky.fault = ({ method, url }) => (method === 'POST' && url?.startsWith('/rest/v1/jobs') && lost++ === 0 ? 'lose' : undefined)
  const { id } = await submitSDXLJob(supabase, { ...PAINTABLE, target_worker: 'nobody' })
  assert.equal(lost, 2)
  assert.deepEqual(
    (await listJobs(supabase)).map((job) => job.id),
    [id],
  )
  flaky.fault = () => 'cut'
  await assert.rejects(
    submitSDXLJob(supabase, PAINTABLE),
    (error) => refused('network_error')(error) && (error as SDXLError).retryable,
  )
  flaky.heal()
  await cancelJob(supabase, id)
})

test('what the database refuses besides constraints has a code, too', async () => {
  const { supabase, id } = await signUp(server)
  await assert.rejects(submitSDXLJob(supabase, { ...PAINTABLE, user_id: user.id }), refused('user_id_must_be_your_own'))
  const taken = await submitSDXLJob(supabase, { ...PAINTABLE, target_worker: 'nobody' })
  await assert.rejects(submitSDXLJob(supabase, { ...PAINTABLE, id: taken.id }), refused('jobs_pkey'))
  await supabase.auth.signOut({ scope: 'local' })
  await assert.rejects(submitSDXLJob(supabase, PAINTABLE), refused('not_signed_in'))
  await assert.rejects(submitSDXLJob(supabase, { ...PAINTABLE, user_id: id }), refused('not_signed_in'))
  await assert.rejects(listJobs(supabase), refused('not_signed_in'))
})

test('the account that is gone is told so', async () => {
  const { supabase, id } = await signUp(server)
  await service(server).auth.admin.deleteUser(id)
  await assert.rejects(submitSDXLJob(supabase, PAINTABLE), refused('jobs_user_id_fkey'))
})

test('the gallery comes in pages without a gap or a double, also where many jobs share a time', async () => {
  const { supabase } = await signUp(server)
  const rows = Array.from({ length: 7 }, () => ({ ...PAINTABLE, target_worker: 'nobody' }))
  for (let i = 0; i < 2; i++) assert.equal((await supabase.from('jobs').insert(rows)).error, null)
  const seen: SDXLJob[] = []
  let before: SDXLJob | undefined
  for (;;) {
    const page = await listJobs(supabase, { before, limit: 4 })
    seen.push(...page)
    before = page.at(-1)
    if (page.length < 4) break
  }
  assert.equal(seen.length, 14)
  assert.equal(new Set(seen.map(({ id }) => id)).size, 14)
  assert.deepEqual(
    seen,
    [...seen].sort((a, b) => (a.created_at < b.created_at || (a.created_at === b.created_at && a.id < b.id) ? 1 : -1)),
  )
  assert.equal((await listJobs(supabase)).length, 14)
  await cancelJob(supabase, seen[3]?.id ?? '')
  assert.deepEqual(
    (await listJobs(supabase, { status: 'cancelled' })).map(({ id }) => id),
    [seen[3]?.id],
  )
  assert.ok(isFinished(await getJob(supabase, seen[3]?.id ?? '')))
})
