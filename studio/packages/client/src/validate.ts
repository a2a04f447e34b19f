// The database's constraints once more, so that a form can say what is wrong before anything is sent. The database stays the authority:
// a test inserts thousands of generated jobs and holds what it says against what is said here.

import type { SDXLFault } from './errors.ts'
import { fieldOf, messageOf } from './messages.ts'
import type { SDXLField, SDXLParams } from './types.ts'

/** The faults of each field that has any. */
export type SDXLFaults = { [field in SDXLField]?: SDXLFault[] } & { [unknown: string]: SDXLFault[] | undefined }

// biome-ignore lint/suspicious/noExplicitAny: anything may have been typed into a form
type Value = any
/** Null is what is absent, or of another type than its field. */
type Row = Record<SDXLField, Value>

const UUID = '[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}'
const NEVER_STORED = /[\0\p{Cs}]/u // Postgres has neither NUL nor half a surrogate pair in its text

// These repeat the database's constraints. test/validate.test.ts holds them together: "the client finds the faults that the database
// finds, …", and for the set of blanks "the same characters are blank here and in the database".
/** Text of which nothing can be read: Unicode's white space, control and ignorable characters, and the blank Braille pattern. */
export const BLANK = /^[\p{White_Space}\p{Cc}\p{Default_Ignorable_Code_Point}\u2800]*$/u
const OBJECT_NAME = /^([\w!.*'() &$=@;:+,?-]+(\/(?!$)|$))+$/ // Storage's rule
const HTTPS = /^https:\/\/(?![/?#\\])[^\p{White_Space}\p{Cc}]+$/u
const USER_NAME_OR_PORT = /^https:\/\/([^/?#\\]*@|(\[[^\]]*\]|[^:/?#\\]*):(?!443([/?#\\]|$)))/

type Check = (value: unknown) => boolean

const text: Check = (value) => typeof value === 'string' && !NEVER_STORED.test(value)
const uuid: Check = (value) => typeof value === 'string' && new RegExp(`^${UUID}$`, 'i').test(value)
const bool: Check = (value) => typeof value === 'boolean'
const textOrNull: Check = (value) => value === null || text(value)
// of these a constraint says more than `invalid_value`
const given: Check = (value) => value != null
const anything: Check = () => true

/** What each field must be at least: not null, mostly, as in the table. */
const FIELDS: { [field in SDXLField]: Check } = {
  id: uuid,
  user_id: uuid,
  job_type: given,
  target_worker: text,
  metadata: given,
  idempotency_key: textOrNull,
  prompt: text,
  negative_prompt: text,
  batch_size: given,
  width: anything,
  height: anything,
  steps: anything,
  guidance_scale: anything,
  seed: anything,
  scheduler: anything,
  output_format: given,
  reference_image_url: textOrNull,
  reference_image_path: textOrNull,
  reference_strength: anything,
  exact_copy_mode: bool,
  enhance_prompt: bool,
  fallback_to_text: bool,
}

/** The columns that a client may set. */
export const PARAMS = Object.keys(FIELDS) as SDXLField[]

const length = (value: string): number => [...value].length // as Postgres counts, and not in UTF-16
const between = (value: unknown, least: number, most: number): boolean =>
  typeof value === 'number' && value >= least && value <= most
const whole = (value: unknown, least: number, most: number): boolean => Number.isInteger(value) && between(value, least, most)
const side = (value: number): boolean => whole(value, 128, 2048) && value % 64 === 0
const oneOf =
  (...allowed: unknown[]): Check =>
  (value) =>
    allowed.includes(value)
const hasReference = (row: Row): boolean => row.reference_image_url !== null || row.reference_image_path !== null

function isOwnPath(path: string, userId: string | null): boolean {
  const folder = userId?.toLowerCase() ?? UUID
  return (
    length(path) <= 1024 &&
    new RegExp(`^((reference_images|sdxl_image_fast|sdxl_image_high)/)?${folder}/[^/]`).test(path) &&
    !/(^|\/)\.\.?(\/|$)/.test(path)
  )
}

/** The number of bytes that Postgres writes for it as jsonb: with spaces, and numbers without an exponent (at most so many digits). */
export function jsonbBytes(value: unknown): number {
  if (typeof value !== 'object' || value === null) {
    const written = JSON.stringify(value)
    return typeof value === 'number' && /e/.test(written) ? 330 : new TextEncoder().encode(written).length
  }
  const parts = Array.isArray(value)
    ? value.map(jsonbBytes)
    : Object.entries(value).map(([key, inner]) => jsonbBytes(key) + 2 + jsonbBytes(inner))
  return parts.reduce((sum, part) => sum + part, 2 * Math.max(1, parts.length))
}

/** As it will be sent, or undefined where it cannot be. */
function asJson(value: unknown): object | undefined {
  try {
    const text = JSON.stringify(value)
    return /\\u(0000|d[89a-f])/.test(text.replaceAll('\\\\', '')) ? undefined : JSON.parse(text)
  } catch {
    return undefined
  }
}

/** On the value of the constraint's own field where there is one, and on the row where the constraint speaks of several. */
const CHECKS = {
  job_type_is_sdxl_image_fast_or_sdxl_image_high: oneOf('sdxl_image_fast', 'sdxl_image_high'),
  target_worker_is_a_short_lowercase_name: (name) => /^[a-z0-9_-]{1,64}$/.test(name),
  metadata_is_an_object_of_at_most_16_kb: (value) =>
    typeof value === 'object' && !Array.isArray(value) && jsonbBytes(value) <= 16384,
  metadata_fit_is_cover_or_contain: ({ fit }) => oneOf(undefined, 'cover', 'contain')(fit),
  metadata_private_metadata_is_true_or_false: ({ private_metadata: it }) => it === undefined || bool(it),
  idempotency_key_has_1_to_200_characters: (key) => between(length(key), 1, 200),
  prompt_is_required_unless_exact_copy_mode: (prompt, row) =>
    row.exact_copy_mode !== false || prompt === null || !BLANK.test(prompt),
  prompt_has_at_most_4000_characters: (prompt) => length(prompt) <= 4000,
  negative_prompt_has_at_most_4000_characters: (prompt) => length(prompt) <= 4000,
  batch_size_is_1_3_or_6: oneOf(1, 3, 6),
  width_and_height_come_together: (width, { height }) => (width === null) === (height === null),
  width_is_a_multiple_of_64_from_128_to_2048: (width) => side(width),
  height_is_a_multiple_of_64_from_128_to_2048: (height) => side(height),
  width_times_height_is_at_most_2097152: (width, { height }) => !(width * height > 2097152),
  steps_is_from_1_to_100: (steps) => whole(steps, 1, 100),
  steps_is_at_most_50_with_lcm: (steps, { scheduler }) => scheduler !== 'lcm' || !(steps > 50),
  guidance_scale_is_from_0_to_30: (scale) => between(scale, 0, 30),
  seed_is_from_0_to_2147483647: (seed) => whole(seed, 0, 2147483647),
  scheduler_is_known: oneOf('euler', 'euler_a', 'dpmpp_2m', 'dpmpp_2m_karras', 'dpmpp_sde_karras', 'ddim', 'unipc', 'lcm'),
  output_format_is_png_webp_or_jpeg: oneOf('png', 'webp', 'jpeg'),
  reference_is_a_url_or_a_path_not_both: (url, row) => url === null || row.reference_image_path === null,
  reference_image_url_is_https: (url) => HTTPS.test(url) && length(url) <= 2048,
  reference_image_url_has_no_user_name_and_no_port_but_443: (url) => !USER_NAME_OR_PORT.test(url),
  reference_image_path_is_an_object_name: (path) => OBJECT_NAME.test(path),
  reference_image_path_is_in_your_own_folder: (path, row) => path === null || isOwnPath(path, row.user_id),
  reference_strength_is_from_0_to_1: (strength) => between(strength, 0, 1),
  reference_strength_is_required_with_a_reference: (strength, row) =>
    row.exact_copy_mode !== false || strength !== null || !hasReference(row),
  exact_copy_mode_needs_a_reference: (exact, row) => exact !== true || hasReference(row),
} satisfies Record<string, (value: Value, row: Row) => boolean>

export type ConstraintCode = keyof typeof CHECKS

/**
 * All faults of the parameters at once, by field, or null when there are none. Needs no network.
 * With `user_id` among the parameters, as `submitSDXLJob` puts it there, a path must lie in that user's folder; without, in anybody's.
 */
export function validateSDXLParams(params: SDXLParams): SDXLFaults | null {
  const faults: SDXLFaults = Object.create(null) // any name may come as a field's
  const add = (field: string, code: SDXLFault['code']): void => {
    faults[field] = [...(faults[field] ?? []), { field, code, message: messageOf(code) }]
  }
  const set: Record<string, unknown> = Object.fromEntries(Object.entries(params).filter(([, value]) => value !== undefined))
  const row = Object.fromEntries(PARAMS.map((field) => [field, null])) as Row
  Object.assign(row, { prompt: '', exact_copy_mode: false }, set)
  if (row.metadata !== null) row.metadata = asJson(row.metadata)
  for (const field of Object.keys({ job_type: null, ...set }) as SDXLField[]) {
    const fits = Object.hasOwn(FIELDS, field) && FIELDS[field]
    if (!fits) add(field, 'unknown_field')
    else if (!fits(row[field])) {
      add(field, row[field] === null ? 'required' : 'invalid_value')
      row[field] = null
    }
  }
  for (const [code, holds] of Object.entries(CHECKS) as [ConstraintCode, (value: unknown, row: Row) => boolean][]) {
    const field = fieldOf(code) as SDXLField
    // as a CHECK does, each holds of what is absent
    if ((row[field] !== null || holds.length > 1) && !holds(row[field], row)) add(field, code)
  }
  return Object.keys(faults).length ? faults : null
}
