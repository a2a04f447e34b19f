// What the client knows of the database and the worker, held against the sources: nothing new can be forgotten.

import assert from 'node:assert/strict'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { before, test } from 'node:test'
import { messageOf, type SDXLParams, validateSDXLParams } from '@ourvidz/sdxl-client'
import postgres from 'postgres'
import { fieldOf } from '../src/messages.ts'
import { PARAMS } from '../src/validate.ts'
import { finallyDo, ROOT, startSupabase } from './harness.ts'

let sql: postgres.Sql
before(async () => {
  sql = postgres((await startSupabase()).db_url, { max: 1 })
  finallyDo(() => sql.end())
})

const migrations = readdirSync(join(ROOT, 'supabase/migrations')).map((name) =>
  readFileSync(join(ROOT, 'supabase/migrations', name), 'utf8'),
)
const all = (text: string, pattern: RegExp): string[] => [...text.matchAll(pattern)].map((match) => match[1] ?? '')
const own = readFileSync(join(import.meta.dirname, '../src/messages.ts'), 'utf8')
/** Codes that have a sentence of their own, other than the constraints' names. */
const known = new Set(all(own, /^ {2}(\w+): ["']/gm))

test('each error of the worker has its message, in the worker’s words', () => {
  const python = readFileSync(join(ROOT, 'ourvidz_sdxl/errors.py'), 'utf8')
  const classes = python.split(/^class /m).filter((text) => /^ {4}code\b/m.test(text))
  assert.ok(classes.length >= 17)
  for (const text of classes) {
    const [code = ''] = all(text, /^ {4}code(?:: ClassVar\[str\])? = "(\w+)"/gm)
    const [message] = all(text, /user_message(?:: str)? = "(.+)"/g)
    assert.ok(known.has(code), code)
    assert.equal(messageOf(code), message)
  }
})

test('each code that the database gives a job has a message', () => {
  const codes = new Set(migrations.flatMap((text) => all(text, /error_code.*'([a-z]+_[a-z_]+)'/g)))
  assert.deepEqual([...codes].sort(), ['lease_expired', 'poison_job'])
  for (const code of codes) assert.ok(known.has(code), code)
})

test('each refusal that the database raises by itself is known', () => {
  const raised = new Set(migrations.flatMap((text) => all(text, /errcode = '(\w+)'/g)))
  raised.delete('PT400') // of finish_job, which only workers may call
  raised.delete('check_violation') // of processing_is_leased: no client may update `status`
  raised.delete('unique_violation') // of a deleted job's id, as jobs_pkey raises it, which `own` has
  const handled = readFileSync(join(import.meta.dirname, '../src/errors.ts'), 'utf8')
  for (const code of raised) assert.match(handled, new RegExp(`${code}: '`))
  const policies = migrations.flatMap((text) => all(text, /create policy "([^"]+)" on public.jobs as restrictive/g))
  assert.ok(policies.length >= 2)
  for (const policy of policies) assert.match(own, new RegExp(`'${policy.replaceAll(' ', '_')}'`))
})

test('each constraint that a client can meet is checked here, and speaks of the field that it is about', async () => {
  const constraints = await sql`
    select c.conname as name, array_agg(a.attname::text) as columns
      from pg_constraint c join pg_attribute a on a.attrelid = c.conrelid and a.attnum = any (c.conkey)
     where c.conrelid = 'public.jobs'::regclass and c.contype = 'c'
       and has_column_privilege('authenticated', 'public.jobs', a.attname, 'insert') and a.attname <> 'status'
     group by 1`
  assert.ok(constraints.length >= 25)
  const checked = readFileSync(join(import.meta.dirname, '../src/validate.ts'), 'utf8')
  const inChecks = all(checked.slice(checked.indexOf('const CHECKS')), /^ {2}(\w+): /gm)
  assert.deepEqual(inChecks.sort(), constraints.map(({ name }) => name).sort())
  for (const { name, columns } of constraints) {
    assert.ok(columns.includes(fieldOf(name)), name)
    assert.match(messageOf(name), /^[A-Z].*[^_]\.$/)
    assert.doesNotMatch(messageOf(name), /_/)
  }
  const others = await sql`
    select conname as name from pg_constraint where conrelid = 'public.jobs'::regclass and contype in ('f', 'p', 'u')
     union select indexrelid::regclass::name from pg_index where indrelid = 'public.jobs'::regclass and indisunique`
  for (const { name } of others) assert.ok(known.has(name), name)
})

test('where a code says it itself, it says it in English', () => {
  const said = {
    batch_size_is_1_3_or_6: 'The batch size must be 1, 3 or 6.',
    metadata_fit_is_cover_or_contain: 'The metadata fit must be cover or contain.',
    prompt_has_at_most_4000_characters: 'The prompt must have at most 4000 characters.',
    reference_type_is_png_webp_or_jpeg: 'The reference type must be png, webp or jpeg.',
    user_id_must_be_your_own: 'The user id must be your own.',
  }
  for (const [code, message] of Object.entries(said)) assert.equal(messageOf(code), message)
})

test('the fields are the columns that a client may set', async () => {
  const granted = await sql`
    select attname as name from pg_attribute
     where attrelid = 'public.jobs'::regclass and attnum > 0 and has_column_privilege('authenticated', 'public.jobs', attname, 'insert')`
  assert.deepEqual([...PARAMS, 'status'].sort(), granted.map(({ name }) => name).sort())
  const required = await sql`
    select attname as name from pg_attribute
     where attrelid = 'public.jobs'::regclass and attnum > 0 and attnotnull and attname = any (${PARAMS as string[]})`
  const nothing = Object.fromEntries(PARAMS.map((field) => [field, null]))
  const faults = Object.values(validateSDXLParams(nothing as unknown as SDXLParams) ?? {}).flatMap((of) => of ?? [])
  const asked = faults.filter(({ code }) => code === 'required').map(({ field }) => field)
  assert.deepEqual(asked.sort(), required.map(({ name }) => name).sort())
})

test('the bucket’s limits are the client’s', async () => {
  const [bucket] = await sql`select file_size_limit, allowed_mime_types from storage.buckets where id = 'reference_images'`
  assert.deepEqual(bucket, { file_size_limit: '20971520', allowed_mime_types: ['image/png', 'image/webp', 'image/jpeg'] })
})
