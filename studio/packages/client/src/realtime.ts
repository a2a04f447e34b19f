// One private channel for each topic and client, however many listen: supabase-js knows only one channel of a name, too. What ends or
// silences a channel (an expired token, a sleep, a dead connection) is overcome here, as far as supabase-js does not do it.

import type { RealtimeChannel } from '@supabase/supabase-js'
import type { SDXLError } from './errors.ts'
import { renewedToken, tokenOf } from './session.ts'
import type { Supabase } from './types.ts'
import { onWake } from './wake.ts'

export interface Listener {
  /** A broadcast came. */
  onMessage(event: string, payload: unknown): void
  /** The channel was joined (again), or lost: whatever was sent in between is gone. */
  onJoined?(joined: boolean): void
  /** The page or the machine woke: what was sent meanwhile may be gone, although the channel seems to be joined. */
  onWake?(): void
  /** The session has ended: nothing more will be heard. */
  onSignedOut?(): void
}

type Topic = (listener: Listener) => () => void

const REOPEN_MS = 3000
/** How long a heartbeat may stay unanswered after waking; by itself supabase-js waits for 25 s. */
const PROBE_MS = 3000

const topics = new WeakMap<Supabase, Map<string, Topic>>()
const recoveries = new WeakMap<Supabase, Promise<void>>()
const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms))

/** Listens until the returned function is called. */
export function listen(supabase: Supabase, name: string, listener: Listener): () => void {
  const known = topics.get(supabase) ?? new Map<string, Topic>()
  topics.set(supabase, known)
  const topic = known.get(name) ?? createTopic(supabase, name, () => known.delete(name))
  known.set(name, topic)
  return topic(listener)
}

/** While it hangs up, supabase-js would not connect anew, and some versions never would. */
async function untilDisconnected({ realtime }: Supabase): Promise<void> {
  while (realtime.isDisconnecting?.()) await sleep(50)
}

async function reconnect(supabase: Supabase): Promise<void> {
  await supabase.realtime.disconnect()
  await untilDisconnected(supabase)
  supabase.realtime.connect()
}

/** Replaces a connection that is closed, or whose heartbeat is not answered; the channels on it are joined again. */
async function recover(supabase: Supabase): Promise<void> {
  const { realtime } = supabase
  if (realtime.connectionState() === 'closed') await reconnect(supabase)
  if (!realtime.pendingHeartbeatRef) void realtime.sendHeartbeat()
  const beat = realtime.pendingHeartbeatRef
  await sleep(PROBE_MS)
  if (!supabase.getChannels().length) return
  if (!realtime.isConnected()) await reconnect(supabase)
  // at a second heartbeat while one is unanswered, supabase-js takes the connection for dead and makes another
  else if (beat && realtime.pendingHeartbeatRef === beat) void realtime.sendHeartbeat()
}

function createTopic(supabase: Supabase, name: string, onLeft: () => void): Topic {
  const listeners = new Set<Listener>()
  const heard = new WeakSet<RealtimeChannel>()
  let channel: RealtimeChannel | undefined
  let isOurs = true
  let joined = false
  let leaving: Promise<unknown> = Promise.resolve()
  let timer: ReturnType<typeof setTimeout>
  let retry: ReturnType<typeof setTimeout>
  let stopWaking: () => void

  const tell = (now: boolean): void => {
    if (!now && !joined) return
    joined = now
    for (const listener of listeners) listener.onJoined?.(now)
  }
  /** Whether there is a session, or none any more; false while the network keeps it from being renewed. */
  const settle = async (token: Promise<string | null>): Promise<boolean> => {
    const found = await token.catch((error: SDXLError) => error)
    const isAway = (found as SDXLError | null)?.retryable
    if (typeof found !== 'string' && !isAway) for (const listener of listeners) listener.onSignedOut?.()
    return !isAway
  }
  const reopen = (ms: number): void => {
    channel = undefined
    clearTimeout(timer)
    timer = setTimeout(open, ms)
  }
  const leave = (): void => {
    const left = channel
    channel = undefined
    if (left) leaving = supabase.removeChannel(left)
  }

  const open = async (): Promise<void> => {
    await leaving // until then supabase-js would hand out the channel that is being left
    await untilDisconnected(supabase)
    await supabase.realtime.setAuth().catch(() => undefined) // without a token the join is refused, and tried again
    const channels = supabase.getChannels()
    if (!listeners.size || (channel && channels.includes(channel))) return
    // a channel of this name that the page has opened itself is listened to, and left alone otherwise
    const known = channels.find(({ topic }) => topic === `realtime:${name}`)
    isOurs = !known
    const mine = known ?? supabase.channel(name, { config: { private: true } })
    channel = mine
    if (!heard.has(mine)) {
      heard.add(mine)
      mine.on('broadcast', { event: '*' }, ({ event, payload }) => {
        for (const listener of listeners) listener.onMessage(event, payload)
      })
      const onLost = (): void => {
        if (mine !== channel) return
        tell(false)
        reopen(REOPEN_MS)
      }
      // how the page's channel fares is told to the page alone, and by Phoenix's own events
      if (known) for (const event of ['phx_error', 'phx_close']) mine.on(event as 'system', {}, onLost)
    }
    if (known) return known.state === 'joined' ? tell(true) : reopen(REOPEN_MS)
    mine.subscribe((status, error) => {
      if (mine !== channel) return
      tell(status === 'SUBSCRIBED')
      // https://github.com/supabase/realtime, realtime_channel.ex: `InvalidJWTToken: Token has expired 2 seconds ago`
      if (error)
        void settle(/JWT|^Jwt/.test(error.message) ? renewedToken(supabase, supabase.realtime.accessTokenValue) : tokenOf(supabase))
      if (status === 'CLOSED') reopen(REOPEN_MS) // anything else supabase-js tries again by itself
    })
  }

  /** The session first: a join with the old token would be refused, after seconds in which the whole connection waits. */
  const wake = async (): Promise<void> => {
    clearTimeout(retry)
    Object.assign(supabase.auth, { lastRefreshFailure: null }) // which auth-js would repeat for a minute, though the network may be back
    for (const listener of listeners) listener.onWake?.()
    const isSettled = await settle(tokenOf(supabase))
    // a failure here must not end a Node process, nor keep from recovering: `open` asks for the token again
    if (isSettled) await supabase.realtime.setAuth().catch(() => undefined)
    else if (listeners.size) retry = setTimeout(wake, REOPEN_MS)
    if (!isSettled || !listeners.size) return
    if (isOurs && channel?.state === 'errored') leave()
    if (!channel) reopen(0)
    if (!recoveries.has(supabase))
      recoveries.set(
        supabase,
        recover(supabase).finally(() => recoveries.delete(supabase)),
      )
  }

  return (listener) => {
    listeners.add(listener)
    if (joined) listener.onJoined?.(true)
    if (listeners.size === 1) {
      stopWaking = onWake(wake)
      void open()
    }
    return () => {
      listeners.delete(listener)
      if (listeners.size) return
      stopWaking()
      clearTimeout(retry)
      if (!isOurs) return
      clearTimeout(timer)
      leave()
      joined = false
      void leaving.then(() => listeners.size || onLeft())
    }
  }
}
