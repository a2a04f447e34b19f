// Where Supabase is, and what its model paints: told by /config.json beside the page, so that one build serves anywhere, or at build time.

/** Width and height in pixels. */
export type Size = readonly [number, number]

export interface Config {
  supabaseUrl: string
  supabasePublishableKey: string
  /** The sizes to choose from, beside the model's own. */
  sizes: Size[]
  /** Prompts for somebody who sees the page for the first time. */
  examples: string[]
  /** Who is signed in when the page is opened: for a demo on this machine alone, since everybody can read it here. */
  account?: { email: string; password: string }
}

/** The shapes that SDXL was trained on (Podell et al., 2023, appendix I), as the platform offers them. */
const SDXL_SIZES: Size[] = [
  [1024, 1024],
  [1344, 768],
  [768, 1344],
  [1216, 832],
  [832, 1216],
]
const EXAMPLES = [
  'A lighthouse on a cliff at dusk, oil painting',
  'A fox asleep in autumn leaves, soft light',
  'A teapot shaped like a snail',
]

/** Throws an Error with words for the operator when neither says where Supabase is. */
export async function loadConfig(): Promise<Config> {
  const { VITE_SUPABASE_URL, VITE_SUPABASE_PUBLISHABLE_KEY } = import.meta.env
  const told = await fetch('config.json', { cache: 'no-cache' })
    .then((answer) => (answer.ok ? (answer.json() as Promise<Partial<Config>>) : ({} as Partial<Config>)))
    .catch((): Partial<Config> => ({})) // none, or a server that answers every path with the page
  const supabaseUrl = told.supabaseUrl ?? VITE_SUPABASE_URL
  const supabasePublishableKey = told.supabasePublishableKey ?? VITE_SUPABASE_PUBLISHABLE_KEY
  if (!supabaseUrl || !supabasePublishableKey) {
    throw new Error('Set VITE_SUPABASE_URL and VITE_SUPABASE_PUBLISHABLE_KEY, or serve a config.json beside this page.')
  }
  return { sizes: SDXL_SIZES, examples: EXAMPLES, ...told, supabaseUrl, supabasePublishableKey }
}
