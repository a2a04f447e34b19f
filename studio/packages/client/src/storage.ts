// References up, pictures down.

import { SDXLError } from './errors.ts'
import { randomName } from './jobs.ts'
import type { SDXLErrorCode } from './messages.ts'
import { request, tokenOf, userIdOf } from './session.ts'
import type { SDXLImage, Supabase } from './types.ts'

const BUCKET = 'reference_images'
const MAX_BYTES = 20 * 1024 * 1024 // file_size_limit of the bucket; a test compares

/** By their first bytes: names and types of files are often wrong, and some systems give none. */
const KINDS = { png: /^\x89PNG/, jpeg: /^\xff\xd8\xff/, webp: /^RIFF....WEBP/s }

/** Stores an image in the user's own folder; what it returns goes into `reference_image_path`. PNG, WebP or JPEG, 20 MB at most. */
export async function uploadReference(supabase: Supabase, file: Blob): Promise<string> {
  const refuse = (code: SDXLErrorCode): never => {
    throw new SDXLError(code, { field: 'reference_image_path' })
  }
  if (!file.size) refuse('reference_is_empty')
  if (file.size > MAX_BYTES) refuse('reference_has_at_most_20_mb')
  const head = String.fromCharCode(...new Uint8Array(await file.slice(0, 12).arrayBuffer()))
  const kind = Object.entries(KINDS).find(([, begin]) => begin.test(head))?.[0]
  if (!kind) refuse('reference_type_is_png_webp_or_jpeg')
  const path = `${await userIdOf(supabase)}/${randomName()}.${kind}`
  const typed = file.slice(0, file.size, `image/${kind}`)
  await request(supabase, () => supabase.storage.from(BUCKET).upload(path, typed))
  return path
}

export interface SDXLImageUrl extends SDXLImage {
  /** Opens the picture for whoever holds it, until it expires; null where the picture is gone or not yours. */
  url: string | null
  /** The same, of a WebP of at most 256 pixels a side. */
  thumbnailUrl: string | null
  expiresAt: Date
}

/** Signed URLs for the pictures of a job, or of several at once: one request for each bucket. They expire after an hour unless said. */
export async function imageUrls(
  supabase: Supabase,
  jobs: { images: SDXLImage[] } | { images: SDXLImage[] }[],
  { expiresInSeconds = 3600 }: { expiresInSeconds?: number } = {},
): Promise<SDXLImageUrl[]> {
  const images = [jobs].flat().flatMap((job) => job.images)
  const expiresAt = new Date(Date.now() + expiresInSeconds * 1000)
  const urls: Record<string, string | null> = {}
  for (const bucket of new Set(images.map((image) => image.bucket))) {
    const paths = images.filter((image) => image.bucket === bucket).flatMap((image) => [image.path, image.thumbnail_path])
    const signed = await request(supabase, () => supabase.storage.from(bucket).createSignedUrls(paths, expiresInSeconds))
    for (const { path, error, signedUrl } of signed) urls[bucket + path] = error ? null : signedUrl
  }
  // to who is not signed in, Storage says of each picture that it is not there
  const isNothing = images.length > 0 && Object.values(urls).every((url) => url === null)
  if (isNothing && !(await tokenOf(supabase))) throw new SDXLError('not_signed_in')
  const urlOf = (bucket: string, path: string): string | null => urls[bucket + path] ?? null
  return images.map((image) => ({
    ...image,
    url: urlOf(image.bucket, image.path),
    thumbnailUrl: urlOf(image.bucket, image.thumbnail_path),
    expiresAt,
  }))
}
