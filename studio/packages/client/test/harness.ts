// The embedded Supabase and a stub worker, as programs of their own; and a proxy between a frontend and its Supabase that can fail.

import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { chmodSync, mkdtempSync, rmSync } from 'node:fs'
import { createServer, type IncomingMessage, request } from 'node:http'
import { type AddressInfo, connect, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { after } from 'node:test'
import type { Database, SDXLEvent, SDXLParams, SDXLStatus } from '@ourvidz/sdxl-client'
import { createClient, type SupabaseClient } from '@supabase/supabase-js'

export const ROOT: string = join(import.meta.dirname, '../../../..')
const PYTHON = process.env.PYTHON ?? join(ROOT, '.venv/bin/python')

/** One pixel. */
export const PNG = Buffer.from(
  'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==',
  'base64',
)

export interface Server {
  api_url: string
  db_url: string
  publishable_key: string
  secret_key: string
}

/** Started for a file of tests, and ended after them. What was begun last is ended first. */
const endings: (() => unknown)[] = []
after(async () => {
  for (const end of endings.reverse()) await end()
})
export const finallyDo = (end: () => unknown): void => void endings.push(end)

/** Runs until the end of the tests; resolves with the first line that `fits`. */
async function start<T>(
  command: string,
  args: string[],
  env: NodeJS.ProcessEnv,
  from: 'stdout' | 'stderr',
  fits: (line: T) => boolean,
) {
  const child = spawn(command, args, { cwd: ROOT, env, stdio: ['pipe', 'pipe', 'pipe'] })
  const said: string[] = []
  const exited = new Promise<number | null>((resolve) => child.once('exit', resolve))
  const line = new Promise<T>((resolve) => {
    for (const name of ['stdout', 'stderr'] as const) {
      createInterface({ input: child[name] }).on('line', (text) => {
        said.push(text)
        if (name === from && text.startsWith('{') && fits(JSON.parse(text))) resolve(JSON.parse(text))
      })
    }
  })
  finallyDo(async () => {
    child.kill()
    await exited
  })
  const failed = exited.then((code) => Promise.reject(new Error(`${command} ended with ${code}:\n${said.slice(-20).join('\n')}`)))
  failed.catch(() => undefined)
  return Promise.race([line, failed])
}

export async function startSupabase(...options: string[]): Promise<Server> {
  const dir = mkdtempSync(join(tmpdir(), 'sdxl-client-'))
  chmodSync(dir, 0o755) // under root, Postgres's own account must get in
  finallyDo(() => rmSync(dir, { recursive: true, force: true }))
  const main = join(ROOT, 'supabase/local/main.mjs')
  const args = [main, '--data-dir', dir, '--watch-stdin', '--quiet', ...options]
  return start<Server>(process.execPath, args, process.env, 'stdout', () => true)
}

/** `target` keeps the jobs of tests apart, where the steps must last longer for some. */
export async function startWorker(server: Server, { target = 'sdxl', stepSeconds = 0 } = {}): Promise<void> {
  const env = {
    ...process.env,
    SUPABASE_URL: server.api_url,
    SUPABASE_SERVICE_ROLE_KEY: server.secret_key,
    MODEL_PATH: join(ROOT, 'models/tiny-sdxl'),
    LOG_FORMAT: 'json',
    TARGET_WORKER: target,
    STUB_STEP_SECONDS: String(stepSeconds),
  }
  const isReady = ({ event }: { event: string }) => event === 'realtime_subscribed'
  await start(PYTHON, ['-m', 'tests.stub_worker'], env, 'stderr', isReady)
}

export interface User {
  id: string
  supabase: SupabaseClient<Database>
}

export async function signUp(server: Server, url: string = server.api_url): Promise<User> {
  const supabase = createClient<Database>(url, server.publishable_key, { auth: { persistSession: false, autoRefreshToken: false } })
  const { data, error } = await supabase.auth.signUp({ email: `${randomUUID()}@example.com`, password: 'correct horse' })
  if (error || !data.user) throw error ?? new Error('no user')
  finallyDo(() => supabase.removeAllChannels())
  return { id: data.user.id, supabase }
}

export const service = (server: Server): SupabaseClient<Database> => createClient<Database>(server.api_url, server.secret_key)

/** One that every test may build on; at the stub's size. */
export const PAINTABLE = { job_type: 'sdxl_image_fast', prompt: 'a cat', width: 128, height: 128 } as const satisfies SDXLParams

export async function collect(watch: AsyncIterable<SDXLEvent>): Promise<SDXLEvent[]> {
  const events: SDXLEvent[] = []
  for await (const event of watch) events.push(event)
  return events
}

export const statesOf = (events: SDXLEvent[]): SDXLStatus[] => {
  const states = events.flatMap((event) => (event.type === 'state' ? [event.job.status] : []))
  return states.filter((state, i) => state !== states[i - 1])
}

/** Looks again and again until it holds. For what no event tells of. */
export async function until(holds: () => unknown, what: string, timeoutMs = 20_000): Promise<void> {
  const deadline = Date.now() + timeoutMs
  while (!(await holds())) {
    assert.ok(Date.now() < deadline, `never came true: ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
}

/** Between one frontend and its Supabase. */
export class Flaky {
  url = ''
  /** Requests that have come, by method and path. */
  readonly requests: string[] = []
  /** 'cut' ends Realtime's connections and refuses new ones; 'silent' lets them stand, and nothing passes. */
  #realtime: 'fine' | 'cut' | 'silent' = 'fine'
  #delayMs = 0
  readonly #sockets = new Set<Socket>()
  readonly #forgotten = new WeakSet<Socket>()
  readonly #server: Server
  /** What to do with a request instead of passing it on: `lose` its reply, or `cut` it off before it arrives. */
  fault: (request: IncomingMessage) => 'lose' | 'cut' | undefined = () => undefined

  constructor(server: Server) {
    this.#server = server
  }

  async start(): Promise<this> {
    const upstream = new URL(this.#server.api_url)
    const http = createServer((incoming, reply) => {
      this.requests.push(`${incoming.method} ${incoming.url}`)
      const fault = this.fault(incoming)
      if (fault === 'cut') return void incoming.socket.destroy()
      const { method, url, headers } = incoming
      const onward = request({ host: upstream.hostname, port: upstream.port, method, path: url, headers }, (answer) => {
        if (fault === 'lose') return void incoming.socket.destroy()
        reply.writeHead(answer.statusCode ?? 502, answer.headers)
        answer.pipe(reply)
      })
      onward.on('error', () => reply.destroy())
      incoming.pipe(onward)
    })
    http.on('upgrade', (incoming: IncomingMessage, client: Socket) => {
      if (this.#realtime === 'cut') return void client.destroy()
      const onward = connect(Number(upstream.port), upstream.hostname)
      const headers = Object.entries(incoming.headers).map(([name, value]) => `${name}: ${value}`)
      onward.write(`GET ${incoming.url} HTTP/1.1\r\n${headers.join('\r\n')}\r\n\r\n`)
      for (const [from, to] of [
        [client, onward],
        [onward, client],
      ] as const) {
        this.#sockets.add(from)
        from.on('data', (data) => {
          if (this.#realtime === 'silent' || this.#forgotten.has(from)) return
          if (this.#delayMs) setTimeout(() => to.write(data), this.#delayMs)
          else to.write(data)
        })
        from.on('error', () => undefined)
        from.on('close', () => {
          to.destroy()
          this.#sockets.delete(from)
        })
      }
    })
    await new Promise<void>((resolve) => http.listen(0, '127.0.0.1', resolve))
    this.url = `http://127.0.0.1:${(http.address() as AddressInfo).port}`
    finallyDo(() => {
      this.cutRealtime()
      http.closeAllConnections()
      http.close()
    })
    return this
  }

  cutRealtime(): void {
    this.#realtime = 'cut'
    for (const socket of this.#sockets) socket.destroy()
  }

  silenceRealtime(): void {
    this.#realtime = 'silent'
  }

  /** The connections that there are stay silent, as those do of which a router knows nothing any more; new ones pass. */
  forgetSilenced(): void {
    for (const socket of this.#sockets) this.#forgotten.add(socket)
    this.#realtime = 'fine'
  }

  /** Each message takes so long. */
  slowRealtime(delayMs: number): void {
    this.#delayMs = delayMs
  }

  heal(): void {
    this.#realtime = 'fine'
    this.#delayMs = 0
    this.fault = () => undefined
  }
}
