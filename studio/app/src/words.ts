// How the page says what the data mean.

import { SDXLError, type SDXLImage, type SDXLJob, type SDXLScheduler } from '@ourvidz/sdxl-client'

export const sentence = (error: unknown): string =>
  error instanceof SDXLError ? error.message : 'Something went wrong; try again in a moment.'

/** What a strength of the reference does, in a few words. */
export function strengthWord(strength: number): string {
  if (strength >= 0.9) return 'almost the same'
  if (strength >= 0.7) return 'small changes'
  if (strength >= 0.45) return 'same layout, new details'
  if (strength >= 0.2) return 'loosely alike'
  return 'hardly looked at'
}

export function placeWord(ahead: number | null): string {
  if (ahead === null) return 'Waiting'
  if (ahead === 0) return 'Next in line'
  return ahead === 1 ? 'One job comes first' : `${ahead >= 1000 ? '1000 or more' : ahead} jobs come first`
}

export const promptOf = (job: SDXLJob): string => job.prompt.trim() || 'An exact copy'

/** What a picture shows, for who does not see it. */
export const describe = (job: SDXLJob, index: number): string =>
  job.batch_size > 1 ? `${promptOf(job)} (${index + 1} of ${job.batch_size})` : promptOf(job)

export const JOB_TYPES = { sdxl_image_fast: 'Fast', sdxl_image_high: 'High quality' } as const

export const SCHEDULERS: Record<SDXLScheduler, string> = {
  euler: 'Euler',
  euler_a: 'Euler ancestral',
  dpmpp_2m: 'DPM++ 2M',
  dpmpp_2m_karras: 'DPM++ 2M Karras',
  dpmpp_sde_karras: 'DPM++ SDE Karras',
  ddim: 'DDIM',
  unipc: 'UniPC',
  lcm: 'LCM',
}

/** A size by its shape: `Square 1024 × 1024`. */
export function sizeWord(width: number, height: number): string {
  const shape = width === height ? 'Square' : width > height ? 'Wide' : 'Tall'
  return `${shape} ${width} × ${height}`
}

const relative = new Intl.RelativeTimeFormat('en', { numeric: 'auto' })
const UNITS = [
  ['day', 86_400],
  ['hour', 3_600],
  ['minute', 60],
  ['second', 1],
] as const

/** How long a time is past: `5 minutes ago`. */
export function ago(seconds: number): string {
  for (const [unit, size] of UNITS) if (seconds >= size) return relative.format(-Math.round(seconds / size), unit)
  return 'now'
}

/** A length of time, to two figures or so: `0.8 s`, `12 s`, `3 min`. */
export function span(seconds: number | null): string {
  if (seconds === null) return '–'
  if (seconds < 10) return `${seconds.toFixed(1)} s`
  return seconds < 120 ? `${Math.round(seconds)} s` : `${Math.round(seconds / 60)} min`
}

const number = (value: number): string => String(Math.round(value * 100) / 100)

/** What a picture was made of, line by line: the same lines for each picture, empty where it was left to the worker. */
export function parametersOf(job: SDXLJob, image: SDXLImage): [name: string, value: string][] {
  const hasReference = job.reference_image_path ?? job.reference_image_url
  const strength = job.reference_strength
  const reference = job.exact_copy_mode ? 'exact copy' : `${Math.round((strength ?? 0) * 100)} %, ${strengthWord(strength ?? 0)}`
  return [
    ['Prompt', job.prompt],
    ['Written out as', job.enhanced_prompt ?? ''],
    ['Negative prompt', job.negative_prompt],
    ['Quality', JOB_TYPES[job.job_type]],
    ['Seed', String(image.seed)],
    ['Size', `${image.width} × ${image.height}`],
    ['Steps', job.steps === null ? '' : number(job.steps)],
    ['Guidance', job.guidance_scale === null ? '' : number(job.guidance_scale)],
    ['Sampler', job.scheduler ? SCHEDULERS[job.scheduler] : ''],
    ['Reference', hasReference ? reference : ''],
    ['Likeness', image.similarity_score === null ? '' : number(image.similarity_score)],
    ['Asked for', new Date(job.created_at).toLocaleString()],
  ]
}
