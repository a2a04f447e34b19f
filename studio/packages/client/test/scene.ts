// A user behind a proxy, a worker, and jobs that wait for nobody: what the tests of watching share.

import { before, beforeEach } from 'node:test'
import { type SDXLEvent, type SDXLJob, submitSDXLJob, watchJob } from '@ourvidz/sdxl-client'
import { collect, Flaky, PAINTABLE, type Server, service, signUp, startSupabase, startWorker, type User, until } from './harness.ts'

export const scene = {} as { server: Server; flaky: Flaky; user: User }
before(async () => {
  scene.server = await startSupabase()
  await startWorker(scene.server, { stepSeconds: 0.05 })
  scene.flaky = await new Flaky(scene.server).start()
})
beforeEach(async () => {
  scene.flaky.heal()
  scene.user = await signUp(scene.server, scene.flaky.url)
})

export const submit = (params = {}): Promise<SDXLJob> => submitSDXLJob(scene.user.supabase, { ...PAINTABLE, ...params })
export const submitForNobody = (): Promise<SDXLJob> => submit({ target_worker: 'nobody' })
/** Channels that are joined now. */
export const joined = (): number => scene.user.supabase.getChannels().filter(({ state }) => state === 'joined').length
/** How often the row was asked for. */
export const reads = (id: string): number =>
  scene.flaky.requests.filter((line) => line.startsWith('GET') && line.includes(id)).length
export const allLeft = (): Promise<void> => until(() => scene.user.supabase.getChannels().length === 0, 'left')

/** Says in the worker's place what happens to the job. */
export async function finish(id: string): Promise<void> {
  const p_token = crypto.randomUUID()
  const { data } = await service(scene.server).rpc('claim_jobs', {
    p_worker: 'test',
    p_target: 'nobody',
    p_job_types: ['sdxl_image_fast'],
    p_token,
    p_limit: 200,
  })
  for (const job of (data as { jobs: { id: string }[] }).jobs) {
    const p_outcome = job.id === id ? 'failed' : 'cancelled'
    await service(scene.server).rpc('finish_job', {
      p_id: job.id,
      p_token,
      p_outcome,
      p_error: { code: 'invalid_job', message: '' },
    })
  }
}

/** Watches in the background; resolves when both channels are joined, and the row was read once more for that. */
export async function watchJoined(id: string, signal?: AbortSignal): Promise<{ done: Promise<SDXLEvent[]> }> {
  const done = collect(watchJob(scene.user.supabase, id, { signal }))
  done.catch(() => undefined)
  await until(() => joined() >= 2 && reads(id) >= 2, 'joined')
  return { done }
}
