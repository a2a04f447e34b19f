// A client that slept: its process was stopped, or its connection went silent, for longer than its token was valid.

import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { before, test } from 'node:test'
import { submitSDXLJob } from '@ourvidz/sdxl-client'
import { createClient } from '@supabase/supabase-js'
import { Flaky, finallyDo, PAINTABLE, type Server, service, signUp, startSupabase, type User, until } from './harness.ts'

/** Thrice the promise of 10 s from the moment of waking, for a loaded machine; the seconds it took are reported. */
const HEARD_AGAIN_MS = 30_000
const JWT_SECONDS = 8
const ASLEEP_MS = 14_000 // longer than the token is valid

let server: Server
before(async () => {
  // as the hosted Realtime has it: a refused join is answered after five seconds, in which the whole connection waits
  server = await startSupabase('--jwt-expiry', String(JWT_SECONDS), '--join-error-delay', '5000')
})
const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms))

/** A page's whole life in a process of its own, which can be stopped as a laptop's lid stops it. */
async function startPage(flaky: Flaky, user: User) {
  const { data } = await user.supabase.auth.getSession()
  const page = spawn(process.execPath, [join(import.meta.dirname, 'page.ts')], {
    stdio: ['pipe', 'pipe', 'inherit'],
    env: {
      ...process.env,
      PAGE: JSON.stringify({ url: flaky.url, key: server.publishable_key, session: data.session, userId: user.id }),
    },
  })
  finallyDo(() => {
    page.kill('SIGKILL')
  })
  const heard: string[] = []
  createInterface({ input: page.stdout }).on('line', (line) => heard.push(line))
  const hears = (line: string, timeoutMs = 20_000) =>
    until(() => heard.includes(line), `heard: ${line}; there was ${heard}`, timeoutMs)
  for (const line of ['ready', 'joined']) await hears(line)
  return { page, heard, hears }
}

/** Another page's doing: the session is the page's alone. */
const askFor = async ({ id }: User): Promise<string> =>
  (await submitSDXLJob(service(server), { ...PAINTABLE, target_worker: 'nobody', user_id: id })).id

/** The events that the page must hear of a job, by each of the three ways. */
const ways = (id: string, status: string): string[] => [`topic ${id} ${status}`, `changes ${id} ${status}`]

for (const [how, isCut] of [
  ['and its connection stood', false],
  ['and its connection died without a word', true],
] as const) {
  test(`a process that was stopped past its token's end, ${how}, hears of all topics within 10 s, and of what it missed`, async (t) => {
    const flaky = await new Flaky(server).start()
    const user = await signUp(server, flaky.url)
    const { page, heard, hears } = await startPage(flaky, user)
    const ask = () => askFor(user)
    const first = await ask()
    for (const line of ways(first, 'queued')) await hears(line)

    page.kill('SIGSTOP')
    if (isCut) flaky.silenceRealtime()
    await sleep(ASLEEP_MS)
    const missed = await ask()
    if (isCut) flaky.forgetSilenced()
    heard.length = 0
    const woken = Date.now()
    page.kill('SIGCONT')
    await hears(`listed ${missed} queued`, HEARD_AGAIN_MS)
    // until it hears again, new jobs are asked for; the first of them that all ways tell of ends the wait
    let told: string | undefined
    const asked: string[] = []
    await until(
      async () => {
        asked.push(await ask())
        await sleep(400)
        told = asked.find((id) => ways(id, 'queued').every((line) => heard.includes(line)))
        return told
      },
      `heard by each way again: ${heard}`,
      HEARD_AGAIN_MS,
    )
    t.diagnostic(`heard again after ${Date.now() - woken} ms`)
    assert.ok(Date.now() - woken < HEARD_AGAIN_MS)

    // a topic of one job, too, which was watched all the time
    const teller = service(server).channel(`job:${first}`, { config: { private: true } })
    await teller.httpSend('progress', { step: 3, steps: 15 })
    await hears(`progress ${first} 3`)
    // and nothing is missing in the end
    for (const id of [missed, ...asked]) await hears(`listed ${id} queued`)
  })
}

test('when the network comes back only after the waking, it is heard again within 10 s of that', async (t) => {
  const flaky = await new Flaky(server).start()
  const user = await signUp(server, flaky.url)
  const { page, heard, hears } = await startPage(flaky, user)
  page.kill('SIGSTOP')
  await sleep(ASLEEP_MS)
  flaky.fault = () => 'cut'
  flaky.cutRealtime()
  page.kill('SIGCONT')
  await sleep(5_000)
  heard.length = 0
  const back = Date.now()
  flaky.heal()
  await hears('joined', HEARD_AGAIN_MS)
  const id = await askFor(user)
  await hears(`topic ${id} queued`, HEARD_AGAIN_MS)
  t.diagnostic(`heard again ${Date.now() - back} ms after the network was back`)
})

test('a page whose session was ended while it slept is told that it is not signed in', async () => {
  const flaky = await new Flaky(server).start()
  const user = await signUp(server, flaky.url)
  const { page, hears } = await startPage(flaky, user)
  page.kill('SIGSTOP')
  const admin = createClient(server.api_url, server.secret_key, { auth: { persistSession: false } })
  await admin.auth.admin.deleteUser(user.id)
  await sleep(ASLEEP_MS)
  page.kill('SIGCONT')
  await hears('ended not_signed_in', HEARD_AGAIN_MS)
})
