// Jobs of all kinds, good and bad, for the tests that hold the client against the database.

import type { SDXLParams } from '@ourvidz/sdxl-client'
import fc from 'fast-check'
import { PAINTABLE } from './harness.ts'

/** Values at the edges and beyond them, of the right type; `null` and absence, too. */
const number = (...edges: number[]) => fc.constantFrom(...edges, ...edges.map((edge) => edge + 1), ...edges.map((edge) => edge - 1))
const text = (...lengths: number[]) =>
  fc.oneof(
    fc.constantFrom(
      '',
      ' ',
      '\t\r\n',
      '\u00a0',
      '\u200b',
      '\u3000',
      '\ufeff\u2800',
      '\x85\u{e0041}',
      'a cat',
      '{"a": 1}',
      '5',
      'true',
      'null',
      'it\'s \\ "quoted"',
    ),
    fc.string({ unit: 'grapheme', maxLength: 20 }),
    fc.constantFrom('x', '🎨', 'é').chain((sign) => number(...lengths).map((length) => sign.repeat(Math.max(0, length)))),
  )
const json: fc.Arbitrary<unknown> = fc.oneof(
  fc.jsonValue(),
  number(16384 - 11, 5000).map((length) => ({ note: 'x'.repeat(length) })), // {"note": ""} has 12 bytes
  fc.array(fc.jsonValue({ noUnicodeString: false }), { maxLength: 30 }).map((list) => ({ list })),
  fc.record(
    {
      fit: fc.constantFrom<unknown>('cover', 'contain', 'stretch', null, 1),
      private_metadata: fc.constantFrom<unknown>(true, false, 'no', null),
    },
    { requiredKeys: [] },
  ),
)
const url = fc.oneof(
  fc.constantFrom(
    'https://',
    'https://example.com/x.png',
    'http://example.com/x.png',
    'HTTPS://example.com',
    'https://a b',
    'https://a\nb',
    'https://a\u00a0b',
    'https://a\u0085b',
    'https://a\u3000b',
    'https://a\u200bb',
    'https://é',
    'https:///a',
    'https://u:p@a/',
    'https://a/@',
    'https://a:443/x',
    'https://a:80/x',
    'https://a:4430',
    'https://[::1]:443',
    'https://[::1]:80',
    'https://a\\@b',
    'https://a#@b',
    'https://a/\x7f',
    ' https://a',
  ),
  number(2048).map((length) => `https://${'x'.repeat(length - 8)}`),
)
const path = (userId: string) =>
  fc
    .tuple(
      fc.constantFrom('', 'reference_images/', 'sdxl_image_fast/', 'sdxl_image_high/', 'secrets/', '/'),
      fc.constantFrom(userId, userId.toUpperCase(), '11111111-1111-4111-8111-111111111111', ''),
      fc.oneof(
        fc.constantFrom('/cat.png', '/', '', '//cat.png', '/a/../b', '/..', '/./x', '/...', '/a..b/c', '/ ', '/\n', '/a/', '/a//b'),
        fc.constantFrom("/!-_.*'() &$=@;:+,?", '/a%00.png', '/a%ff.png', '/%2e%2e/x.png', '/a\x7f', '/é', '/a\\b', '/a#b', '/a\nb'),
        number(1024 - 36).map((length) => `/${'x'.repeat(length - 1)}`),
      ),
    )
    .map((parts) => parts.join(''))

export const params = (userId: string) => {
  const fields = {
    job_type: fc.constantFrom<unknown>('sdxl_image_fast', 'sdxl_image_high', 'video_fast', ''),
    target_worker: fc.oneof(
      fc.constantFrom('nobody', 'No Such', '', 'a\n', 'é'),
      number(64).map((length) => 'x'.repeat(length)),
    ),
    metadata: json,
    idempotency_key: text(0, 1, 200),
    prompt: text(4000),
    negative_prompt: text(4000),
    batch_size: number(1, 3, 6),
    width: number(64, 128, 1024, 1344, 2048, 2147483646),
    height: number(64, 128, 1024, 1344, 2048, 2147483646),
    steps: number(1, 50, 100),
    guidance_scale: fc.oneof(number(0, 30), fc.constantFrom(-0, 7.5, 30.000001, 1e-7)),
    seed: number(0, 2147483647, 4294967296),
    scheduler: fc.constantFrom(
      'euler',
      'lcm',
      'ddim',
      'unipc',
      'dpmpp_2m',
      'dpmpp_2m_karras',
      'dpmpp_sde_karras',
      'euler_a',
      'plms',
    ),
    output_format: fc.constantFrom('png', 'webp', 'jpeg', 'gif', 'PNG'),
    reference_image_url: url,
    reference_image_path: path(userId),
    reference_strength: fc.oneof(number(0, 1), fc.constantFrom(0.5, 1.0000001)),
    exact_copy_mode: fc.boolean(),
    enhance_prompt: fc.boolean(),
    fallback_to_text: fc.boolean(),
  }
  // most fields good, so that the faults of some come alone
  const good = { ...PAINTABLE, width: undefined, height: undefined }
  return fc
    .record(Object.fromEntries(Object.entries(fields).map(([name, values]) => [name, fc.option(values, { freq: 12 })])), {
      requiredKeys: [],
    })
    .chain((record) =>
      fc
        .subarray(Object.keys(record), { maxLength: 5 })
        .map((names) => Object.fromEntries(names.map((name) => [name, record[name]]))),
    )
    .map((some) => ({ ...good, target_worker: 'nobody', ...some }) as unknown as SDXLParams)
}
