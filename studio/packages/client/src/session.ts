// The session behind each request: renewed before it ends, and when the server refuses its token.

import { asSDXLError, SDXLError } from './errors.ts'
import type { Supabase } from './types.ts'

/** What supabase-js resolves with, from any of its parts. */
interface Reply<T> {
  data: T | null
  error: unknown
  status?: number
}

/** supabase-js's option `accessToken`: tokens of another issuer, for whom `supabase.auth` must not be touched. */
const issuerOf = (supabase: Supabase): (() => Promise<string | null>) | undefined =>
  (supabase as unknown as { accessToken?: () => Promise<string | null> }).accessToken

/**
 * The user's access token, renewed when it is about to expire; null where nobody is signed in. Throws `not_signed_in` where the session
 * cannot be renewed any more, and a retryable error where it cannot be renewed now.
 */
export async function tokenOf(supabase: Supabase): Promise<string | null> {
  const issue = issuerOf(supabase)
  if (issue) return issue()
  const { data, error } = await supabase.auth.getSession()
  if (error) throw asSDXLError(error)
  return data.session?.access_token ?? null
}

/** The signed-in user's id: the subject of the access token. */
export async function userIdOf(supabase: Supabase): Promise<string> {
  const [, claims] = (await tokenOf(supabase))?.split('.') ?? []
  if (!claims) throw new SDXLError('not_signed_in')
  return JSON.parse(atob(claims.replaceAll('-', '+').replaceAll('_', '/'))).sub
}

/**
 * The access token in place of one that the server refuses: the session is renewed, whatever the clock of this machine says of it, unless
 * that was done meanwhile. Throws as `tokenOf` does.
 */
export async function renewedToken(supabase: Supabase, refused: string | null): Promise<string | null> {
  const token = await tokenOf(supabase)
  if (!token || token !== refused || issuerOf(supabase)) return token
  const { error } = await supabase.auth.refreshSession()
  const failure = error && asSDXLError(error)
  // what the server takes neither token of is over; by its clock, supabase-js may still hold it for valid
  if (failure?.code === 'not_signed_in') await supabase.auth.signOut({ scope: 'local' })
  if (failure) throw failure
  return tokenOf(supabase)
}

/** The data of a reply. A request that is refused for its token is sent once more, with a new one; other errors are thrown. */
export async function request<T>(supabase: Supabase, send: () => PromiseLike<Reply<T>>): Promise<T> {
  const token = await tokenOf(supabase)
  for (let again = false; ; again = true) {
    const { data, error, status } = await send()
    if (!error) return data as T
    const refusal = asSDXLError(error, status)
    if (again || !token || refusal.code !== 'not_signed_in') throw refusal
    await renewedToken(supabase, token)
  }
}
