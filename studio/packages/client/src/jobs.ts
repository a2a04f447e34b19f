// Asking for a job, and what can be asked about one.

import { SDXLError } from './errors.ts'
import { request, userIdOf } from './session.ts'
import { isFinished, type SDXLImage, type SDXLJob, type SDXLParams, type SDXLStatus, type Supabase } from './types.ts'
import { PARAMS, validateSDXLParams } from './validate.ts'

const COLUMNS = '*, images:job_images(*)'
const PAUSES_MS = [300, 1500]

/** Works in a page without https, too, where `crypto.randomUUID` is missing. */
export const randomName = (): string => crypto.getRandomValues(new Uint32Array(4)).join('-')

/** Does it again, twice at most, while the network or the service fails; only for what may be done twice. */
async function patiently<T>(act: () => Promise<T>): Promise<T> {
  for (let tries = 0; ; tries++) {
    try {
      return await act()
    } catch (error) {
      const pause = PAUSES_MS[tries]
      if (!(error instanceof SDXLError && error.retryable) || pause === undefined) throw error
      await new Promise((resolve) => setTimeout(resolve, pause))
    }
  }
}

/** A row of `jobs`, as REST or a broadcast brings it, with its pictures in their order. */
export const asJob = (row: object, images: SDXLImage[] | null = (row as SDXLJob).images): SDXLJob => ({
  ...(row as SDXLJob),
  images: [...(images ?? [])].sort((a, b) => a.index - b.index),
})

/**
 * Inserts a job and returns it. Refuses what the database would refuse before anything is sent.
 *
 * A lost reply never makes a second job: each job has an idempotency key, a random one unless you give yours. With the key of an
 * earlier job of the same user, that job is returned as it is by now, and nothing is inserted.
 */
export async function submitSDXLJob(supabase: Supabase, params: SDXLParams): Promise<SDXLJob> {
  const row = {
    ...params,
    user_id: params.user_id ?? (await userIdOf(supabase)),
    idempotency_key: params.idempotency_key ?? randomName(),
  }
  const faults = validateSDXLParams(row)
  const all = Object.values(faults ?? {}).flatMap((of) => of ?? [])
  if (all[0]) throw new SDXLError(all[0].code, { ...all[0], faults: all })
  return patiently(async () => {
    try {
      return asJob(await request(supabase, () => supabase.from('jobs').insert(row).select().single()))
    } catch (refusal) {
      // the quota is looked at before the key is
      const known = /^(jobs_idempotency_key_is_unique_per_user|too_many_active_jobs)$/.test((refusal as SDXLError).code)
        ? await find(supabase, 'idempotency_key', row.idempotency_key)
        : undefined
      if (known) return known
      throw refusal
    }
  })
}

async function find(
  supabase: Supabase,
  column: string,
  value: unknown,
  signal = new AbortController().signal,
): Promise<SDXLJob | undefined> {
  const ask = () => supabase.from('jobs').select(COLUMNS).eq(column, value).abortSignal(signal).maybeSingle()
  try {
    const row = await request(supabase, ask)
    return row ? asJob(row) : undefined
  } finally {
    signal.throwIfAborted()
  }
}

/** The job as it is now. */
export async function getJob(
  supabase: Supabase,
  id: string,
  { signal }: { signal?: AbortSignal | undefined } = {},
): Promise<SDXLJob> {
  const job = await find(supabase, 'id', id, signal)
  if (!job) throw new SDXLError('job_not_found')
  return job
}

/**
 * Asks to cancel: a waiting job ends at once, a running one within a denoising step. Returns the job as it is then; one that has ended
 * already is returned as it ended.
 */
export async function cancelJob(supabase: Supabase, id: string): Promise<SDXLJob> {
  const ask = () =>
    supabase.from('jobs').update({ cancel_requested_at: new Date().toISOString() }).eq('id', id).select().maybeSingle()
  return patiently(async () => {
    const row = await request(supabase, ask).catch((refusal: SDXLError) => {
      if (refusal.code !== 'job_is_finished') throw refusal
    })
    return row ? asJob(row) : getJob(supabase, id)
  })
}

/**
 * Deletes a job with its pictures and its history, whatever its status; a running one stops within a denoising step. From then on nothing
 * of it can be read, but for signed URLs until the files are gone, too: a worker removes them, within seconds where one runs. Deleted
 * twice is no error.
 */
export async function deleteJob(supabase: Supabase, id: string): Promise<void> {
  await patiently(() => request(supabase, () => supabase.rpc('delete_jobs', { p_jobs: [id] })))
}

/** Deletes all of the user's jobs, as `deleteJob` does, and their uploaded references. */
export async function deleteEverything(supabase: Supabase): Promise<void> {
  while (await patiently(() => request(supabase, () => supabase.rpc('delete_everything'))));
}

/** How many jobs come before a waiting one, those of all users: 0 is the next. Null when it does not wait (any more). */
export async function queuePosition(supabase: Supabase, id: string): Promise<number | null> {
  return request(supabase, () => supabase.rpc('jobs_ahead', { p_job: id }))
}

/** Submits what a finished job asked for once more, as a new job (a finished row never changes), with the changes that you name. */
export async function retryJob(supabase: Supabase, id: string, changes: Partial<SDXLParams> = {}): Promise<SDXLJob> {
  const job = await getJob(supabase, id)
  if (!isFinished(job)) throw new SDXLError('job_is_active')
  const { id: _, idempotency_key: __, ...asked } = Object.fromEntries(PARAMS.map((field) => [field, job[field]])) as SDXLParams
  return submitSDXLJob(supabase, { ...asked, ...changes })
}

export interface ListOptions {
  /** The last job of the page before. */
  before?: Pick<SDXLJob, 'created_at' | 'id'> | undefined
  /** At most so many; 24 unless said. */
  limit?: number
  /** Only jobs of this status. */
  status?: SDXLStatus | undefined
}

/** The user's jobs, the newest first, a page at a time: a page with fewer than `limit` jobs is the last one. */
export async function listJobs(supabase: Supabase, { before, limit = 24, status: only }: ListOptions = {}): Promise<SDXLJob[]> {
  const rows = await request(supabase, () => {
    let asked = supabase.from('jobs').select(COLUMNS).order('created_at', { ascending: false }).order('id', { ascending: false })
    if (only) asked = asked.eq('status', only)
    // jobs of one insert share their time, so the id decides
    if (before)
      asked = asked.or(`created_at.lt."${before.created_at}",and(created_at.eq."${before.created_at}",id.lt.${before.id})`)
    return asked.limit(limit)
  })
  return rows.map((row) => asJob(row))
}

/** Why the job failed, or null where it did not. The message is the worker's own, which knows more than the code. */
export function jobError(job: SDXLJob): SDXLError | null {
  if (job.status !== 'failed') return null
  return new SDXLError(job.error_code ?? 'unknown_error', { message: job.error_message ?? undefined })
}
