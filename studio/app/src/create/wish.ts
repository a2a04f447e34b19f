// What the form holds, and the job that it asks for.

import type { SDXLJob, SDXLJobType, SDXLParams, SDXLScheduler } from '@ourvidz/sdxl-client'

export interface Reference {
  /** As `reference_image_path` names it. */
  path: string
  /** Shows it; null when it cannot be shown. */
  url: string | null
}

export interface Wish {
  prompt: string
  negative_prompt: string
  job_type: SDXLJobType
  batch_size: 1 | 3 | 6
  /** `1024x768`, or nothing: the model's own, or the reference's shape. */
  size: string
  /** Nothing means a new one each time; so it does for all numbers below, with the job type's value. */
  seed: number | ''
  steps: number | ''
  guidance_scale: number | ''
  scheduler: SDXLScheduler | ''
  output_format: 'png' | 'webp' | 'jpeg'
  reference: Reference | null
  reference_strength: number
  exact_copy_mode: boolean
  fallback_to_text: boolean
  fit: 'cover' | 'contain'
  private_metadata: boolean
  enhance_prompt: boolean
}

export const EMPTY: Wish = {
  prompt: '',
  negative_prompt: '',
  job_type: 'sdxl_image_fast',
  batch_size: 1,
  size: '',
  seed: '',
  steps: '',
  guidance_scale: '',
  scheduler: '',
  output_format: 'png',
  reference: null,
  reference_strength: 0.5,
  exact_copy_mode: false,
  fallback_to_text: false,
  fit: 'cover',
  private_metadata: false,
  enhance_prompt: false,
}

export function paramsOf(wish: Wish): SDXLParams {
  const [width, height] = wish.size ? wish.size.split('x').map(Number) : []
  const metadata = {
    ...(wish.private_metadata && { private_metadata: true }),
    ...(wish.reference && wish.fit !== 'cover' && { fit: wish.fit }),
  }
  return {
    job_type: wish.job_type,
    prompt: wish.prompt,
    negative_prompt: wish.negative_prompt,
    batch_size: wish.batch_size,
    output_format: wish.output_format,
    enhance_prompt: wish.enhance_prompt,
    metadata,
    ...(width && height && { width, height }),
    ...(wish.seed !== '' && { seed: wish.seed }),
    ...(wish.steps !== '' && { steps: wish.steps }),
    ...(wish.guidance_scale !== '' && { guidance_scale: wish.guidance_scale }),
    ...(wish.scheduler && { scheduler: wish.scheduler }),
    ...(wish.reference && {
      reference_image_path: wish.reference.path,
      reference_strength: wish.reference_strength,
      exact_copy_mode: wish.exact_copy_mode,
      fallback_to_text: wish.fallback_to_text,
    }),
  }
}

/** The same once more: with the seed that the first picture had, so that it comes out the same. */
export const wishOf = (job: SDXLJob, reference: Reference | null): Wish => ({
  prompt: job.prompt,
  negative_prompt: job.negative_prompt,
  job_type: job.job_type,
  batch_size: job.batch_size,
  size: job.width && job.height ? `${job.width}x${job.height}` : '',
  seed: job.images[0]?.seed ?? job.seed ?? '',
  steps: job.steps ?? '',
  guidance_scale: job.guidance_scale ?? '',
  scheduler: job.scheduler ?? '',
  output_format: job.output_format,
  reference,
  reference_strength: job.reference_strength ?? EMPTY.reference_strength,
  exact_copy_mode: job.exact_copy_mode && reference !== null,
  fallback_to_text: job.fallback_to_text,
  fit: job.metadata.fit ?? 'cover',
  private_metadata: job.metadata.private_metadata ?? false,
  enhance_prompt: job.enhance_prompt,
})
