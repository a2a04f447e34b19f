// Watching when Realtime fails, the page sleeps, or whoever watches is slow or leaves.

import assert from 'node:assert/strict'
import { type TestContext, test } from 'node:test'
import { cancelJob, SDXLError, type SDXLEvent, watchJob } from '@ourvidz/sdxl-client'
import { collect, service, statesOf, until } from './harness.ts'
import { allLeft, finish, joined, reads, scene, submit, submitForNobody, watchJoined } from './scene.ts'

test('while Realtime is down, the timer brings the states', async () => {
  scene.flaky.cutRealtime()
  const { id } = await submit()
  assert.equal(statesOf(await collect(watchJob(scene.user.supabase, id))).at(-1), 'completed')
  assert.deepEqual(scene.user.supabase.getChannels(), [])
})

test('what happened while Realtime was away is read when it is back', async () => {
  const { id } = await submitForNobody()
  const { done } = await watchJoined(id)
  const before = reads(id)
  scene.flaky.cutRealtime()
  await finish(id)
  scene.flaky.heal()
  assert.deepEqual(statesOf(await done), ['queued', 'failed'])
  assert.equal(reads(id), before + 1) // on joining, long before the timer
})

test('once Realtime is back, it is listened to again', async () => {
  const { id } = await submitForNobody()
  const { done } = await watchJoined(id)
  scene.flaky.cutRealtime()
  await until(() => joined() === 0, 'lost')
  const before = reads(id)
  scene.flaky.heal()
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
  scene.flaky.silenceRealtime()
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
  await allLeft()
  await assert.rejects(collect(watchJob(scene.user.supabase, id, { signal: controller.signal })), /enough/)
  await assert.rejects(collect(watchJob(scene.user.supabase, id, { signal: AbortSignal.timeout(0) })), { name: 'TimeoutError' })
})

test('a break leaves no channel either', async () => {
  const { id } = await submitForNobody()
  for await (const event of watchJob(scene.user.supabase, id)) {
    assert.equal(event.type, 'state')
    break
  }
  await allLeft()
})

test('previews come as blobs; what is broken or unknown is passed over', async () => {
  const { id } = await submitForNobody()
  const { done } = await watchJoined(id)
  const teller = service(scene.server).channel(`job:${id}`, { config: { private: true } })
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
  const watch = watchJob(scene.user.supabase, id)
  const events: SDXLEvent[] = []
  for await (const event of watch) {
    events.push(event)
    if (events.length > 1) continue
    await until(() => joined() >= 2, 'joined')
    const teller = service(scene.server).channel(`job:${id}`, { config: { private: true } })
    for (const step of [1, 2, 3])
      await teller.httpSend('progress', { step, steps: 15, preview: { index: 0, webp: btoa(`${step}`) } })
    const heard = new Promise((resolve) =>
      scene.user.supabase.channel(`user:${scene.user.id}`).on('broadcast', { event: '*' }, resolve),
    )
    await cancelJob(scene.user.supabase, id)
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
  await service(scene.server).from('jobs').delete().eq('id', id)
  page.dispatchEvent(new Event('visibilitychange'))
  await assert.rejects(done, (error) => error instanceof SDXLError && error.code === 'job_not_found')

  const { id: another } = await submitForNobody()
  const second = await watchJoined(another)
  await scene.user.supabase.auth.signOut({ scope: 'local' })
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
  await allLeft()
})

test('a network that fails for a while ends no watch', async () => {
  const { id } = await submitForNobody()
  const { done } = await watchJoined(id)
  const before = reads(id)
  scene.flaky.fault = () => 'cut'
  scene.flaky.cutRealtime()
  await until(() => reads(id) > before + 1, 'tried in vain')
  await finish(id)
  scene.flaky.fault = () => undefined // and Realtime stays away
  assert.deepEqual(statesOf(await done), ['queued', 'failed'])
})
