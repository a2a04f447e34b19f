// Asks RunPod for the workers that the database wants: pods, or requests to a serverless endpoint.
// Called by private.call_fleet through pg_net, when jobs are inserted and by pg_cron. Decides nothing itself: see ../_shared/fleet.ts.

import { serveFleet } from '../_shared/fleet.ts'
import { log } from '../_shared/http.ts'
import { rpc } from '../_shared/supabase.ts'

interface Start {
  id: string
  attempt: number
  needed: boolean
}

serveFleet<Start>((target) => rpc('claim_starts', { p_target: target }), async (runpod, { id, attempt, needed }, target) => {
  try {
    const started = await runpod.start(id, target, { attempt, needed })
    await rpc('report_start', { p_id: id, p_provider: started?.provider ?? null, p_pod_id: started?.id ?? null })
    log(started ? 'start_requested' : 'start_not_needed', {
      start_id: id,
      attempt,
      ...started && { provider: started.provider, pod_id: started.id },
    })
    return true
  } catch (error) {
    const message = (error as Error).message
    log('start_failed', { start_id: id, attempt, error: message })
    await rpc('report_start', { p_id: id, p_error: message })
    return false
  }
})
