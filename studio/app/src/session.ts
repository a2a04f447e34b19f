// Who is signed in, and what goes wrong on the way there, in words.

import type { AuthError, Session } from '@supabase/supabase-js'
import { useEffect, useState } from 'react'
import { type Services, useServices } from './services.ts'

interface Access {
  /** Undefined until it is known. */
  session?: Session | null
  /** The one before, where there is none now. */
  ended?: Session | undefined
}

export function useSession(): Access {
  const { supabase } = useServices()
  const [access, setAccess] = useState<Access>({})
  useEffect(() => {
    const { data } = supabase.auth.onAuthStateChange((_, session) =>
      setAccess((before) => (session ? { session } : { session, ended: before.session ?? before.ended })),
    )
    return () => data.subscription.unsubscribe()
  }, [supabase])
  return access
}

/** Signs the demo's account in, where there is one and nobody is signed in yet. */
export async function openAccount({ supabase, config: { account } }: Services): Promise<void> {
  const { data } = await supabase.auth.getSession()
  if (account && !data.session) await supabase.auth.signInWithPassword(account)
}

/** Who may see workers and the queue: `app_metadata` can be written with the service key alone. */
export const isOperator = ({ user }: Session): boolean => user.app_metadata.role === 'operator'

// the codes of Supabase Auth: https://supabase.com/docs/guides/auth/debugging/error-codes
const WORDS: Record<string, string> = {
  invalid_credentials: 'The e-mail address or the password is wrong.',
  user_already_exists: 'There is an account with this e-mail address already. Sign in instead.',
  email_exists: 'There is an account with this e-mail address already. Sign in instead.',
  email_address_invalid: 'This e-mail address cannot be used.',
  email_not_confirmed: 'Open the link in the e-mail that we sent you first.',
  weak_password: 'This password is too easy to guess; take a longer one.',
  signup_disabled: 'New accounts cannot be made at the moment.',
  email_provider_disabled: 'Signing in with an e-mail address is switched off.',
  over_request_rate_limit: 'Too many tries; wait a minute.',
  over_email_send_rate_limit: 'Too many e-mails were sent; wait a few minutes.',
  user_banned: 'This account is blocked.',
}

export function authSentence(error: AuthError): string {
  const known = WORDS[error.code ?? '']
  if (known) return known
  if (!error.status || error.name === 'AuthRetryableFetchError') return 'No connection; try again in a moment.'
  return error.status >= 500 ? 'The service does not answer; try again in a moment.' : error.message
}
