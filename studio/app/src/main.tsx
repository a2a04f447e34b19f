import './styles.ts'
import { Alert, Container, type CSSVariablesResolver, createTheme, MantineProvider } from '@mantine/core'
import { StrictMode } from 'react'
import { createRoot } from 'react-dom/client'
import { App } from './App.tsx'
import { loadConfig } from './config.ts'
import { createServices, ServicesContext } from './services.ts'
import { openAccount } from './session.ts'

const theme = createTheme({
  primaryColor: 'indigo',
  // darker than Mantine's: white on it, and it on white, have a contrast of 4.5 and more
  primaryShade: { light: 7, dark: 8 },
  autoContrast: true,
  cursorType: 'pointer',
})

// Mantine's own greys have a contrast of 3.3 on white; these have 4.5 and more
const legible: CSSVariablesResolver = ({ colors }) => ({
  variables: {},
  light: {
    '--mantine-color-dimmed': colors.gray[7],
    '--mantine-color-placeholder': colors.gray[7],
    '--mantine-color-error': colors.red[9],
  },
  dark: {
    '--mantine-color-dimmed': colors.dark[1],
    '--mantine-color-placeholder': colors.dark[1],
    '--mantine-color-error': colors.red[4],
  },
})

const page = await loadConfig().then(
  async (config) => {
    const services = createServices(config)
    await openAccount(services)
    return (
      <ServicesContext value={services}>
        <App />
      </ServicesContext>
    )
  },
  (error: Error) => (
    <Container py="xl">
      <Alert color="red" role="alert" title="This page does not know its Supabase">
        {error.message}
      </Alert>
    </Container>
  ),
)

createRoot(document.getElementById('root') as HTMLElement).render(
  <StrictMode>
    <MantineProvider theme={theme} cssVariablesResolver={legible} defaultColorScheme="auto">
      {page}
    </MantineProvider>
  </StrictMode>,
)
