// An access token that expires: refused by each part of the API in the hosted service's own form, and the end of the channels joined with it.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { client, Inbox, start, subscribed, user } from "./harness.mjs";

const JOIN_ERROR_DELAY_MS = 1_500;

/** @type {import("./harness.mjs").Server} */
let server;
/** @type {(() => unknown)[]} */
const endings = [];
/** @type {import("@supabase/supabase-js").Session} */
let expired;

before(async () => {
  server = await start({ after: (fn) => endings.unshift(fn) }, { args: ["--jwt-expiry", "4", "--join-error-delay", String(JOIN_ERROR_DELAY_MS)] });
  expired = (await user(server)).session;
  assert.equal(expired.expires_in, 4);
  const left = Number(expired.expires_at) * 1000 - Date.now();
  await new Promise((resolve) => setTimeout(resolve, left + 1_000));
});
after(async () => {
  for (const end of endings) await end();
});

/** @param {string} method @param {string} path @param {string} [token] @param {unknown} [body] */
async function ask(method, path, token = expired.access_token, body) {
  const answer = await fetch(server.api_url + path, {
    method,
    headers: { apikey: server.publishable_key, authorization: `Bearer ${token}`, ...(body !== undefined && { "content-type": "application/json" }) },
    ...(body !== undefined && { body: JSON.stringify(body) }),
  });
  return { status: answer.status, body: await answer.json() };
}

test("REST says 401 PGRST303", async () => {
  const { status, body } = await ask("GET", "/rest/v1/notes");
  assert.deepEqual([status, body.code, body.message], [401, "PGRST303", "JWT expired"]);
});

test("Auth says 403 bad_jwt", async () => {
  const { status, body } = await ask("GET", "/auth/v1/user");
  assert.deepEqual([status, body.error_code], [403, "bad_jwt"]);
});

test("Storage says 400 with the status and code of a refusal inside, whatever is asked of it", async () => {
  const refused = { statusCode: "403", code: "AccessDenied", error: "Unauthorized", message: "\"exp\" claim timestamp check failed" };
  for (const [method, path, body] of /** @type {[string, string, unknown][]} */ ([
    ["POST", "/storage/v1/object/papers/a/b.txt", "a"],
    ["POST", "/storage/v1/object/sign/papers", { paths: ["a/b.txt"], expiresIn: 60 }],
    ["POST", "/storage/v1/object/sign/papers/a/b.txt", { expiresIn: 60 }],
    ["POST", "/storage/v1/object/list/papers", { prefix: "" }],
    ["GET", "/storage/v1/object/authenticated/papers/a/b.txt", undefined],
  ])) {
    assert.deepEqual(await ask(method, path, undefined, body), { status: 400, body: refused }, path);
  }
  const malformed = await ask("POST", "/storage/v1/object/papers/a/b.txt", "nonsense", "a");
  assert.deepEqual(malformed, { status: 400, body: { ...refused, message: "Invalid Compact JWS" } });
});

/** A client whose Realtime has this token and never another. @param {string} token */
async function listener(token) {
  const one = client(server);
  endings.unshift(() => one.realtime.disconnect());
  await one.realtime.setAuth(token);
  const join = (/** @type {string} */ name) => one.channel(name, { config: { private: true } });
  return Object.assign(one, { join });
}

test("Realtime ends a channel when its token expires, unless a newer one came in time", async () => {
  const one = await user(server);
  const renewed = await listener(one.session.access_token);
  const left = await listener(one.session.access_token);
  /** @type {Inbox<any>} */
  const system = new Inbox();
  /** @type {Inbox<string>} */
  const states = new Inbox();
  const channel = left.join(`user:${one.id}`).on("system", {}, system.put);
  channel.subscribe((state) => states.put(state));
  const kept = renewed.join(`user:${one.id}`).on("system", {}, system.put);
  assert.equal((await subscribed(kept)).status, "SUBSCRIBED");
  await states.next((state) => state === "SUBSCRIBED");
  await new Promise((resolve) => setTimeout(resolve, 2_000)); // so that the next one ends two seconds later
  const { data } = await one.supabase.auth.refreshSession();
  await renewed.realtime.setAuth(data.session?.access_token);
  const said = await system.next(() => true, 20_000);
  assert.deepEqual(said, { extension: "system", status: "error", message: "Token has expired 0 seconds ago", channel: `user:${one.id}` });
  await states.next((state) => state === "CLOSED", 20_000);
  assert.deepEqual(left.getChannels(), []);
  assert.equal(kept.state, "joined");
});

test("a join with an expired token is refused late, and what comes after it on the connection waits", async () => {
  const one = await listener(expired.access_token);
  const begun = performance.now();
  const first = subscribed(one.join("user:one"));
  const second = subscribed(one.join("user:two"));
  assert.match(String((await first).error?.message), /^InvalidJWTToken: Token has expired \d+ seconds ago$/);
  assert.ok(performance.now() - begun >= JOIN_ERROR_DELAY_MS - 50);
  assert.match(String((await second).error?.message), /^InvalidJWTToken: Token has expired/);
  assert.ok(performance.now() - begun >= 2 * JOIN_ERROR_DELAY_MS - 50);
});

test("what is no token, or signed by somebody else, is refused by that name", async () => {
  const malformed = await subscribed((await listener("a.b.c")).join("user:one"));
  assert.equal(malformed.error?.message, "MalformedJWT: The token provided is not a valid JWT");
  const forged = await subscribed((await listener(`${expired.access_token.slice(0, -6)}AAAAAA`)).join("user:one"));
  assert.equal(forged.error?.message, "JwtSignatureError: Failed to validate JWT signature");
});
