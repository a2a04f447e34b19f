// Signed in or not.

import { Center, Loader } from '@mantine/core'
import { SignIn } from './SignIn.tsx'
import { Studio } from './Studio.tsx'
import { useServices } from './services.ts'
import { useSession } from './session.ts'

export function App() {
  const { session, ended } = useSession()
  const { drafts } = useServices()
  if (session === undefined) {
    return (
      <Center mih="100dvh">
        <Loader aria-label="Loading" />
      </Center>
    )
  }
  if (session) return <Studio key={session.user.id} session={session} />
  // who signs out keeps nothing; a session that ended by itself leaves its draft
  return <SignIn ended={ended && drafts.has(ended.user.id) ? ended : undefined} />
}
