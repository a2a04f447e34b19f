// All jobs of a user at once.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { createSDXLClient, deleteJob, type SDXLListEvent, submitSDXLJob, watchJob, watchJobs } from '@ourvidz/sdxl-client'
import { collect, PAINTABLE, service, signUp, until } from './harness.ts'
import { allLeft, joined, scene, submit, submitForNobody } from './scene.ts'

/** Gathers what is said until the end of the watch. */
function gather(watch: AsyncIterable<SDXLListEvent>): { said: string[]; done: Promise<unknown> } {
  const said: string[] = []
  const listen = async (): Promise<void> => {
    for await (const event of watch) {
      said.push(event.type === 'state' ? `${event.job.id} ${event.job.status} ${event.job.images.length}` : event.type)
    }
  }
  return { said, done: listen().catch((reason: unknown) => reason) }
}

test('every change of every job is told, with the pictures of the completed ones', async () => {
  const controller = new AbortController()
  const { said, done } = gather(createSDXLClient(scene.user.supabase).watchJobs(controller))
  await until(() => said.length === 1, 'joined')
  const [one, other] = [await submit({ batch_size: 3 }), await submitForNobody()]
  await service(scene.server).from('jobs').update({ cancel_requested_at: new Date().toISOString() }).eq('id', other.id)
  await until(() => said.includes(`${one.id} completed 3`) && said.includes(`${other.id} cancelled 0`), 'both ended')
  assert.equal(said[0], 'joined')
  assert.deepEqual(
    said.filter((line) => line.startsWith(other.id)),
    [`${other.id} queued 0`, `${other.id} cancelled 0`],
  )
  controller.abort(new Error('enough'))
  assert.equal(((await done) as Error).message, 'enough')
  await allLeft()
})

test('a deleted job is told by its id', async () => {
  const controller = new AbortController()
  const watch = watchJobs(scene.user.supabase, controller)
  const told: string[] = []
  const done = (async () => {
    for await (const event of watch) told.push(event.type === 'deleted' ? `deleted ${event.id}` : event.type)
  })().catch(() => undefined)
  await until(() => told.length === 1, 'joined')
  const { id } = await submitForNobody()
  await deleteJob(scene.user.supabase, id)
  await until(() => told.includes(`deleted ${id}`), 'deleted')
  controller.abort()
  await done
})

test('it says when Realtime was lost, and when the list should be read again', async () => {
  const controller = new AbortController()
  const { said } = gather(watchJobs(scene.user.supabase, controller))
  await until(() => said.length === 1, 'joined')
  scene.flaky.cutRealtime()
  await until(() => said.at(-1) === 'lost', 'lost')
  scene.flaky.heal()
  await until(() => said.at(-1) === 'joined', 'joined again')
  controller.abort()
  await allLeft()
})

test('it shares its channel with watches of single jobs, and hears nothing of other users', async () => {
  const other = await signUp(scene.server)
  const controller = new AbortController()
  const { said } = gather(watchJobs(scene.user.supabase, controller))
  await until(() => joined() === 1, 'joined')
  const theirs = await submitSDXLJob(other.supabase, PAINTABLE)
  const mine = await submit()
  await collect(watchJob(scene.user.supabase, mine.id))
  await until(() => said.includes(`${mine.id} completed 1`), 'completed')
  assert.ok(!said.some((line) => line.startsWith(theirs.id)))
  assert.equal(joined(), 1)
  controller.abort()
  await allLeft()
})

test('who breaks off leaves the channel; who has not signed in is told so', async () => {
  for await (const event of watchJobs(scene.user.supabase)) if (event.type === 'joined') break
  await allLeft()
  await scene.user.supabase.auth.signOut()
  await assert.rejects(watchJobs(scene.user.supabase).next(), { code: 'not_signed_in' })
})
