// What goes in and what comes out, by the names of the tables. The columns are the generated ones; where a constraint allows less than
// the column's type, so do these types.

import type { SupabaseClient } from '@supabase/supabase-js'
import type { Database, Json } from './database.types.ts'

type Tables = Database['public']['Tables']

/** Any supabase-js client: yours may know more tables than ours. */
// biome-ignore lint/suspicious/noExplicitAny: a client of another Database type is not assignable to one of ours
export type Supabase = SupabaseClient<any>

export type SDXLJobType = 'sdxl_image_fast' | 'sdxl_image_high'
export type SDXLScheduler = 'euler' | 'euler_a' | 'dpmpp_2m' | 'dpmpp_2m_karras' | 'dpmpp_sde_karras' | 'ddim' | 'unipc' | 'lcm'
export type SDXLStatus = 'queued' | 'processing' | 'completed' | 'failed' | 'cancelled'

/** Free for the frontend; the worker reads these two. */
export interface SDXLMetadata {
  /** How a reference of another aspect meets the size: cut what overhangs, or show all of it on white. */
  fit?: 'cover' | 'contain'
  /** True keeps all words out of the files. */
  private_metadata?: boolean
  [key: string]: Json | undefined
}

/** The columns that a client may set. A test holds them against the database's grants. */
export type SDXLField =
  | 'id'
  | 'user_id'
  | 'job_type'
  | 'target_worker'
  | 'metadata'
  | 'idempotency_key'
  | 'prompt'
  | 'negative_prompt'
  | 'batch_size'
  | 'width'
  | 'height'
  | 'steps'
  | 'guidance_scale'
  | 'seed'
  | 'scheduler'
  | 'output_format'
  | 'reference_image_url'
  | 'reference_image_path'
  | 'reference_strength'
  | 'exact_copy_mode'
  | 'enhance_prompt'
  | 'fallback_to_text'

interface Narrowed {
  job_type: SDXLJobType
  metadata: SDXLMetadata
  batch_size: 1 | 3 | 6
  scheduler: SDXLScheduler | null
  output_format: 'png' | 'webp' | 'jpeg'
}

/** What can be asked for. Only `job_type` is always required; whatever is left out has the table's default. */
export type SDXLParams = Omit<Pick<Tables['jobs']['Insert'], SDXLField>, keyof Narrowed> &
  Pick<Narrowed, 'job_type'> &
  Partial<Omit<Narrowed, 'job_type'>>

/** A picture of a completed job: where it lies, never a URL. */
export type SDXLImage = Tables['job_images']['Row']

/** A job as its row is, with its pictures in their order; there are none before it is completed. */
export type SDXLJob = Omit<Tables['jobs']['Row'], keyof Narrowed | 'status' | 'warnings'> &
  Narrowed & {
    status: SDXLStatus
    /** What went otherwise than asked for. */
    warnings: { code: string; message: string }[]
    images: SDXLImage[]
  }

/** Whether it has ended, one way or another: only then has it a time. */
export const isFinished = (job: Pick<SDXLJob, 'completed_at'>): boolean => job.completed_at !== null
