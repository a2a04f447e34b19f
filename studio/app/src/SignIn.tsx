import { Alert, Anchor, Button, Center, Paper, PasswordInput, Stack, Text, TextInput, Title } from '@mantine/core'
import type { Session } from '@supabase/supabase-js'
import { type FormEvent, useState } from 'react'
import { useServices } from './services.ts'
import { authSentence } from './session.ts'

const LEAST_CHARACTERS = 6

/** `ended` is the session that ended by itself, and left what was typed. */
export function SignIn({ ended }: { ended: Session | undefined }) {
  const { supabase, config } = useServices()
  const [isNew, setIsNew] = useState(false)
  const [email, setEmail] = useState(ended?.user.email ?? config.account?.email ?? '')
  const [password, setPassword] = useState((!ended && config.account?.password) || '')
  const [busy, setBusy] = useState(false)
  const [told, setTold] = useState<{ email?: string; password?: string; failure?: string; notice?: string }>({})

  const submit = async (event: FormEvent): Promise<void> => {
    event.preventDefault()
    const isAddress = /^\S+@\S+$/.test(email.trim())
    const isLong = password.length >= (isNew ? LEAST_CHARACTERS : 1)
    if (!isAddress || !isLong) {
      const asked = isNew ? `A password has at least ${LEAST_CHARACTERS} characters.` : 'Type your password.'
      return setTold({ ...(!isAddress && { email: 'Type your e-mail address.' }), ...(!isLong && { password: asked }) })
    }
    setBusy(true)
    setTold({})
    const credentials = { email: email.trim(), password }
    const { data, error } = await (isNew ? supabase.auth.signUp(credentials) : supabase.auth.signInWithPassword(credentials))
    setBusy(false)
    if (error) setTold({ failure: authSentence(error) })
    else if (!data.session) setTold({ notice: 'We sent you an e-mail. Open the link in it, and then sign in.' })
  }

  const turn = (): void => {
    setIsNew(!isNew)
    setTold({})
  }

  return (
    <Center mih="100dvh" p="md" component="main">
      <Paper withBorder radius="md" p="xl" w="100%" maw={400}>
        <form onSubmit={submit} noValidate>
          <Stack>
            <div>
              <Title order={1} size="h2">
                Studio
              </Title>
              <Text c="dimmed">{isNew ? 'Make an account to paint pictures.' : 'Sign in to paint pictures.'}</Text>
            </div>
            {ended && (
              <Alert color="yellow" role="status">
                Your session has ended. Sign in to go on: what you typed is kept.
              </Alert>
            )}
            {told.failure && (
              <Alert color="red" role="alert">
                {told.failure}
              </Alert>
            )}
            {told.notice && <Alert role="status">{told.notice}</Alert>}
            <TextInput
              label="E-mail address"
              type="email"
              autoComplete="email"
              value={email}
              error={told.email}
              onChange={(event) => setEmail(event.currentTarget.value)}
            />
            <PasswordInput
              label="Password"
              autoComplete={isNew ? 'new-password' : 'current-password'}
              value={password}
              error={told.password}
              onChange={(event) => setPassword(event.currentTarget.value)}
            />
            <Button type="submit" loading={busy}>
              {isNew ? 'Make an account' : 'Sign in'}
            </Button>
            <Text size="sm" ta="center">
              {isNew ? 'You have an account? ' : 'You are new here? '}
              <Anchor component="button" type="button" size="sm" onClick={turn}>
                {isNew ? 'Sign in' : 'Make an account'}
              </Anchor>
            </Text>
          </Stack>
        </form>
      </Paper>
    </Center>
  )
}
