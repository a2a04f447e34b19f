// Asking for a job by calling a function, for frontends that would rather not insert a row: the fields of public.jobs in, and
// {jobId, status, queueName, message} out. The rules and their words are the client's. The row is inserted with the caller's own token,
// so that row security, constraints and quota decide here as everywhere.

import { asSDXLError, SDXLError } from '../../../studio/packages/client/src/errors.ts'
import { messageOf } from '../../../studio/packages/client/src/messages.ts'
import type { SDXLParams } from '../../../studio/packages/client/src/types.ts'
import { validateSDXLParams } from '../../../studio/packages/client/src/validate.ts'
import { json, log, preflight, readObject, Refusal } from '../_shared/http.ts'
import { type Answer, asCaller } from '../_shared/supabase.ts'

const COLUMNS = 'select=id,status,target_worker'

/** Who the token says that it is; REST checks whether that is true. */
function userIdOf(authorization: string): string {
  try {
    const claims = /^Bearer\s+[^.\s]+\.([^.\s]+)\.[^.\s]+$/i.exec(authorization)?.[1] ?? ''
    const { sub } = JSON.parse(atob(claims.replaceAll('-', '+').replaceAll('_', '/')))
    if (typeof sub === 'string') return sub
  } catch {
    // said below
  }
  throw new SDXLError('not_signed_in')
}

async function queue(request: Request): Promise<Response> {
  const authorization = request.headers.get('Authorization') ?? ''
  const body = await readObject(request)
  const row = { user_id: userIdOf(authorization), ...body, idempotency_key: body.idempotency_key ?? crypto.randomUUID() }
  const faults = Object.values(validateSDXLParams(row as unknown as SDXLParams) ?? {}).flatMap((of) => of ?? [])
  if (faults[0]) throw new SDXLError(faults[0].code, { ...faults[0], faults })

  const inserted = await asCaller(authorization, 'POST', `jobs?${COLUMNS}`, row)
  if (inserted.status === 201) return accepted(201, inserted, 'The job waits for a worker.')
  const refusal = asSDXLError(inserted.data, inserted.status)
  // the quota is looked at before the key is
  if (['jobs_idempotency_key_is_unique_per_user', 'too_many_active_jobs'].includes(refusal.code)) {
    const same = new URLSearchParams({ user_id: `eq.${row.user_id}`, idempotency_key: `eq.${row.idempotency_key}` })
    const earlier = await asCaller(authorization, 'GET', `jobs?${COLUMNS}&${same}`)
    if (earlier.status === 200) return accepted(200, earlier, messageOf('jobs_idempotency_key_is_unique_per_user'))
  }
  throw Object.assign(refusal, { status: statusOf(refusal, inserted.status) })
}

function accepted(status: number, { data }: Answer, message: string): Response {
  log('job_queued', { job_id: data.id, target_worker: data.target_worker, repeated: status === 200 })
  return json(status, { jobId: data.id, status: data.status, queueName: data.target_worker, message })
}

/** REST's own status where it tells more than that the request was wrong. */
function statusOf(refusal: SDXLError, status: number): number {
  if (refusal.retryable && status !== 429) return 503
  return [401, 403, 409, 429].includes(status) ? status : 400
}

Deno.serve(async (request) => {
  if (request.method === 'OPTIONS') return preflight()
  try {
    return await queue(request)
  } catch (error) {
    if (error instanceof Refusal) return json(error.status, { error: { code: error.code, message: error.message } })
    if (!(error instanceof SDXLError)) {
      log('queue_failed', { error: (error as Error).name })
      return json(500, { error: { code: 'unexpected', message: 'Something went wrong here.' } })
    }
    const { code, message, field, faults } = error
    const status = (error as { status?: number }).status ?? (code === 'not_signed_in' ? 401 : 400)
    return json(status, { error: { code, message, field, faults } })
  }
})
