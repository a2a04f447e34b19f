// What the page talks to: one Supabase client, the functions of the SDXL client on it, and the pictures' URLs.

import { createSDXLClient, type SDXLClient } from '@ourvidz/sdxl-client'
import { createClient, type SupabaseClient } from '@supabase/supabase-js'
import { createContext, useContext } from 'react'
import type { Config } from './config.ts'
import type { Wish } from './create/wish.ts'
import { Pictures } from './pictures.ts'

export interface Services {
  config: Config
  supabase: SupabaseClient
  sdxl: SDXLClient
  pictures: Pictures
  /** What a user has typed, by the user's id: it outlives a session that ends by itself. */
  drafts: Map<string, Wish>
}

export function createServices(config: Config): Services {
  const supabase = createClient(config.supabaseUrl, config.supabasePublishableKey, { global: { fetch: fetchPatiently } })
  const sdxl = createSDXLClient(supabase)
  return { config, supabase, sdxl, pictures: new Pictures(supabase, sdxl), drafts: new Map() }
}

/**
 * Renews a session only while the browser is online, and at once when it is again. By itself auth-js tries in steps that grow to 13 s, and
 * then rests for a minute: a page that wakes before its network would stay deaf for so long.
 */
const fetchPatiently: typeof fetch = async (input, init) => {
  if (!navigator.onLine && /\/token\?grant_type=refresh_token$/.test(input instanceof Request ? input.url : `${input}`)) {
    await new Promise((resolve) => addEventListener('online', resolve, { once: true }))
  }
  return fetch(input, init)
}

export const ServicesContext = createContext<Services | null>(null)

export function useServices(): Services {
  const services = useContext(ServicesContext)
  if (!services) throw new Error('outside of ServicesContext')
  return services
}
