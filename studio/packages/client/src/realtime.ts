// Private channels: one for each topic and client, however many listen, since supabase-js knows only one channel of a name, too. What ends
// or silences them (an expired token, a sleep, a dead connection) is overcome here, as far as supabase-js does not.

import type { RealtimeChannel } from '@supabase/supabase-js'
import { SDXLError } from './errors.ts'
import { onAuth, renew, retryRefresh, tokenOf } from './session.ts'
import type { Supabase } from './types.ts'
import { onWake } from './wake.ts'

export interface Listener {
  /** A broadcast came. */
  onMessage(event: string, payload: unknown): void
  /** The channel was joined (again), or lost: whatever was sent in between is gone. */
  onJoined?(joined: boolean): void
  /** The page or the machine woke: what was sent meanwhile may be gone, although the channel seems to be joined. */
  onWake?(): void
  /** The session has ended, and nothing more will be heard. */
  onSignedOut?(): void
}

interface Topic {
  listeners: Set<Listener>
  listen(listener: Listener): () => void
  /** Joins at once where supabase-js would wait, or has given up. */
  rejoin(): void
}

interface Connection {
  topics: Map<string, Topic>
  /** The server refused the token of a join. */
  refused(): void
  end(): void
}

const REOPEN_MS = 3_000
const PROBE_MS = 3_000
/** Between two tries to renew the session while the network is away. */
const LONGEST_PAUSE_MS = 4_000
/** Between two renewals of a session whose tokens are refused: the server's clock may be wrong. */
const RENEW_MS = 10_000
/** https://github.com/supabase/realtime, lib/realtime_web/channels/realtime_channel.ex: `InvalidJWTToken: Token has expired 2 seconds ago` */
const TOKEN_REFUSED = /^(\w*JWT\w*|JwtSign\w+): |^Token has expired/i

const connections = new WeakMap<Supabase, Connection>()
const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms))

/** Listens until the returned function is called. */
export function listen(supabase: Supabase, name: string, listener: Listener): () => void {
  const connection = connections.get(supabase) ?? createConnection(supabase)
  connections.set(supabase, connection)
  const { topics } = connection
  const onLeft = (): void => {
    topics.delete(name)
    if (topics.size) return
    connections.delete(supabase)
    connection.end()
  }
  const topic = topics.get(name) ?? createTopic(supabase, name, connection.refused, onLeft)
  topics.set(name, topic)
  return topic.listen(listener)
}

/** While it hangs up, supabase-js would not connect anew, and some versions never would. */
async function untilDisconnected({ realtime }: Supabase): Promise<void> {
  while (realtime.isDisconnecting?.()) await sleep(50)
}

function createConnection(supabase: Supabase): Connection {
  const { realtime } = supabase
  const topics: Connection['topics'] = new Map()
  let waking: Promise<void> | undefined
  let renewedAt = 0
  const each = (act: (listener: Listener) => void): void => {
    for (const { listeners } of topics.values()) for (const listener of listeners) act(listener)
  }
  const rejoin = (): void => {
    for (const topic of topics.values()) topic.rejoin()
  }
  const onFailure = (error: unknown): void => {
    if (error instanceof SDXLError && error.retryable) return
    each((listener) => listener.onSignedOut?.())
  }

  const reconnect = async (): Promise<void> => {
    await realtime.disconnect()
    await untilDisconnected(supabase)
    realtime.connect()
  }

  /** First the session, then the connection, then the channels: a join with an old token would be refused, and the others wait for it. */
  const recover = async (): Promise<void> => {
    for (let pause = 500; topics.size; pause = Math.min(2 * pause, LONGEST_PAUSE_MS)) {
      retryRefresh(supabase)
      const error = await tokenOf(supabase).then(
        () => undefined,
        (reason: unknown) => reason,
      )
      if (error) onFailure(error)
      if (!(error instanceof SDXLError && error.retryable)) break
      await sleep(pause)
    }
    await realtime.setAuth()
    if (!topics.size) return
    if (!realtime.isConnected() && !realtime.isConnecting()) await reconnect()
    rejoin()
    if (!realtime.pendingHeartbeatRef) void realtime.sendHeartbeat()
    const beat = realtime.pendingHeartbeatRef
    await sleep(PROBE_MS)
    if (!topics.size) return
    if (!realtime.isConnected()) await reconnect()
    // unanswered: with a second heartbeat it takes the connection for dead, and makes another
    else if (beat && realtime.pendingHeartbeatRef === beat) void realtime.sendHeartbeat()
  }

  const endings = [
    onWake(() => {
      each((listener) => listener.onWake?.())
      waking ??= recover().finally(() => (waking = undefined))
    }),
    onAuth(supabase, (event) => {
      if (event === 'SIGNED_OUT') each((listener) => listener.onSignedOut?.())
      if (event === 'TOKEN_REFRESHED' || event === 'SIGNED_IN') rejoin()
    }),
  ]
  return {
    topics,
    refused: () => {
      if (Date.now() - renewedAt < RENEW_MS) return
      renewedAt = Date.now()
      renew(supabase, realtime.accessTokenValue).catch(onFailure)
    },
    end: () => {
      for (const end of endings) end()
    },
  }
}

function createTopic(supabase: Supabase, name: string, onRefused: () => void, onLeft: () => void): Topic {
  const listeners = new Set<Listener>()
  const heard = new WeakSet<RealtimeChannel>()
  let channel: RealtimeChannel | undefined
  let isOurs = true
  let joined = false
  let leaving: Promise<unknown> = Promise.resolve()
  let timer: ReturnType<typeof setTimeout>

  const tell = (now: boolean): void => {
    if (!now && !joined) return
    joined = now
    for (const listener of listeners) listener.onJoined?.(now)
  }
  const reopen = (ms: number): void => {
    channel = undefined
    clearTimeout(timer)
    timer = setTimeout(open, ms)
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
        if (mine === channel) for (const listener of listeners) listener.onMessage(event, payload)
      })
      // its owner is told how it fares, and nobody else: Phoenix's own events say it, too
      for (const event of known ? ['phx_error', 'phx_close'] : []) {
        mine.on(event as 'system', {}, () => {
          if (mine !== channel) return
          tell(false)
          reopen(REOPEN_MS)
        })
      }
    }
    if (known?.state === 'joined') return tell(true)
    if (known) return reopen(REOPEN_MS)
    mine.subscribe((status, error) => {
      if (mine !== channel) return
      tell(status === 'SUBSCRIBED')
      if (status === 'CHANNEL_ERROR' && TOKEN_REFUSED.test(error?.message ?? '')) onRefused()
      if (status === 'CLOSED') reopen(REOPEN_MS) // anything else supabase-js tries again by itself
    })
  }

  const leave = (): void => {
    clearTimeout(timer)
    const left = channel
    channel = undefined
    joined = false
    if (left) leaving = supabase.removeChannel(left)
  }

  return {
    listeners,
    listen: (listener) => {
      listeners.add(listener)
      if (joined) listener.onJoined?.(true)
      if (listeners.size === 1) void open()
      return () => {
        listeners.delete(listener)
        if (listeners.size || !isOurs) return
        leave()
        void leaving.then(() => listeners.size || onLeft())
      }
    },
    rejoin: () => {
      if (!listeners.size) return
      if (isOurs && channel?.state === 'errored') leave()
      if (!channel) reopen(0)
    },
  }
}
