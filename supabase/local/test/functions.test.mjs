// Edge Functions, and what lets the database call them: schemas net and vault.

import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";
import postgres from "postgres";
import { isAlive } from "../lock.mjs";
import { client, start, temporaryFolder, user } from "./harness.mjs";

/** @type {(() => unknown)[]} */
const endings = [];
const whole = { after: (/** @type {() => unknown} */ end) => void endings.push(end) };
/** @type {import("./harness.mjs").Server} */
let server;
/** @type {import("postgres").Sql} */
let sql;

before(async () => {
  const dataDir = temporaryFolder(whole);
  const env = join(dataDir, "functions.env");
  writeFileSync(env, "GREETING=hello\nSUPABASE_URL=https://elsewhere.example\n");
  server = await start(whole, { dataDir, args: ["--functions-env", env] });
  sql = postgres(server.db_url, { max: 2, onnotice: () => {} });
  endings.unshift(() => sql.end({ timeout: 0 }));
});

after(async () => {
  for (const end of endings) await end();
});

/** @param {string} path @param {RequestInit} [init] */
const call = async (path, init) => fetch(`${server.api_url}/functions/v1/${path}`, init);

test("supabase-js invokes one, as the user", async (t) => {
  const { supabase, session } = await user(server);
  const begun = performance.now();
  const { data, error } = await supabase.functions.invoke("echo/deeper?a=1", { body: { wish: "ü" } });
  t.diagnostic(`the first call, which starts Deno, took ${Math.round(performance.now() - begun)} ms`);
  assert.equal(error, null);
  assert.deepEqual(data, { method: "POST", path: "/echo/deeper?a=1", authorization: `Bearer ${session.access_token}`, body: '{"wish":"ü"}' });
});

test("a token is asked for unless config.toml says otherwise; a preflight needs none", async () => {
  const { error } = await client(server).functions.invoke("echo"); // an API key is no token
  assert.equal(error.context.status, 401);
  assert.deepEqual(await (await call("echo")).json(), { code: "UNAUTHORIZED_NO_AUTH_HEADER", message: "Missing authorization header" });
  assert.equal((await call("echo", { headers: { authorization: "Bearer a.b.c" } })).status, 401);
  const preflight = await call("echo", { method: "OPTIONS" });
  assert.equal(preflight.headers.get("access-control-allow-origin"), "https://mine.example"); // the function's own word
  assert.equal((await call("open")).status, 200);
  assert.equal((await call("nothing")).status, 404);
  assert.equal((await call("..%2fopen")).status, 404);
});

test("it finds what Supabase gives it, and the file's settings", async () => {
  assert.deepEqual(await (await call("open?do=env")).json(), {
    SUPABASE_URL: server.api_url, SUPABASE_ANON_KEY: server.publishable_key,
    SUPABASE_SECRET_KEYS: JSON.stringify({ default: server.secret_key }), GREETING: "hello",
  });
});

test("it cannot read files or start programs", async () => {
  for (const deed of ["read", "spawn"]) {
    const response = await call(`open?do=${deed}`);
    assert.equal(response.status, 500);
    assert.equal((await response.json()).code, "WORKER_ERROR");
  }
  assert.match(readFileSync(join(server.dataDir, "functions.log"), "utf8"), /NotCapable: Requires read access[^]*NotCapable: Requires run access/);
});

test("one that fails harms no other", async () => {
  const token = (await user(server)).session.access_token;
  const broken = await call("broken", { headers: { authorization: `Bearer ${token}` } });
  assert.deepEqual([broken.status, (await broken.json()).code], [503, "BOOT_ERROR"]);
  assert.equal((await call("open?do=throw")).status, 500);
  assert.equal((await call("open")).status, 200);
  await call("open?do=exit").catch(() => {}); // takes all of them along; the next call starts them again
  assert.equal((await call("open")).status, 200);
});

test("the database calls one when its transaction is committed, and not when it is rolled back", async () => {
  const url = `${server.api_url}/functions/v1/open`;
  const answers = async () => sql`select id::int, status_code, content, timed_out, error_msg from net._http_response order by id`;
  await sql.begin(async (tx) => {
    await tx`set local role service_role`;
    await tx`select net.http_post(${`${url}?do=never`}, '{}')`;
    throw new Error("never mind");
  }).catch(() => {});
  const [{ id }] = await sql`select net.http_post(url => ${url}, body => '{"a": 1}', params => '{"do": "pid", "ü": "&"}')::int as id`;
  const [{ late }] = await sql`select net.http_get(${`${url}?do=pid`}, timeout_milliseconds => 0)::int as late`;
  const [{ nowhere }] = await sql`select net.http_get('http://127.0.0.1:1/')::int as nowhere`;
  for (const end = Date.now() + 5000; (await answers()).length < 3 && Date.now() < end; );
  const [first, second, third, ...others] = await answers();
  assert.deepEqual(others, []);
  assert.deepEqual({ ...first, content: Number(first.content) > 0 }, { id, status_code: 200, content: true, timed_out: false, error_msg: null });
  assert.deepEqual({ ...second }, { id: late, status_code: null, content: null, timed_out: true, error_msg: "Timeout of 0 ms reached." });
  assert.equal(third.id, nowhere);
  assert.equal(third.timed_out, false);
  assert.ok(third.error_msg);
  assert.deepEqual([...(await sql`select from net.http_request_queue`)], []);
});

test("vault keeps secrets for the database's functions, and from everybody else", async () => {
  const [{ id }] = await sql`select vault.create_secret('s3cret', 'name', 'what for') as id`;
  await sql`select vault.update_secret(${id}, 's4cret')`;
  assert.deepEqual([...(await sql`select name, decrypted_secret, description from vault.decrypted_secrets`)],
    [{ name: "name", decrypted_secret: "s4cret", description: "what for" }]);
  await assert.rejects(sql`select vault.create_secret('another', 'name')`, /secrets_name_idx/);
  for (const role of ["anon", "authenticated"]) {
    await assert.rejects(sql.begin((tx) => [tx`set local role ${sql(role)}`, tx`select from vault.decrypted_secrets`]), /permission denied for schema vault/);
  }
});

test("Deno ends with the embedded Supabase, however that ends", async (t) => {
  for (const signal of /** @type {const} */ (["SIGTERM", "SIGKILL"])) {
    const mine = await start(t);
    const pid = await (await fetch(`${mine.api_url}/functions/v1/open?do=pid`)).json();
    assert.ok(isAlive(pid, "deno"));
    const postmaster = Number(readFileSync(join(mine.dataDir, "db/postmaster.pid"), "utf8").split("\n")[0]);
    await mine.stop(signal);
    if (signal === "SIGKILL") process.kill(postmaster, "SIGQUIT"); // which nobody else would end
    for (const end = Date.now() + 5000; isAlive(pid, "deno") && Date.now() < end; ) await new Promise(setImmediate);
    assert.equal(isAlive(pid, "deno"), false);
  }
});
