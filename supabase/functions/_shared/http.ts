// What every function does with HTTP.

const CORS = {
  'Access-Control-Allow-Origin': '*',
  'Access-Control-Allow-Headers': 'authorization, x-client-info, apikey, content-type',
  'Access-Control-Allow-Methods': 'POST, OPTIONS',
}

const BODY_BYTES = 262_144 // two prompts of 4,000 characters and 16 KB of metadata, all of it written as \u escapes, fit in

/** An answer other than the wanted one. */
export class Refusal extends Error {
  override readonly name = 'Refusal'
  constructor(readonly status: number, readonly code: string, message: string) {
    super(message)
  }
}

export const json = (status: number, body: unknown): Response => Response.json(body, { status, headers: CORS })

export const preflight = (): Response =>
  new Response(null, { status: 204, headers: { ...CORS, 'Access-Control-Max-Age': '86400' } })

/** The body of a POST. Reads no more of it than it may have. */
export async function readObject(request: Request): Promise<Record<string, unknown>> {
  if (request.method !== 'POST') throw new Refusal(405, 'method_not_allowed', 'Send a POST.')
  const parts: Uint8Array<ArrayBuffer>[] = []
  let bytes = 0
  for await (const part of request.body ?? []) {
    bytes += part.length
    if (bytes > BODY_BYTES) throw new Refusal(413, 'request_too_large', 'The request is too large.')
    parts.push(part)
  }
  try {
    const body = JSON.parse(await new Blob(parts).text())
    if (typeof body === 'object' && body !== null && !Array.isArray(body)) return body
  } catch {
    // said below
  }
  throw new Refusal(400, 'invalid_request', 'The body must be a JSON object.')
}

/** One event a line. Never a prompt, a key or a body. */
export const log = (event: string, keys: Record<string, unknown> = {}): void => console.info(JSON.stringify({ event, ...keys }))
