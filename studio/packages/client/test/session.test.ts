// Sessions that expire, are refused or cannot be renewed; and what is refused although somebody is signed in.

import assert from 'node:assert/strict'
import { createHmac } from 'node:crypto'
import { before, beforeEach, test } from 'node:test'
import {
  cancelJob,
  getJob,
  imageUrls,
  listJobs,
  queuePosition,
  retryJob,
  SDXLError,
  submitSDXLJob,
  uploadReference,
  watchJobs,
} from '@ourvidz/sdxl-client'
import { createClient, type Session } from '@supabase/supabase-js'
import { asSDXLError } from '../src/errors.ts'
import { Flaky, PAINTABLE, PNG, type Server, signUp, startSupabase, type User } from './harness.ts'

const JWT_SECRET = 'super-secret-jwt-token-with-at-least-32-characters-long' // supabase/config.toml

let server: Server
let flaky: Flaky
let user: User
before(async () => {
  server = await startSupabase()
  flaky = await new Flaky(server).start()
})
beforeEach(async () => {
  flaky.heal()
  user = await signUp(server, flaky.url)
})

/** As the hosted parts answer: PostgREST 14, Storage 1.6x, Auth 2.18x. */
const ANSWERS = {
  'PostgREST, expired': [{ code: 'PGRST303', message: 'JWT expired', details: null, hint: null }, 401, 'not_signed_in'],
  'PostgREST before 13, expired': [{ code: 'PGRST301', message: 'JWT expired', details: null, hint: null }, 401, 'not_signed_in'],
  'PostgREST, signed by another': [{ code: 'PGRST301', message: 'No suitable key or wrong key type' }, 401, 'not_signed_in'],
  'PostgREST, nobody': [{ code: '42501', message: 'permission denied for table jobs' }, 401, 'not_signed_in'],
  'PostgREST, a column that is not granted': [
    { code: '42501', message: 'permission denied for table jobs' },
    403,
    'permission_denied',
  ],
  'PostgREST, row security': [
    { code: '42501', message: 'new row violates row-level security policy "user_id must be your own" for table "jobs"' },
    403,
    'user_id_must_be_your_own',
  ],
  'PostgREST, a constraint that speaks of signatures': [
    { code: '23514', message: 'new row for relation "jobs" violates check constraint "signature_is_known"' },
    400,
    'signature_is_known',
  ],
  'Storage, expired': [
    {
      name: 'StorageApiError',
      status: 400,
      statusCode: '403',
      code: 'AccessDenied',
      message: '"exp" claim timestamp check failed',
    },
    undefined,
    'not_signed_in',
  ],
  'Storage by an older storage-js, which hands over no code': [
    { name: 'StorageApiError', status: 400, statusCode: '403', message: '"exp" claim timestamp check failed' },
    undefined,
    'not_signed_in',
  ],
  'Storage, signed by another': [
    { name: 'StorageApiError', status: 400, statusCode: '403', message: 'signature verification failed' },
    undefined,
    'not_signed_in',
  ],
  'Storage, no token': [
    { name: 'StorageApiError', status: 400, statusCode: '403', message: 'Invalid Compact JWS' },
    undefined,
    'not_signed_in',
  ],
  'Storage before 1.0': [
    { name: 'StorageApiError', status: 400, statusCode: '400', code: 'InvalidJWT', message: 'jwt expired' },
    undefined,
    'not_signed_in',
  ],
  'Storage, row security': [
    {
      name: 'StorageApiError',
      status: 400,
      statusCode: '403',
      code: 'AccessDenied',
      message: 'new row violates row-level security policy',
    },
    undefined,
    'permission_denied',
  ],
  'Auth, no such session': [
    { name: 'AuthApiError', status: 403, code: 'session_not_found', message: 'gone' },
    undefined,
    'not_signed_in',
  ],
  'Auth, token': [{ name: 'AuthApiError', status: 403, code: 'bad_jwt', message: 'token is expired' }, undefined, 'not_signed_in'],
  'Auth, refresh token': [
    { name: 'AuthApiError', status: 400, code: 'refresh_token_not_found', message: 'x' },
    undefined,
    'not_signed_in',
  ],
  'Auth, used': [
    { name: 'AuthApiError', status: 400, code: 'refresh_token_already_used', message: 'x' },
    undefined,
    'not_signed_in',
  ],
  'Auth, none': [{ name: 'AuthSessionMissingError', status: 400, message: 'Auth session missing!' }, undefined, 'not_signed_in'],
  'Auth, too often': [
    { name: 'AuthApiError', status: 429, code: 'over_request_rate_limit', message: 'x' },
    undefined,
    'too_many_requests',
  ],
  'Auth away': [{ name: 'AuthRetryableFetchError', status: 503, message: 'x' }, undefined, 'service_unavailable'],
  'no network to Auth': [{ name: 'AuthRetryableFetchError', status: 0, message: 'fetch failed' }, undefined, 'network_error'],
} as const

for (const [whose, [answer, status, code]] of Object.entries(ANSWERS)) {
  test(`what it means: ${whose}`, () => assert.equal(asSDXLError(answer, status).code, code))
}

/** The user's token as it was an hour ago, as a machine has it whose clock is late by more than the token was valid. */
async function expire({ supabase }: User, session?: Session | null): Promise<void> {
  const data = { session: session ?? (await supabase.auth.getSession()).data.session }
  const [head, claims] = (data.session?.access_token ?? '').split('.')
  const old = { ...JSON.parse(Buffer.from(claims ?? '', 'base64url').toString()), exp: Math.floor(Date.now() / 1000) - 3600 }
  const signed = `${head}.${Buffer.from(JSON.stringify(old)).toString('base64url')}`
  const signature = createHmac('sha256', JWT_SECRET).update(signed).digest('base64url')
  const { storage, storageKey } = supabase.auth as unknown as { storage: Storage; storageKey: string }
  await storage.setItem(storageKey, JSON.stringify({ ...data.session, access_token: `${signed}.${signature}` }))
}
const refreshes = (): number => flaky.requests.filter((line) => line.includes('grant_type=refresh_token')).length
const FOR_NOBODY = { ...PAINTABLE, target_worker: 'nobody' }

test('a token that the server takes for expired is renewed, and the request done, with each function', async () => {
  const { supabase } = user
  const { id } = await submitSDXLJob(supabase, FOR_NOBODY)
  const image = { bucket: 'reference_images', path: await uploadReference(supabase, new Blob([PNG])), thumbnail_path: 'x' }
  const acts = {
    submit: async () => (await submitSDXLJob(supabase, FOR_NOBODY)).status,
    get: async () => (await getJob(supabase, id)).status,
    list: async () => (await listJobs(supabase)).length > 0,
    position: async () => typeof (await queuePosition(supabase, id)),
    upload: async () => typeof (await uploadReference(supabase, new Blob([PNG]))),
    sign: async () => typeof (await imageUrls(supabase, { images: [image as never] }))[0]?.url,
    cancel: async () => (await cancelJob(supabase, id)).status,
    retry: async () => (await retryJob(supabase, id)).status,
  }
  const done: Record<string, unknown> = {}
  for (const [name, act] of Object.entries(acts)) {
    await expire(user)
    const before = refreshes()
    done[name] = await act()
    assert.equal(refreshes(), before + 1, name)
  }
  assert.deepEqual(done, {
    submit: 'queued',
    get: 'queued',
    list: true,
    position: 'number',
    upload: 'string',
    sign: 'string',
    cancel: 'cancelled',
    retry: 'queued',
  })
})

test('requests that are refused at once renew the session once', async () => {
  await expire(user)
  const before = refreshes()
  await Promise.all([listJobs(user.supabase), listJobs(user.supabase), uploadReference(user.supabase, new Blob([PNG]))])
  assert.equal(refreshes(), before + 1)
})

test('a session that was ended elsewhere is not signed in, with each function', async () => {
  const { supabase } = user
  const { id } = await submitSDXLJob(supabase, FOR_NOBODY)
  const { data } = await supabase.auth.getSession()
  const elsewhere = createClient(server.api_url, server.publishable_key, {
    auth: { persistSession: false, autoRefreshToken: false },
  })
  await elsewhere.auth.setSession(data.session as never)
  await elsewhere.auth.signOut({ scope: 'global' })
  const image = { bucket: 'reference_images', path: `${user.id}/x.png`, thumbnail_path: 'x' }
  for (const act of [
    () => submitSDXLJob(supabase, FOR_NOBODY),
    () => getJob(supabase, id),
    () => listJobs(supabase),
    () => queuePosition(supabase, id),
    () => cancelJob(supabase, id),
    () => retryJob(supabase, id),
    () => uploadReference(supabase, new Blob([PNG])),
    () => imageUrls(supabase, { images: [image as never] }),
    () => watchJobs(supabase).next(),
  ]) {
    await expire(user, data.session)
    await assert.rejects(act, (error) => error instanceof SDXLError && error.code === 'not_signed_in', String(act))
    assert.equal((await supabase.auth.getSession()).data.session, null) // so that the page can ask to sign in
  }
})

test('while the session cannot be renewed for the network, that is said, and not that nobody is signed in', async () => {
  const { supabase } = user
  flaky.fault = ({ url }) => (url?.startsWith('/auth/') ? 'cut' : undefined)
  await expire(user)
  await assert.rejects(listJobs(supabase), { code: 'network_error', retryable: true })
})

test('who is signed in and may not is refused, and keeps the session', async () => {
  const other = await signUp(server)
  const before = refreshes()
  await assert.rejects(submitSDXLJob(user.supabase, { ...FOR_NOBODY, user_id: other.id }), { code: 'user_id_must_be_your_own' })
  const { error } = await user.supabase.storage
    .from('reference_images')
    .upload(`${other.id}/x.png`, new Blob([PNG], { type: 'image/png' }))
  assert.equal(asSDXLError(error).code, 'permission_denied')
  assert.equal(refreshes(), before)
})

test('of pictures that are there, nobody who is not signed in is told that they are gone', async () => {
  const path = await uploadReference(user.supabase, new Blob([PNG]))
  const images = [{ bucket: 'reference_images', path, thumbnail_path: path }] as never
  await user.supabase.auth.signOut({ scope: 'local' })
  await assert.rejects(imageUrls(user.supabase, { images }), { code: 'not_signed_in' })
  assert.deepEqual(await imageUrls(user.supabase, []), [])
})

test('an anonymous session is a session', async () => {
  const supabase = createClient(flaky.url, server.publishable_key, { auth: { persistSession: false, autoRefreshToken: false } })
  const { data } = await supabase.auth.signInAnonymously()
  await expire({ id: data.user?.id ?? '', supabase: supabase as never })
  assert.equal((await submitSDXLJob(supabase, FOR_NOBODY)).user_id, data.user?.id)
})

test('with tokens of another issuer, the accessToken callback is asked, and once more after a refusal', async () => {
  const { data } = await user.supabase.auth.getSession()
  const good = data.session?.access_token ?? ''
  await expire(user)
  const bad = (await user.supabase.auth.getSession()).data.session?.access_token ?? ''
  let refused = 0
  const supabase = createClient(server.api_url, server.publishable_key, {
    accessToken: async () => (refused ? good : bad),
    global: {
      fetch: async (input, init) => {
        const answer = await fetch(input, init)
        if (answer.status === 401) refused += 1
        return answer
      },
    },
  })
  assert.equal((await submitSDXLJob(supabase, FOR_NOBODY)).user_id, user.id)
  assert.equal(refused, 1)
})
