// One error class for everything that can go wrong, and the way to it from what PostgREST and Storage answer.

import { fieldOf, messageOf, type SDXLErrorCode } from './messages.ts'

/** One fault of one field, as `validateSDXLParams` finds it. */
export interface SDXLFault {
  field: string
  code: SDXLErrorCode
  message: string
}

export interface SDXLErrorOptions {
  field?: string | undefined
  message?: string | undefined
  faults?: readonly SDXLFault[] | undefined
  cause?: unknown
}

/** `code` is stable, for programs; `message` is plain English, for people. */
export class SDXLError extends Error {
  override readonly name = 'SDXLError'
  /** One of ours, or what a newer database or worker says. */
  readonly code: SDXLErrorCode | (string & {})
  /** The field at fault, where there is one. */
  readonly field: string | undefined
  /** All faults, where the parameters were refused before they were sent. */
  readonly faults: readonly SDXLFault[]

  constructor(code: SDXLErrorCode | (string & {}), { field, message, faults = [], cause }: SDXLErrorOptions = {}) {
    super(message ?? messageOf(code), { cause })
    this.code = code
    this.field = field
    this.faults = faults
  }

  /** Whether it was the way there that failed, or the moment, and not the request: the same may work later. */
  get retryable(): boolean {
    return /^(network_error|service_unavailable|too_many_requests)$/.test(this.code)
  }
}

/** What supabase-js hands over as `error`, from any of its parts. */
interface Answer {
  name?: string
  message?: string
  code?: string | undefined
  status?: number | undefined
  statusCode?: string | undefined
}

/** By the code of PostgREST and Postgres, or by HTTP's status. */
const KNOWN: Record<string, SDXLErrorCode> = {
  PT429: 'too_many_active_jobs',
  PT409: 'job_is_finished',
  57014: 'service_unavailable', // the statement took too long
  401: 'not_signed_in',
  413: 'reference_has_at_most_20_mb',
  415: 'reference_type_is_png_webp_or_jpeg',
  429: 'too_many_requests',
}

/** The error in our words. `status` is HTTP's; 0 means that no answer came. */
export function asSDXLError(error: unknown, status?: number): SDXLError {
  const answer = (error ?? {}) as Answer
  // Storage says the true status inside of a 400
  const http = Number(answer.statusCode) || answer.status || status || 0
  // Auth has many codes for a session that has ended (session_not_found, refresh_token_already_used, …), and is asked for nothing else
  const refused = answer.name?.startsWith('Auth') && http >= 400 && http < 500 && http !== 429
  const [code, field] = read(answer.message ?? '', answer.code ?? '', refused ? 401 : http)
  return new SDXLError(code, { field, cause: error })
}

function read(message: string, code: string, http: number): [string, (string | undefined)?] {
  const named = (pattern: RegExp): string | undefined => pattern.exec(message)?.[1]
  const constraint = named(/constraint "([^"]+)"/)
  if (constraint) return [constraint, code === '23514' ? fieldOf(constraint) : undefined]
  if (code === '23502') return ['required', named(/column "([^"]+)"/)]
  if (code === 'PGRST204') return ['unknown_field', named(/'([^']+)' column/)]
  if (/^22/.test(code)) return ['invalid_value']
  // Storage gives a refused token the status and the code of row security; the message alone tells them apart:
  // https://github.com/supabase/storage, src/http/plugins/jwt.ts
  const isToken = /^(AccessDenied|InvalidJWT)?$/.test(code) && /"exp" claim|\bjw[st]\b|signature/i.test(message)
  const known = KNOWN[code] ?? KNOWN[isToken ? 401 : http]
  if (known) return [known]
  // a restrictive policy bears its rule as a name
  if (code === '42501' || http === 403) return [named(/policy "([^"]+)"/)?.replaceAll(' ', '_') ?? 'permission_denied']
  return [http >= 500 ? 'service_unavailable' : http ? 'refused' : 'network_error']
}
