// Watching when Realtime fails, the page sleeps, or somebody else is on the same channel.

import assert from 'node:assert/strict'
import { before, beforeEach, type TestContext, test } from 'node:test'
import { cancelJob, SDXLError, type SDXLEvent, submitSDXLJob, watchJob } from '@ourvidz/sdxl-client'
import {
  collect,
  Flaky,
  PAINTABLE,
  type Server,
  service,
  signUp,
  startSupabase,
  startWorker,
  statesOf,
  type User,
  until,
} from './harness.ts'

let server: Server
let flaky: Flaky
let user: User
before(async () => {
  server = await startSupabase()
  await startWorker(server, { stepSeconds: 0.05 })
  flaky = await new Flaky(server).start()
})
beforeEach(async () => {
  flaky.heal()
  user = await signUp(server, flaky.url)
})

const submit = (params = {}) => submitSDXLJob(user.supabase, { ...PAINTABLE, ...params })
const submitForNobody = () => submit({ target_worker: 'nobody' })
const joined = () => user.supabase.getChannels().filter(({ state }) => state === 'joined').length
const reads = (id: string) => flaky.requests.filter((line) => line.startsWith('GET') && line.includes(id)).length

/** Says in the worker's place what happens to the job. */
async function finish(id: string): Promise<void> {
  const { data } = await service(server).rpc('claim_jobs', {
    p_worker: 'test',
    p_target: 'nobody',
    p_job_types: ['sdxl_image_fast'],
    p_token: crypto.randomUUID(),
    p_limit: 200,
  })
  for (const job of (data as { jobs: { id: string; lease_token: string }[] }).jobs) {
    const p_outcome = job.id === id ? 'failed' : 'cancelled'
    await service(server).rpc('finish_job', {
      p_id: job.id,
      p_token: job.lease_token,
      p_outcome,
      p_error: { code: 'invalid_job', message: '' },
    })
  }
}

/** Watches in the background; resolves when both channels are joined. */
async function watchJoined(id: string, signal?: AbortSignal): Promise<{ done: Promise<SDXLEvent[]> }> {
  const done = collect(watchJob(user.supabase, id, { signal }))
  done.catch(() => undefined)
  await until(() => joined() >= 2, 'joined')
  return { done }
}

test('while Realtime is down, the timer brings the states', async () => {
  flaky.cutRealtime()
  const { id } = await submit()
  assert.equal(statesOf(await collect(watchJob(user.supabase, id))).at(-1), 'completed')
  assert.deepEqual(user.supabase.getChannels(), [])
})

test('what happened while Realtime was away is read when it is back', async () => {
  const { id } = await submitForNobody()
  const { done } = await watchJoined(id)
  const before = reads(id)
  flaky.cutRealtime()
  await finish(id)
  flaky.heal()
  assert.deepEqual(statesOf(await done), ['queued', 'failed'])
  assert.equal(reads(id), before + 1) // on joining, long before the timer
})

test('once Realtime is back, it is listened to again', async () => {
  const { id } = await submitForNobody()
  const { done } = await watchJoined(id)
  flaky.cutRealtime()
  await until(() => joined() === 0, 'lost')
  const before = reads(id)
  flaky.heal()
  await until(() => joined() === 2, 'joined again')
  await until(() => reads(id) > before, 'read again')
  const settled = reads(id)
  await finish(id)
  assert.deepEqual(statesOf(await done), ['queued', 'processing', 'failed']) // all of them: none was read, each was heard
  assert.equal(reads(id), settled)
})

/** Node has no page that could sleep: these two are what a browser has. */
function openPage(t: TestContext): EventTarget & { visibilityState: string } {
  const page = Object.assign(new EventTarget(), { visibilityState: 'visible' })
  Object.assign(globalThis, { document: page, window: new EventTarget() })
  t.after(() => {
    for (const name of ['document', 'window']) Reflect.deleteProperty(globalThis, name)
  })
  return page
}

test('a silent Realtime is overcome when the page wakes', async (t) => {
  const page = openPage(t)
  const { id } = await submitForNobody()
  const { done } = await watchJoined(id)
  flaky.silenceRealtime()
  await finish(id)
  const before = reads(id)
  page.visibilityState = 'hidden'
  page.dispatchEvent(new Event('visibilitychange'))
  assert.equal(reads(id), before) // that was the falling asleep
  page.visibilityState = 'visible'
  globalThis.window.dispatchEvent(new Event('online'))
  await until(() => reads(id) === before + 1, 'read at once', 1000)
  assert.deepEqual(statesOf(await done), ['queued', 'failed'])
})

test('an abort throws its reason at once, and leaves no channel', async () => {
  const { id } = await submitForNobody()
  const controller = new AbortController()
  const { done } = await watchJoined(id, controller.signal)
  controller.abort(new Error('enough'))
  await assert.rejects(done, /^Error: enough$/)
  await until(() => user.supabase.getChannels().length === 0, 'left')
  await assert.rejects(collect(watchJob(user.supabase, id, { signal: controller.signal })), /enough/)
  await assert.rejects(collect(watchJob(user.supabase, id, { signal: AbortSignal.timeout(0) })), { name: 'TimeoutError' })
})

test('a break leaves no channel either', async () => {
  const { id } = await submitForNobody()
  for await (const event of watchJob(user.supabase, id)) {
    assert.equal(event.type, 'state')
    break
  }
  await until(() => user.supabase.getChannels().length === 0, 'left')
})

test('a job is watched twice, and left and watched again at once, as React does', async () => {
  const { id } = await submitForNobody()
  const controller = new AbortController()
  const first = await watchJoined(id, controller.signal)
  const second = collect(watchJob(user.supabase, id))
  controller.abort()
  await assert.rejects(first.done, { name: 'AbortError' })
  const third = collect(watchJob(user.supabase, id))
  await until(() => joined() === 2, 'joined')
  await finish(id)
  for (const states of [await second, await third]) assert.equal(statesOf(states).at(-1), 'failed')
  await until(() => user.supabase.getChannels().length === 0, 'left')
})

test('a job is watched anew while its channels are still being left', async () => {
  const { id } = await submitForNobody()
  const controller = new AbortController()
  const { done } = await watchJoined(id, controller.signal)
  flaky.slowRealtime(300)
  controller.abort()
  const anew = collect(watchJob(user.supabase, id))
  await assert.rejects(done)
  await until(() => joined() === 0, 'left')
  await until(() => joined() === 2, 'joined', 2500)
  await finish(id)
  assert.deepEqual(statesOf(await anew), ['queued', 'processing', 'failed'])
})

test('a channel that the page has opened itself is shared, and stays', async () => {
  await user.supabase.realtime.setAuth()
  const heard: string[] = []
  const theirs = user.supabase.channel(`user:${user.id}`, { config: { private: true } })
  theirs.on('broadcast', { event: '*' }, ({ payload }) => heard.push(payload.record.status)).subscribe()
  await until(() => joined() === 1, 'theirs joined')
  for (let i = 0; i < 2; i++) {
    heard.length = 0
    const { id } = await submitForNobody()
    const done = collect(watchJob(user.supabase, id))
    await until(() => joined() === 2, 'joined')
    await until(() => reads(id) === 2, 'read once more, since it was joined already', 1000)
    await finish(id)
    assert.deepEqual(statesOf(await done), ['queued', 'processing', 'failed'])
    await until(() => heard.length === 3, 'heard')
    assert.deepEqual(heard, ['queued', 'processing', 'failed'])
    await until(() => user.supabase.getChannels().length === 1, 'ours left')
  }
})

test('when somebody closes all channels, they are opened again', async () => {
  const { id } = await submitForNobody()
  const { done } = await watchJoined(id)
  await user.supabase.removeAllChannels()
  await until(() => joined() === 2, 'joined again')
  await finish(id)
  assert.deepEqual(statesOf(await done), ['queued', 'processing', 'failed'])
})

test('previews come as blobs; what is broken or unknown is passed over', async () => {
  const { id } = await submitForNobody()
  const { done } = await watchJoined(id)
  const teller = service(server).channel(`job:${id}`, { config: { private: true } })
  const step = { id, step: 4, steps: 15 }
  await teller.httpSend('news', step)
  await teller.httpSend('progress', { nothing: true })
  await teller.httpSend('progress', { ...step, step: 3, preview: { index: 0, webp: 'not base64!' } })
  await teller.httpSend('progress', { ...step, preview: { index: 2, webp: btoa('RIFF') }, news: 1 })
  await finish(id)
  const others = (await done).filter(({ type }) => type !== 'state')
  assert.deepEqual(
    others.map(({ type }) => type),
    ['progress', 'progress', 'preview'],
  )
  const preview = others.at(-1)
  assert.ok(preview?.type === 'preview')
  assert.deepEqual([preview.step, preview.total, preview.index, preview.image.type], [4, 15, 2, 'image/webp'])
  assert.equal(await preview.image.text(), 'RIFF')
})

test('whoever is slow gets every state, but only the newest step and preview', async () => {
  const { id } = await submitForNobody()
  const watch = watchJob(user.supabase, id)
  const events: SDXLEvent[] = []
  for await (const event of watch) {
    events.push(event)
    if (events.length > 1) continue
    await until(() => joined() >= 2, 'joined')
    const teller = service(server).channel(`job:${id}`, { config: { private: true } })
    for (const step of [1, 2, 3])
      await teller.httpSend('progress', { step, steps: 15, preview: { index: 0, webp: btoa(`${step}`) } })
    const heard = new Promise((resolve) => user.supabase.channel(`user:${user.id}`).on('broadcast', { event: '*' }, resolve))
    await cancelJob(user.supabase, id)
    await heard
  }
  assert.deepEqual(
    events.map((event) => (event.type === 'state' ? event.job.status : `${event.type} ${event.step}`)),
    ['queued', 'progress 3', 'preview 3', 'cancelled'],
  )
})

test('who is refused again and again, or whose job is gone, is told', async (t) => {
  const page = openPage(t)
  const { id } = await submitForNobody()
  const { done } = await watchJoined(id)
  await service(server).from('jobs').delete().eq('id', id)
  page.dispatchEvent(new Event('visibilitychange'))
  await assert.rejects(done, (error) => error instanceof SDXLError && error.code === 'job_not_found')

  const { id: another } = await submitForNobody()
  const second = await watchJoined(another)
  await user.supabase.auth.signOut({ scope: 'local' })
  const before = reads(another)
  let ended = false
  second.done.catch(() => (ended = true))
  for (let times = 1; times <= 3; times++) {
    assert.equal(ended, false)
    page.dispatchEvent(new Event('visibilitychange'))
    await until(() => reads(another) >= before + times && (ended || times < 3), 'read')
    await new Promise((resolve) => setTimeout(resolve, 100)) // the answer's way
  }
  await assert.rejects(second.done, (error) => error instanceof SDXLError && error.code === 'not_signed_in')
  await until(() => user.supabase.getChannels().length === 0, 'left')
})

test('a network that fails for a while ends no watch', async () => {
  const { id } = await submitForNobody()
  const { done } = await watchJoined(id)
  const before = reads(id)
  flaky.fault = () => 'cut'
  flaky.cutRealtime()
  await until(() => reads(id) > before + 1, 'tried in vain')
  await finish(id)
  flaky.fault = () => undefined // and Realtime stays away
  assert.deepEqual(statesOf(await done), ['queued', 'failed'])
})
