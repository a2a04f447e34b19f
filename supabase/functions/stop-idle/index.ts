// Has RunPod remove the pods that the database wants gone: idle, silent, or never ready. Decides nothing itself: see ../_shared/fleet.ts.

import { serveFleet } from '../_shared/fleet.ts'
import { log } from '../_shared/http.ts'
import { rpc } from '../_shared/supabase.ts'

interface Stop {
  id: string
  pod_id: string
  attempt: number
}

serveFleet<Stop>((target) => rpc('claim_stops', { p_target: target }), async (runpod, { id, pod_id, attempt }) => {
  try {
    await runpod.stop(pod_id)
    await rpc('report_stop', { p_id: id })
    log('pod_removed', { start_id: id, attempt, pod_id })
    return true
  } catch (error) {
    const message = (error as Error).message
    log('stop_failed', { start_id: id, attempt, pod_id, error: message })
    await rpc('report_stop', { p_id: id, p_error: message })
    return false
  }
})
