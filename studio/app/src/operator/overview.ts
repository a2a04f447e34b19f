// The two views that only operators may read, read again every few seconds while the page is in front.

import type { SupabaseClient } from '@supabase/supabase-js'
import { useEffect, useState } from 'react'

const EVERY_MS = 3_000

export interface QueueHealth {
  target_worker: string
  waiting: number
  running: number
  oldest_waiting_seconds: number | null
  live_workers: number
  starting_workers: number
  runpod_error: string | null
  completed_last_hour: number
  failed_last_hour: number
  wait_seconds_p50: number | null
  wait_seconds_p95: number | null
  run_seconds_p50: number | null
  failures_last_day: Record<string, number> | null
}

export interface Fleet {
  id: string
  state: string
  error: string | null
  gpu: string | null
  vram_mb: number | null
  model: string | null
  engine: string | null
  engine_note: string | null
  version: string
  is_live: boolean
  running: number
  seen_seconds_ago: number
}

interface Overview {
  queues: QueueHealth[]
  fleet: Fleet[]
}

/** What was read last, and why it could not be read since. */
export function useOverview(supabase: SupabaseClient): { overview: Overview | undefined; failure: string | undefined } {
  const [overview, setOverview] = useState<Overview>()
  const [failure, setFailure] = useState<string>()
  useEffect(() => {
    let isOver = false
    const read = async (): Promise<void> => {
      if (document.visibilityState === 'hidden') return
      const [queues, fleet] = await Promise.all([
        supabase.from('queue_health').select('*').order('target_worker'),
        supabase.from('fleet').select('*').order('is_live', { ascending: false }).order('id'),
      ])
      if (isOver) return
      if (queues.error || fleet.error) return setFailure('The figures could not be read; the page tries again.')
      setFailure(undefined)
      setOverview({ queues: queues.data, fleet: fleet.data })
    }
    void read()
    const timer = setInterval(read, EVERY_MS)
    return () => {
      isOver = true
      clearInterval(timer)
    }
  }, [supabase])
  return { overview, failure }
}
