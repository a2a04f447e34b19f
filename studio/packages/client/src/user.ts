// All jobs of the signed-in user at once: for a page that shows a list, and wants to know of what another page asked for, too.

import { SDXLError } from './errors.ts'
import { asJob } from './jobs.ts'
import { listen } from './realtime.ts'
import { userIdOf } from './session.ts'
import type { SDXLImage, SDXLJob, Supabase } from './types.ts'

/** What comes on `user:<id>`. A deleted job has no record any more. */
export interface UserMessage {
  record?: object | null
  old_record?: { id: string } | null
  images?: SDXLImage[] | null
}

export type SDXLListEvent =
  /** A job was asked for, or changed. */
  | { type: 'state'; job: SDXLJob }
  /** A job was deleted. */
  | { type: 'deleted'; id: string }
  /** Realtime was joined, for the first time or again, or the page woke: list the jobs now, since changes may have been missed. */
  | { type: 'joined' }
  /** Realtime is away, and by itself it comes back: until then nothing is heard. */
  | { type: 'lost' }

/**
 * Every change of any job of the user, until `break` or the signal ends it; after an abort it throws the signal's reason. What was
 * missed while Realtime was away is not sent again: read the list when it says `joined`, and follow with `watchJob` what must not be missed.
 * Throws `not_signed_in` when the session ends.
 */
export async function* watchJobs(
  supabase: Supabase,
  { signal }: { signal?: AbortSignal | undefined } = {},
): AsyncGenerator<SDXLListEvent, void, void> {
  const events: SDXLListEvent[] = []
  let wake = (): void => {}
  let isSignedOut = false
  let isJoined = false
  const put = (event: SDXLListEvent): void => {
    events.push(event)
    wake()
  }
  const leave = listen(supabase, `user:${await userIdOf(supabase)}`, {
    onMessage: (_, payload) => {
      const { record, images, old_record: old } = (payload ?? {}) as UserMessage
      if (record) put({ type: 'state', job: asJob(record, images) })
      else if (old) put({ type: 'deleted', id: old.id })
    },
    onJoined: (joined) => {
      isJoined = joined
      put({ type: joined ? 'joined' : 'lost' })
    },
    onWake: () => isJoined && put({ type: 'joined' }),
    onSignedOut: () => {
      isSignedOut = true
      wake()
    },
  })
  const onAbort = (): void => wake()
  signal?.addEventListener('abort', onAbort)
  try {
    for (;;) {
      signal?.throwIfAborted()
      const event = events.shift()
      if (event) yield event
      else if (isSignedOut) throw new SDXLError('not_signed_in')
      else await new Promise<void>((resolve) => (wake = resolve))
    }
  } finally {
    signal?.removeEventListener('abort', onAbort)
    leave()
  }
}
