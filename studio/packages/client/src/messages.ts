// Every code that a user can meet, in plain English: the database's constraints and refusals, the worker's errors, and our own.
// A test compares them with the migrations and with ourvidz_sdxl/errors.py, so that a new code cannot be forgotten.

import type { ConstraintCode } from './validate.ts'

const MESSAGES = {
  // the constraints on what is asked for; most names say it themselves (see `messageOf`), and here stand those that would not say it well
  prompt_is_required_unless_exact_copy_mode: 'Say what to paint.',
  width_and_height_come_together: 'Give both width and height, or neither.',
  width_times_height_is_at_most_2097152: 'The image may have 2 megapixels at most.',
  reference_is_a_url_or_a_path_not_both: 'Give the reference as a URL or as a path, not both.',
  reference_image_path_is_an_object_name: 'The reference path has characters that cannot be used here.',
  reference_strength_is_required_with_a_reference: 'Say how strongly the reference counts.',

  // what else can be wrong with a field
  required: 'This cannot be left out.',
  invalid_value: 'This value cannot be used here.',
  unknown_field: 'A job has no such field.',

  // how the database, Storage or the way to them can refuse
  too_many_active_jobs: 'You have 200 jobs waiting or running; let some finish first.',
  job_is_finished: 'This job is finished.',
  job_is_active: 'This job is not finished yet.',
  job_not_found: 'There is no such job of yours.',
  jobs_idempotency_key_is_unique_per_user: 'This job was already submitted.',
  jobs_pkey: 'This id is taken.',
  jobs_user_id_fkey: 'Your account no longer exists.',
  not_signed_in: 'Sign in first.',
  permission_denied: 'You may not do this.',
  reference_is_empty: 'The reference is empty.',
  too_many_requests: 'Too many requests; try again in a moment.',
  network_error: 'No connection; try again in a moment.',
  service_unavailable: 'The service does not answer; try again in a moment.',
  refused: 'The request was refused.',

  // why a job failed: `error_code` of its row, in the worker's words
  unknown_error: 'Unknown error occurred',
  settings_invalid: 'The worker is not set up correctly.',
  invalid_job: 'This job cannot be painted as it is.',
  invalid_reference: 'The reference image could not be used.',
  content_refused: 'This request is not allowed here.',
  model_missing: 'The worker has no model.',
  model_not_downloaded: 'The worker could not fetch its model.',
  model_invalid: "The worker's model cannot be used.",
  blank_image: 'The picture came out blank; try another seed.',
  out_of_memory: 'The GPU has too little memory for this job; a smaller size may work.',
  gpu_unusable: 'The GPU failed and is being restarted.',
  worker_died: 'The worker died and is being restarted.',
  upload_failed: 'The images could not be stored.',
  upload_refused: 'The images could not be stored: Storage refused them.',
  supabase_unavailable: 'The database did not answer.',
  supabase_refused: 'The database did not accept the result.',
  cancelled: 'Cancelled.',
  lease_lost: 'Another worker has this job now.',
  released: 'The worker is restarting.',
  lease_expired: 'The worker stopped answering.',
  poison_job: 'This job stopped two workers in a row.',
} as const

export type SDXLErrorCode =
  | keyof typeof MESSAGES
  | ConstraintCode
  | 'reference_type_is_png_webp_or_jpeg'
  | 'reference_has_at_most_20_mb'
  | 'status_must_be_queued'
  | 'user_id_must_be_your_own'

/** What to say to people. `seed_is_from_0_to_9` says it itself, "The seed must be from 0 to 9.", and so does a newer constraint. */
export const messageOf = (code: string): string => (MESSAGES as Record<string, string | undefined>)[code] ?? `The ${spoken(code)}.`

const spoken = (code: string): string =>
  code
    .replaceAll('_', ' ')
    .replace(' is ', ' must be ')
    .replace(' has ', ' must have ')
    .replace(/ be (\w+) (\w+) or /, ' be $1, $2 or ')

/** A constraint's name begins with the field that it speaks of. */
export const fieldOf = (code: string): string | undefined => {
  const field = /^(.+?)_(is|has|and|times|needs|fit|private)_/.exec(code)?.[1]
  return field === 'reference' ? 'reference_image_url' : field
}
