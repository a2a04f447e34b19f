// Who is signed in, and the ways to other pages.

import { ActionIcon, Anchor, Container, Group, Text, useMantineColorScheme } from '@mantine/core'
import type { Session } from '@supabase/supabase-js'
import { IconLogout, IconMoon, IconSun, IconSunMoon } from '@tabler/icons-react'
import { DeleteEverything } from './DeleteEverything.tsx'
import { addressOf, type Page } from './page.ts'
import classes from './Studio.module.css'
import { useServices } from './services.ts'
import { isOperator } from './session.ts'

/** What each scheme is called, and which comes after it. */
const SCHEMES = {
  auto: { label: 'Colours as the system', Icon: IconSunMoon, next: 'light' },
  light: { label: 'Light colours', Icon: IconSun, next: 'dark' },
  dark: { label: 'Dark colours', Icon: IconMoon, next: 'auto' },
} as const

export function Header({ session, page }: { session: Session; page: Page }) {
  const { supabase, drafts } = useServices()
  const { colorScheme, setColorScheme } = useMantineColorScheme()
  const { label, Icon, next } = SCHEMES[colorScheme]
  return (
    <header className={classes.header}>
      <Container size="100rem" h="100%">
        <Group h="100%" justify="space-between" wrap="nowrap">
          <Group component="nav" gap="lg" wrap="nowrap" aria-label="Pages">
            <Anchor href={addressOf('pictures')} c="bright" fw={700} size="lg" underline="never">
              Studio
            </Anchor>
            {isOperator(session) && (
              <Anchor href={addressOf('operator')} {...(page === 'operator' && { 'aria-current': 'page' })}>
                Workers
              </Anchor>
            )}
          </Group>
          <Group gap="xs" wrap="nowrap" miw={0}>
            <Text size="sm" c="dimmed" truncate visibleFrom="xs">
              {session.user.email}
            </Text>
            <ActionIcon variant="default" size={36} aria-label={label} title={label} onClick={() => setColorScheme(next)}>
              <Icon size={20} />
            </ActionIcon>
            <DeleteEverything />
            <ActionIcon
              variant="default"
              size={36}
              aria-label="Sign out"
              title="Sign out"
              onClick={() => {
                drafts.clear()
                void supabase.auth.signOut({ scope: 'local' })
              }}
            >
              <IconLogout size={20} />
            </ActionIcon>
          </Group>
        </Group>
      </Container>
    </header>
  )
}
