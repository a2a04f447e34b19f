// What the page talks to: one Supabase client, the functions of the SDXL client on it, and the pictures' URLs.

import { createSDXLClient, type SDXLClient } from '@ourvidz/sdxl-client'
import { createClient, type SupabaseClient } from '@supabase/supabase-js'
import { createContext, useContext } from 'react'
import type { Config } from './config.ts'
import { Pictures } from './pictures.ts'

export interface Services {
  config: Config
  supabase: SupabaseClient
  sdxl: SDXLClient
  pictures: Pictures
}

export function createServices(config: Config): Services {
  const supabase = createClient(config.supabaseUrl, config.supabasePublishableKey)
  const sdxl = createSDXLClient(supabase)
  return { config, supabase, sdxl, pictures: new Pictures(supabase, sdxl) }
}

export const ServicesContext = createContext<Services | null>(null)

export function useServices(): Services {
  const services = useContext(ServicesContext)
  if (!services) throw new Error('outside of ServicesContext')
  return services
}
