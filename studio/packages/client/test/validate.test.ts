// The client's checks against the database's: jobs of all kinds are generated, checked here, and inserted there.

import assert from 'node:assert/strict'
import { before, test } from 'node:test'
import { SDXLError, type SDXLParams, submitSDXLJob, validateSDXLParams } from '@ourvidz/sdxl-client'
import fc from 'fast-check'
import postgres from 'postgres'
import { asSDXLError } from '../src/errors.ts'
import { BLANK, jsonbBytes } from '../src/validate.ts'
import { params } from './generators.ts'
import { finallyDo, PAINTABLE, type Server, signUp, startSupabase, type User } from './harness.ts'

let server: Server
let user: User
let sql: postgres.Sql
let constraints: { name: string; rule: string }[]
before(async () => {
  server = await startSupabase()
  sql = postgres(server.db_url, { max: 1 })
  finallyDo(() => sql.end())
  user = await signUp(server)
  constraints = await sql`
    select c.conname as name, pg_get_expr(c.conbin, c.conrelid) as rule
      from pg_constraint c where c.conrelid = 'public.jobs'::regclass and c.contype = 'c'`
})

const codesOf = (params: SDXLParams): string[] =>
  Object.values(validateSDXLParams(params) ?? {}).flatMap((faults) => (faults ?? []).map(({ code }) => code))

/** The names of all constraints that the row would break; undefined where it is no row at all (such as a number beyond its type). */
async function broken(row: SDXLParams): Promise<string[] | undefined> {
  const rules = constraints.map(({ name, rule }) => `case when not (${rule}) then '${name}' end`).join(', ')
  const defaults = {
    status: 'queued',
    prompt: '',
    negative_prompt: '',
    metadata: {},
    batch_size: 1,
    target_worker: 'sdxl',
    output_format: 'png',
    exact_copy_mode: false,
  }
  try {
    const [answer] = await sql.unsafe(
      `select array_remove(array[${rules}], null) as names from jsonb_populate_record(null::public.jobs, $1)`,
      [{ ...defaults, ...row } as never],
    )
    return answer?.names
  } catch (error) {
    assert.match(String((error as { code?: string }).code), /^22/)
    return undefined
  }
}

test('the client finds the faults that the database finds, all of them and no others', async () => {
  const seen = new Set<string>()
  let refusals = 0
  let compared = 0
  await fc.assert(
    fc.asyncProperty(params(user.id), async (generated) => {
      const row = { ...generated, user_id: user.id }
      const ours = codesOf(row)
      const theirs = await broken(row)
      for (const name of theirs ?? []) seen.add(name)
      const constraintsOfOurs = ours.filter((code) => code !== 'required' && code !== 'invalid_value')
      const stricter = /\de[+-]?\d/.test(JSON.stringify(row.metadata ?? null)) // taken for longer than it may be
      if (theirs && !stricter && !ours.includes('invalid_value')) {
        compared += 1
        assert.deepEqual(constraintsOfOurs.sort(), theirs.sort())
      }
      for (const name of theirs ?? []) assert.ok(ours.includes(name) || ours.includes('invalid_value'), name)

      const { error, status } = await user.supabase.from('jobs').insert(row as never)
      assert.equal(status === 201, !error)
      if (!error && stricter) return
      if (!error) return assert.deepEqual(ours, [])
      refusals += 1
      const refusal = asSDXLError(error, status)
      if (refusal.code === 'jobs_idempotency_key_is_unique_per_user') return
      if (refusal.code === 'too_many_active_jobs') {
        user = await signUp(server)
        return
      }
      assert.ok(ours.length > 0, `only the database refuses: ${error.message}`)
      if (/^23/.test(error.code)) assert.ok(ours.includes(refusal.code as never), `${refusal.code}, and not ${ours}`)
    }),
    { numRuns: Number(process.env.RUNS ?? 1000) },
  )
  assert.ok(refusals > 100 && compared > 500, `${refusals} refused, ${compared} compared`)
  const reachable = constraints.filter(({ name }) => codesOf({ ...everythingWrong, user_id: user.id } as never).includes(name))
  assert.deepEqual(
    reachable.filter(({ name }) => !seen.has(name)).map(({ name }) => name),
    [],
  ) // each was met at least once
})

test('the same characters are blank here and in the database', async () => {
  assert.deepEqual(codesOf({ ...PAINTABLE, prompt: '\u00a0\u3000\u200b' }), ['prompt_is_required_unless_exact_copy_mode'])
  const rule = constraints.find(({ name }) => name === 'prompt_is_required_unless_exact_copy_mode')?.rule
  const rows = await sql.unsafe(`
    select code from (select code, chr(code) as prompt, false as exact_copy_mode from generate_series(1, 1114111) code
                       where code not between 55296 and 57343) each where not (${rule})`)
  const theirs = rows.map(({ code }) => code)
  const ours: number[] = []
  for (let code = 1; code <= 0x10ffff; code += code === 0xd7ff ? 0x801 : 1) {
    if (BLANK.test(String.fromCodePoint(code))) ours.push(code)
  }
  assert.deepEqual(ours, theirs)
})

test('the client knows how long Postgres writes a JSON value', async () => {
  await fc.assert(
    fc.asyncProperty(fc.jsonValue({ maxDepth: 4 }), async (value) => {
      const [row] = await sql`select octet_length(${JSON.stringify(value)}::text::jsonb::text) as bytes`
      const sent = JSON.parse(JSON.stringify(value)) // -0 goes as 0
      if (/\de[+-]?\d/.test(JSON.stringify(value))) assert.ok(jsonbBytes(sent) >= row?.bytes)
      else assert.equal(jsonbBytes(sent), row?.bytes)
    }),
    { numRuns: 500 },
  )
})

const everythingWrong = {
  job_type: 'x',
  target_worker: 'X',
  metadata: { fit: 1, private_metadata: 1, note: 'x'.repeat(20000) },
  idempotency_key: '',
  prompt: ' '.repeat(4001),
  negative_prompt: 'x'.repeat(4001),
  batch_size: 2,
  width: 4000,
  height: 4000,
  steps: 0,
  guidance_scale: 31,
  seed: -1,
  scheduler: 'x',
  output_format: 'x',
  reference_image_url: 'http://x',
  reference_image_path: 'x',
  reference_strength: 2,
  exact_copy_mode: false,
}

test('all faults come at once, by field', async () => {
  const faults = validateSDXLParams(everythingWrong as never)
  assert.deepEqual(
    Object.keys(faults ?? {}).sort(),
    Object.keys(everythingWrong)
      .filter((field) => field !== 'exact_copy_mode')
      .sort(),
  )
  assert.deepEqual(
    faults?.prompt?.map(({ code }) => code),
    ['prompt_is_required_unless_exact_copy_mode', 'prompt_has_at_most_4000_characters'],
  )
  await assert.rejects(submitSDXLJob(user.supabase, everythingWrong as never), (error) => {
    assert.ok(error instanceof SDXLError)
    assert.equal(error.faults.length, Object.values(faults ?? {}).flat().length)
    assert.deepEqual(
      [error.code, error.field, error.message],
      [error.faults[0]?.code, error.faults[0]?.field, error.faults[0]?.message],
    )
    return true
  })
})

test('what is no such value at all is refused before it is sent', () => {
  const cases: [object, string][] = [
    [{ prompt: 5 }, 'invalid_value'],
    [{ prompt: 'a\0b' }, 'invalid_value'],
    [{ prompt: 'half \ud83d' }, 'invalid_value'],
    [{ metadata: { note: 'a\0b' } }, 'invalid_value'],
    [{ metadata: { note: 'half \udc00' } }, 'invalid_value'],
    [{ metadata: { big: 1n } }, 'invalid_value'],
    [{ metadata: () => 1 }, 'invalid_value'],
    [{ exact_copy_mode: 'yes' }, 'invalid_value'],
    [{ id: '7' }, 'invalid_value'],
    [{ steps: 1.5 }, 'steps_is_from_1_to_100'],
    [{ seed: '7' }, 'seed_is_from_0_to_2147483647'],
    [{ guidance_scale: Number.NaN }, 'guidance_scale_is_from_0_to_30'],
    [{ batch_size: null }, 'required'],
    [{ job_type: undefined }, 'required'],
    [{ priority: 0 }, 'unknown_field'],
    [{ constructor: 0 }, 'unknown_field'],
    [JSON.parse('{"__proto__": 1}'), 'unknown_field'],
  ]
  for (const [wrong, code] of cases) {
    const row = Object.defineProperties({ ...PAINTABLE }, Object.getOwnPropertyDescriptors(wrong))
    assert.deepEqual(codesOf(row as never), [code], JSON.stringify(Object.keys(wrong)))
  }
  assert.equal(validateSDXLParams({ ...PAINTABLE, metadata: { note: 'a\\u0000 \\\\u0000 🎨' } }), null)
})

test('an exact copy needs a reference and no prompt', async () => {
  const copy: SDXLParams = { job_type: 'sdxl_image_high', exact_copy_mode: true, target_worker: 'nobody' }
  assert.deepEqual(codesOf(copy), ['exact_copy_mode_needs_a_reference'])
  assert.equal((await submitSDXLJob(user.supabase, { ...copy, reference_image_path: `${user.id}/cat.png` })).prompt, '')
})
