// A job, watched until it ends. The row is the truth and Realtime a hint: broadcasts bring each state at once, and the row is read again
// whenever one could have been missed.

import { SDXLError } from './errors.ts'
import { asJob, getJob } from './jobs.ts'
import { listen } from './realtime.ts'
import { isFinished, type SDXLJob, type Supabase } from './types.ts'
import type { UserMessage } from './user.ts'

/** More kinds may come; pass over those that you do not know. */
export type SDXLEvent =
  /** The row changed: its status, or the wish to cancel it. */
  | { type: 'state'; job: SDXLJob }
  /** A denoising step is done. At most four a second. */
  | { type: 'progress'; step: number; total: number; progress: number }
  /** How an image of the batch looks so far: a small WebP. `URL.createObjectURL(image)` shows it. */
  | { type: 'preview'; step: number; total: number; index: number; image: Blob }

/** Between two readings: the pauses grow from the first to the second, and are long from the start while Realtime is joined. */
const SHORT_PAUSE_MS = 3_000
const LONG_PAUSE_MS = 30_000
const REFUSALS = 3

/**
 * The job as it is now, and then all that happens to it until it has ended. `break` and the signal end it too, and leave nothing open;
 * after an abort it throws the signal's reason, as `fetch` does. A failed job is no error here: its last state has the `error_code`.
 * Throws `job_not_found` when the job is deleted.
 */
export async function* watchJob(
  supabase: Supabase,
  id: string,
  { signal }: { signal?: AbortSignal | undefined } = {},
): AsyncGenerator<SDXLEvent, void, void> {
  let job = await getJob(supabase, id, { signal })
  const events: SDXLEvent[] = [{ type: 'state', job }]
  let wake = (): void => {}
  let failure: unknown
  let refused = 0
  let pauseMs = SHORT_PAUSE_MS
  let reading = new AbortController()
  let timer: ReturnType<typeof setTimeout> | undefined

  const put = (event: SDXLEvent): void => {
    // whoever is slow gets every state, but only the newest step and preview
    const older = events.findIndex(({ type }) => type === event.type && type !== 'state')
    if (older >= 0) events.splice(older, 1)
    events.push(event)
    wake()
  }
  const take = (row: SDXLJob): void => {
    if (row.id !== id || !isNewer(row, job)) return
    job = row
    put({ type: 'state', job })
  }
  const onMessage = (event: string, payload: unknown): void => {
    const { record, images, old_record: old, ...rest } = (payload ?? {}) as UserMessage
    if (record) take(asJob(record, images))
    else if (old) old.id === id && void read()
    else if (!isFinished(job)) readStep(event, rest, put)
  }

  const read = async (): Promise<void> => {
    reading.abort() // it may have hung, or be older than the reason to read again
    const mine = new AbortController()
    reading = mine
    schedule(pauseMs)
    try {
      take(await getJob(supabase, id, mine))
      refused = 0
    } catch (error) {
      // After a long sleep the session may be renewed a moment later than the network is back: only who is refused repeatedly is out.
      if (mine.signal.aborted || !(error instanceof SDXLError) || error.retryable) return
      refused += 1
      if (refused < REFUSALS && error.code !== 'job_not_found') return
      failure = error
      wake()
    }
  }
  const schedule = (ms: number): void => {
    clearTimeout(timer)
    timer = setTimeout(read, ms * (0.9 + 0.2 * Math.random()))
    pauseMs = Math.min(1.5 * ms, LONG_PAUSE_MS)
  }
  const onJoined = (joined: boolean): void => {
    pauseMs = joined ? LONG_PAUSE_MS : SHORT_PAUSE_MS
    if (joined) void read()
    else schedule(pauseMs)
  }
  const onWake = (): void => {
    pauseMs = SHORT_PAUSE_MS
    void read()
  }

  const over = new AbortController()
  const leave: (() => void)[] = []
  const stop = (): void => {
    over.abort()
    clearTimeout(timer)
    reading.abort()
    for (const act of leave.splice(0)) act()
    wake()
  }

  try {
    if (!isFinished(job)) {
      schedule(pauseMs)
      leave.push(
        listen(supabase, `user:${job.user_id}`, { onMessage, onJoined, onWake }),
        listen(supabase, `job:${id}`, { onMessage }),
      )
      signal?.addEventListener('abort', stop, { signal: over.signal })
    }
    for (;;) {
      signal?.throwIfAborted()
      if (failure) throw failure
      const event = events.shift()
      if (event) yield event
      else if (isFinished(job)) return
      else await new Promise<void>((resolve) => (wake = resolve))
    }
  } finally {
    stop()
  }
}

/** What the worker sends while it paints. Other events, and whatever else may come with this one, are passed over. */
function readStep(event: string, { step, steps: total, preview }: Record<string, unknown>, put: (event: SDXLEvent) => void): void {
  if (event !== 'progress' || typeof step !== 'number' || typeof total !== 'number') return
  put({ type: event, step, total, progress: Math.round((100 * step) / total) })
  try {
    const { index, webp } = preview as { index: number; webp: string }
    const bytes = Uint8Array.from(atob(webp), (character) => character.charCodeAt(0))
    put({ type: 'preview', step, total, index, image: new Blob([bytes], { type: 'image/webp' }) })
  } catch {
    // none, or not as it should be: a courtesy
  }
}

/** Whether the row is a later version than the other: by its end, its last claim, and then in the order in which a claim goes. */
function isNewer(row: SDXLJob, than: SDXLJob): boolean {
  const version = (job: SDXLJob): number[] => [
    Number(isFinished(job)),
    job.started_at ? Date.parse(job.started_at) : 0,
    Number(job.status === 'queued'), // given back, if it has a claim
    Number(job.cancel_requested_at !== null),
  ]
  const [later, earlier] = [version(row), version(than)]
  const difference = later.map((part, i) => part - (earlier[i] ?? 0)).find((part) => part !== 0)
  return (difference ?? 0) > 0
}
