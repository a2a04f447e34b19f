// The package as it is published: what is in it, what it weighs, and that its README is true.

import assert from 'node:assert/strict'
import { spawn, spawnSync } from 'node:child_process'
import { readFileSync, rmSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { createInterface } from 'node:readline'
import { test } from 'node:test'
import { gzipSync } from 'node:zlib'
import { build } from 'esbuild'
import { finallyDo, startSupabase, startWorker } from './harness.ts'

const PACKAGE = join(import.meta.dirname, '..')
const MAX_BYTES = 7.5 * 1024

/** What a bundler makes of it for a browser. */
async function bundle(code: string): Promise<string> {
  const { outputFiles } = await build({
    stdin: { contents: code, resolveDir: PACKAGE },
    bundle: true,
    minify: true,
    format: 'esm',
    external: ['@supabase/supabase-js'],
    write: false,
    logLevel: 'error',
  })
  return outputFiles[0]?.text ?? ''
}

test('all of it weighs less than 7.5 KB, compressed, and asks for nothing of Node', async (t) => {
  const text = await bundle("export * from '@ourvidz/sdxl-client'")
  const bytes = gzipSync(text, { level: 9 }).length
  t.diagnostic(`${bytes} bytes`)
  assert.ok(bytes < MAX_BYTES, `${bytes} bytes`)
  assert.doesNotMatch(text, /supabase-js|node:|\bprocess\b|\bBuffer\b/)
})

test('who takes one function gets no other', async (t) => {
  assert.equal((await bundle("import {} from '@ourvidz/sdxl-client'")).trim(), '')
  const upload = await bundle("export { uploadReference } from '@ourvidz/sdxl-client'")
  t.diagnostic(`uploadReference: ${gzipSync(upload).length} bytes`)
  assert.doesNotMatch(upload, /removeChannel|createSignedUrls|lcm/)
  const watch = await bundle("export { watchJob } from '@ourvidz/sdxl-client'")
  t.diagnostic(`watchJob: ${gzipSync(watch).length} bytes`)
  assert.doesNotMatch(watch, /createSignedUrls|reference_images|lcm/)
})

test('the package holds its code, its types and its README, and nothing else', () => {
  const npm = join(dirname(process.execPath), '../lib/node_modules/npm/bin/npm-cli.js')
  const { stdout, stderr } = spawnSync(process.execPath, [npm, 'pack', '--dry-run', '--json', '--ignore-scripts'], {
    cwd: PACKAGE,
    encoding: 'utf8',
  })
  const packed: unknown = JSON.parse(stdout || '[]')
  const [made] = (Array.isArray(packed) ? packed : Object.values(packed as object)) as { files: { path: string }[] }[]
  assert.ok(made, stderr)
  const paths = made.files.map(({ path }) => path)
  assert.ok(paths.includes('dist/index.js') && paths.includes('dist/index.d.ts') && paths.includes('dist/database.types.d.ts'))
  const others = paths.filter((path) => !/^dist\/[a-z.]+\.(js|d\.ts)$/.test(path))
  assert.deepEqual(others.sort(), ['README.md', 'package.json'])
})

test('the example in the README works when it is pasted', async () => {
  const readme = readFileSync(join(PACKAGE, 'README.md'), 'utf8')
  const example = /```js\n(.*?)```/s.exec(readme)?.[1] ?? ''
  assert.ok(example.trim().split('\n').length <= 30)
  const server = await startSupabase()
  await startWorker(server, { stepSeconds: 0.05 })
  const mine = example
    .replace('https://your-project.supabase.co', server.api_url)
    .replace('your-publishable-key', server.publishable_key)
  assert.equal(mine.includes('your-'), false)
  const file = join(PACKAGE, 'test/.pasted.mjs')
  finallyDo(() => rmSync(file, { force: true }))
  writeFileSync(file, `${mine}process.exit(0)`) // it would end by itself, ten seconds later: supabase-js waits for its timers
  const child = spawn(process.execPath, [file], { stdio: ['ignore', 'pipe', 'inherit'] })
  const lines: string[] = []
  for await (const line of createInterface({ input: child.stdout })) lines.push(line)
  assert.equal(child.exitCode ?? (await new Promise((resolve) => child.once('exit', resolve))), 0)
  // a quick worker has begun before the row is first read
  assert.match(lines.filter((line) => /^\w+$/.test(line)).join(), /^(queued,)?processing,completed$/)
  assert.ok(lines.some((line) => /^step \d+ of 15$/.test(line)))
  const urls = lines.filter((line) => line.startsWith('http')).flatMap((line) => line.split(' '))
  assert.equal(urls.length, 6)
  for (const url of urls) assert.equal((await fetch(url)).status, 200)
})
