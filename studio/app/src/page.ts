// Which page is shown, by the address' hash: a page from a static host needs no rules for paths.

import { useHash } from '@mantine/hooks'

export type Page = 'pictures' | 'operator'

export const addressOf = (page: Page): string => (page === 'operator' ? '#/operator' : '#/')

export function usePage(): Page {
  const [hash] = useHash({ getInitialValueInEffect: false })
  return hash === addressOf('operator') ? 'operator' : 'pictures'
}
