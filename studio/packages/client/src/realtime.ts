// One private channel for each topic and client, however many listen: supabase-js knows only one channel of a name, too.

import type { RealtimeChannel } from '@supabase/supabase-js'
import type { Supabase } from './types.ts'

export interface Listener {
  /** A broadcast came. */
  onMessage(event: string, payload: unknown): void
  /** The channel was joined (again), or lost: whatever was sent in between is gone. */
  onJoined?(joined: boolean): void
}

type Topic = (listener: Listener) => () => void

const REOPEN_MS = 3000

const topics = new WeakMap<Supabase, Map<string, Topic>>()

/** Listens until the returned function is called. */
export function listen(supabase: Supabase, name: string, listener: Listener): () => void {
  const known = topics.get(supabase) ?? new Map<string, Topic>()
  topics.set(supabase, known)
  const topic = known.get(name) ?? createTopic(supabase, name, () => known.delete(name))
  known.set(name, topic)
  return topic(listener)
}

function createTopic(supabase: Supabase, name: string, onLeft: () => void): Topic {
  const listeners = new Set<Listener>()
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

  const open = async (): Promise<void> => {
    await leaving // until then supabase-js would hand out the channel that is being left
    // while it hangs up, after the last channel was left, it would not connect anew, and some versions never would
    while (supabase.realtime.isDisconnecting?.()) await new Promise((resolve) => setTimeout(resolve, 50))
    await supabase.realtime.setAuth().catch(() => undefined) // without a token the join is refused, and tried again
    const channels = supabase.getChannels()
    if (!listeners.size || (channel && channels.includes(channel))) return
    // a channel of this name that the page has opened itself is listened to, and left alone otherwise
    const known = channels.find(({ topic }) => topic === `realtime:${name}`)
    isOurs = !known
    const mine = known ?? supabase.channel(name, { config: { private: true } })
    channel = mine
    mine.on('broadcast', { event: '*' }, ({ event, payload }) => {
      for (const listener of listeners) listener.onMessage(event, payload)
    })
    if (known) return tell(known.state === 'joined')
    mine.subscribe((status) => {
      if (mine !== channel) return
      tell(status === 'SUBSCRIBED')
      if (status !== 'CLOSED') return // anything else supabase-js tries again by itself
      channel = undefined
      timer = setTimeout(open, REOPEN_MS)
    })
  }

  return (listener) => {
    listeners.add(listener)
    if (joined) listener.onJoined?.(true)
    if (listeners.size === 1) void open()
    return () => {
      listeners.delete(listener)
      if (listeners.size || !isOurs) return
      clearTimeout(timer)
      if (channel) leaving = supabase.removeChannel(channel)
      channel = undefined
      joined = false
      void leaving.then(() => listeners.size || onLeft())
    }
  }
}
