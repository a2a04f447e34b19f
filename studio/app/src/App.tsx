// Signed in or not.

import { Center, Loader } from '@mantine/core'
import { SignIn } from './SignIn.tsx'
import { Studio } from './Studio.tsx'
import { useSession } from './session.ts'

export function App() {
  const session = useSession()
  if (session === undefined) {
    return (
      <Center mih="100dvh">
        <Loader aria-label="Loading" />
      </Center>
    )
  }
  return session ? <Studio key={session.user.id} session={session} /> : <SignIn />
}
