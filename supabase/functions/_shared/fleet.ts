// What wake-worker and stop-idle share: who may call them, and for which target.
//
// They decide nothing. The database says what is due and hears how it went; so each call may be repeated, lost or late.

import { json, log, readObject, Refusal } from './http.ts'
import { RunPod } from './runpod.ts'

const TOGETHER_MS = 45_000 // less than the minute after which the database takes a start for failed

const digest = async (text: string): Promise<Uint8Array> =>
  new Uint8Array(await crypto.subtle.digest('SHA-256', new TextEncoder().encode(text)))

/** Without the secret in the functions' settings nobody may. Digests are compared, and all of them, so that time tells nothing. */
async function checkCaller(request: Request): Promise<void> {
  const secret = Deno.env.get('FLEET_SECRET')
  const given = /^Bearer\s+(.+)$/i.exec(request.headers.get('Authorization') ?? '')?.[1]
  const [wanted, got] = [await digest(secret ?? ''), await digest(given ?? '')]
  const differences = wanted.reduce((sum, byte, i) => sum | (byte ^ (got[i] ?? 0)), 0)
  if (!secret || differences !== 0) throw new Refusal(401, 'unauthorized', 'The fleet secret is wrong or missing.')
}

/** From {"target_worker": "sdxl"}, or from the row that a database webhook sends along. */
function targetOf(body: Record<string, unknown>): string {
  const target = body.target_worker ?? (body.record as Record<string, unknown> | undefined)?.target_worker
  if (typeof target === 'string' && /^[a-z0-9_-]{1,64}$/.test(target)) return target
  throw new Refusal(400, 'invalid_request', 'target_worker is missing, or no name of a target.')
}

/** Does each thing that is due, and answers with how many succeeded and how many did not. `act` reports to the database itself. */
export function serveFleet<T>(
  due: (target: string) => Promise<T[]>,
  act: (runpod: RunPod, one: T, target: string) => Promise<boolean>,
) {
  const attempt = (...all: Parameters<typeof act>): Promise<boolean> =>
    act(...all).catch((error) => {
      log('report_failed', { error: String(error) }) // the database takes it for failed in a minute
      return false
    })
  Deno.serve(async (request) => {
    try {
      await checkCaller(request)
      const target = targetOf(await readObject(request))
      const runpod = new RunPod(AbortSignal.timeout(TOGETHER_MS))
      const done = await Promise.all((await due(target)).map((one) => attempt(runpod, one, target)))
      return json(200, { target_worker: target, done: done.filter(Boolean).length, failed: done.filter((ok) => !ok).length })
    } catch (error) {
      if (error instanceof Refusal) return json(error.status, { error: { code: error.code, message: error.message } })
      log('fleet_failed', { error: String(error) })
      return json(503, { error: { code: 'service_unavailable', message: 'The database did not answer.' } })
    }
  })
}
