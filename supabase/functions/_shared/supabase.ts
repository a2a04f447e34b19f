// The way to the database: REST, with the keys that Supabase gives every function.

const TIMEOUT_MS = 10_000

export interface Answer {
  /** HTTP's; 0 where no answer came. */
  status: number
  // deno-lint-ignore no-explicit-any
  data: any
}

/** The named keys of today, or the one of before. */
function key(names: string, legacy: string): string {
  const keys = JSON.parse(Deno.env.get(names) || '{}')
  return keys.default ?? Object.values(keys)[0] ?? Deno.env.get(legacy) ?? ''
}

async function ask(method: string, path: string, headers: Record<string, string>, body?: unknown): Promise<Answer> {
  try {
    const response = await fetch(`${Deno.env.get('SUPABASE_URL')}/rest/v1/${path}`, {
      method,
      headers: { 'Content-Type': 'application/json', ...headers },
      body: body === undefined ? undefined : JSON.stringify(body),
      signal: AbortSignal.timeout(TIMEOUT_MS),
    })
    const text = await response.text()
    return { status: response.status, data: text ? JSON.parse(text) : null }
  } catch (error) {
    return { status: 0, data: { message: String(error) } }
  }
}

/** As the caller, with the caller's token: row security decides. About exactly one row. */
export const asCaller = (authorization: string, method: string, path: string, body?: unknown): Promise<Answer> =>
  ask(method, path, {
    apikey: key('SUPABASE_PUBLISHABLE_KEYS', 'SUPABASE_ANON_KEY'),
    Authorization: authorization,
    Accept: 'application/vnd.pgrst.object+json',
    Prefer: 'return=representation',
  }, body)

/** A function of the database that only the service may call. Throws where it cannot be called. */
export async function rpc<T>(name: string, parameters: Record<string, unknown>): Promise<T> {
  const secret = key('SUPABASE_SECRET_KEYS', 'SUPABASE_SERVICE_ROLE_KEY')
  // the keys of today are no tokens
  const headers = { apikey: secret, ...(!secret.startsWith('sb_') && { Authorization: `Bearer ${secret}` }) }
  const { status, data } = await ask('POST', `rpc/${name}`, headers, parameters)
  if (status < 200 || status >= 300) throw new Error(`${name} was answered with ${status}: ${data?.message}`)
  return data as T
}
