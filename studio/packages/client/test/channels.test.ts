// Channels that several watches share, also with the page itself.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { watchJob } from '@ourvidz/sdxl-client'
import { collect, statesOf, until } from './harness.ts'
import { allLeft, finish, joined, reads, scene, submitForNobody, watchJoined } from './scene.ts'

test('a job is watched twice, and left and watched again at once, as React does', async () => {
  const { id } = await submitForNobody()
  const controller = new AbortController()
  const first = await watchJoined(id, controller.signal)
  const second = collect(watchJob(scene.user.supabase, id))
  controller.abort()
  await assert.rejects(first.done, { name: 'AbortError' })
  const third = collect(watchJob(scene.user.supabase, id))
  await until(() => joined() === 2, 'joined')
  await finish(id)
  for (const states of [await second, await third]) assert.equal(statesOf(states).at(-1), 'failed')
  await allLeft()
})

test('of two jobs on one channel each watch hears its own', async () => {
  const [one, other] = [await submitForNobody(), await submitForNobody()]
  const first = await watchJoined(one.id)
  const second = await watchJoined(other.id)
  await until(() => joined() === 3, 'joined: the user, and both jobs')
  await finish(one.id) // the other one is cancelled
  assert.deepEqual(statesOf(await first.done), ['queued', 'processing', 'failed'])
  assert.deepEqual(statesOf(await second.done), ['queued', 'processing', 'cancelled'])
  for (const [events, { id }] of [
    [await first.done, one],
    [await second.done, other],
  ] as const) {
    assert.ok(events.every((event) => event.type !== 'state' || event.job.id === id))
  }
})

test('a job is watched anew while its channels are still being left', async () => {
  const { id } = await submitForNobody()
  const controller = new AbortController()
  const { done } = await watchJoined(id, controller.signal)
  scene.flaky.slowRealtime(300)
  controller.abort()
  const anew = collect(watchJob(scene.user.supabase, id))
  await assert.rejects(done)
  await until(() => joined() === 0, 'left')
  await until(() => joined() === 2, 'joined', 2500)
  await finish(id)
  assert.deepEqual(statesOf(await anew), ['queued', 'processing', 'failed'])
})

test('a channel that the page has opened itself is shared, and stays', async () => {
  await scene.user.supabase.realtime.setAuth()
  const heard: string[] = []
  const theirs = scene.user.supabase.channel(`user:${scene.user.id}`, { config: { private: true } })
  theirs.on('broadcast', { event: '*' }, ({ payload }) => heard.push(payload.record.status)).subscribe()
  await until(() => joined() === 1, 'theirs joined')
  for (let i = 0; i < 2; i++) {
    heard.length = 0
    const { id } = await submitForNobody()
    const done = collect(watchJob(scene.user.supabase, id))
    await until(() => joined() === 2, 'joined')
    await until(() => reads(id) === 2, 'read once more, since it was joined already', 1000)
    await finish(id)
    assert.deepEqual(statesOf(await done), ['queued', 'processing', 'failed'])
    await until(() => heard.length === 3, 'heard')
    assert.deepEqual(heard, ['queued', 'processing', 'failed'])
    await until(() => scene.user.supabase.getChannels().length === 1, 'ours left')
  }
})

test('when somebody closes all channels, they are opened again', async () => {
  const { id } = await submitForNobody()
  const { done } = await watchJoined(id)
  await scene.user.supabase.removeAllChannels()
  await until(() => joined() === 2, 'joined again')
  await finish(id)
  assert.deepEqual(statesOf(await done), ['queued', 'processing', 'failed'])
})

test('a job is watched while supabase-js hangs up, after the last channel was left', async () => {
  const { id } = await submitForNobody()
  const { done } = await watchJoined(id)
  await finish(id)
  await done
  await allLeft()
  const { id: next } = await submitForNobody()
  scene.flaky.slowRealtime(300)
  void scene.user.supabase.realtime.disconnect() // as it does by itself, in many versions at once
  const anew = collect(watchJob(scene.user.supabase, next))
  await until(() => joined() === 2, 'joined', 5000)
  await finish(next)
  assert.deepEqual(statesOf(await anew), ['queued', 'processing', 'failed'])
})
