// Starting, stopping, and what happens when things are killed.

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { cpSync, readFileSync, rmSync, writeFileSync, mkdirSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { test } from "node:test";
import postgres from "postgres";
import { isAlive as isProcessAlive } from "../lock.mjs";
import { client, HERE, Inbox, SCRATCH, start, subscribed, temporaryFolder, user } from "./harness.mjs";

/** @param {string} dataDir */
const postmaster = (dataDir) => Number(readFileSync(join(dataDir, "db/postmaster.pid"), "utf8").split("\n")[0]);

/** @param {number} pid */
const isAlive = (pid) => isProcessAlive(pid, "postgres");

test("data are kept from one start to the next", async (t) => {
  const dataDir = temporaryFolder(t);
  const first = await start(t, { dataDir });
  t.diagnostic(`started on a fresh data directory in ${first.started_in_ms} ms`);
  const { supabase, id } = await user(first);
  await supabase.from("notes").insert({ body: "kept" });
  await supabase.storage.from("papers").upload(`${id}/kept.txt`, new Blob(["kept"], { type: "text/plain" }));
  const pid = postmaster(dataDir);
  const begun = performance.now();
  assert.equal(await first.stop(), 0);
  t.diagnostic(`stopped in ${Math.round(performance.now() - begun)} ms`);
  assert.equal(isAlive(pid), false);
  assert.equal(first.errors(), ["20260101000000_notes", "20260101000100_realtime_and_storage"]
    .map((name) => `supabase-local: applied migrations/${name}.sql\n`).join(""));

  const second = await start(t, { dataDir });
  t.diagnostic(`started on an existing data directory in ${second.started_in_ms} ms`);
  assert.equal(second.errors(), "");
  const service = client(second, second.secret_key);
  assert.deepEqual((await service.from("notes").select("body, user_id")).data, [{ body: "kept", user_id: id }]);
  assert.equal(await (await service.storage.from("papers").download(`${id}/kept.txt`)).data?.text(), "kept");
  assert.equal((await service.from("open_by_default").select()).data?.length, 2); // the seed was not sown twice

  const third = await start(t, { args: ["--quiet"] });
  assert.notEqual(third.api_url, second.api_url); // several run side by side
  assert.equal(third.errors(), "");
  assert.equal(await second.stop("SIGINT"), 0);
  third.child.stdin.end(); // --watch-stdin
  assert.equal(await third.exited, 0);
});

test("after a kill -9 the next start ends the orphan and goes on; --reset throws the data away", async (t) => {
  const dataDir = temporaryFolder(t);
  const first = await start(t, { dataDir });
  const { supabase } = await user(first);
  await supabase.from("notes").insert({ body: "kept" });
  const orphan = postmaster(dataDir);
  await first.stop("SIGKILL");
  assert.ok(isAlive(orphan));
  const second = await start(t, { dataDir });
  assert.equal(isAlive(orphan), false);
  assert.match(second.errors(), /ending the PostgreSQL server \d+ that an earlier run left behind/);
  assert.equal((await client(second, second.secret_key).from("notes").select()).data?.length, 1);
  await second.stop("SIGKILL");
  process.kill(postmaster(dataDir), "SIGKILL"); // a machine that lost power looks like this
  const third = await start(t, { dataDir });
  assert.equal((await client(third, third.secret_key).from("notes").select()).data?.length, 1);
  await third.stop();
  const fourth = await start(t, { dataDir, args: ["--reset"] });
  assert.equal((await client(fourth, fourth.secret_key).from("notes").select()).data?.length, 0);
});

test("a second start on the same data is refused, and harms nobody", async (t) => {
  const dataDir = temporaryFolder(t);
  const first = await start(t, { dataDir });
  await assert.rejects(start(t, { dataDir }), ({ code, errors }) => code === 1 && /in use by process \d+/.test(errors) && lines(errors) === 1);
  assert.equal((await client(first, first.secret_key).from("notes").select()).status, 200);
});

test("what cannot work is said in one sentence", async (t) => {
  const project = temporaryFolder(t);
  cpSync(SCRATCH, project, { recursive: true });
  const migrations = join(project, "migrations");
  /** @param {any} options @param {RegExp} expected */
  const refused = (options, expected) => assert.rejects(start(t, options), ({ code, errors }) => {
    assert.deepEqual([code, errors.startsWith("supabase-local: ")], [1, true]);
    assert.doesNotMatch(errors, /\n {4}at /); // no stack
    assert.match(errors, expected);
    return true;
  });

  writeFileSync(join(migrations, "20260101000200_broken.sql"), "create table public.fine ();\n\nselect nonsense;\n");
  const dataDir = temporaryFolder(t);
  await refused({ supabaseDir: project, dataDir }, /migrations\/20260101000200_broken\.sql line 3: column "nonsense" does not exist/);
  writeFileSync(join(migrations, "20260101000200_broken.sql"), "create table public.fine ();");
  const server = await start(t, { supabaseDir: project, dataDir }); // the broken one left nothing behind
  assert.equal(await server.stop(), 0);
  writeFileSync(join(migrations, "20260101000200_broken.sql"), "create table public.other ();");
  await refused({ supabaseDir: project, dataDir }, /20260101000200_broken\.sql was changed after it was applied here/);
  rmSync(join(migrations, "20260101000200_broken.sql"));
  await refused({ supabaseDir: project, dataDir }, /The migration 20260101000200 was applied here, but its file is gone/);

  await refused({ supabaseDir: join(project, "none") }, /config\.toml is missing/);
  writeFileSync(join(project, "config.toml"), "[auth\n");
  await refused({ supabaseDir: project }, /config\.toml cannot be read/);
  await refused({ args: ["--port", "http"] }, /--port must be a number/);
  await refused({ args: ["--nonsense"] }, /Unknown option '--nonsense'/);

  const blocker = createServer().listen(0, "127.0.0.1");
  await new Promise((resolve) => blocker.once("listening", resolve));
  const { port } = /** @type {import("node:net").AddressInfo} */ (blocker.address());
  await refused({ args: ["--port", String(port)] }, new RegExp(`Port ${port} is taken`));
  await refused({ args: ["--db-port", String(port)] }, new RegExp(`Port ${port} is taken`));
  blocker.close();

  const old = temporaryFolder(t);
  mkdirSync(join(old, "db"));
  writeFileSync(join(old, "db/PG_VERSION"), "15\n");
  await refused({ dataDir: old }, /made by PostgreSQL 15, and this is 17/);
});

for (const signal of /** @type {const} */ (["SIGINT", "SIGKILL"])) {
  test(`a database that ends (${signal}) comes back, and everything with it`, async (t) => {
    const server = await start(t);
    const ann = await user(server);
    await ann.supabase.realtime.setAuth();
    const [heard, changed] = [new Inbox(), new Inbox()];
    await subscribed(ann.supabase.channel(`user:${ann.id}`, { config: { private: true } }).on("broadcast", { event: "*" }, heard.put));
    await subscribed(ann.supabase.channel("changes").on("postgres_changes", { event: "*", schema: "public", table: "notes" }, changed.put));
    await ann.supabase.from("notes").insert({ body: "before" });
    await Promise.all([heard.next(), changed.next()]);

    const before = postmaster(server.dataDir);
    process.kill(before, signal);
    const begun = performance.now();
    const statuses = new Set();
    for (;;) { // hammering is the point here: every answer on the way must be an orderly one
      const { status } = await ann.supabase.from("notes").select("id");
      statuses.add(status);
      if (status === 200 && postmasterOrNone(server.dataDir) !== before) break;
      assert.ok(performance.now() - begun < 20_000, `still ${status}: ${server.errors()}`);
    }
    t.diagnostic(`${signal}: answers again after ${Math.round(performance.now() - begun)} ms; statuses on the way: ${[...statuses]}`);
    for (let i = 0; ; i++) { // what is written while the stream is down is not told later, so write until something is heard
      await ann.supabase.from("notes").insert({ body: `after ${i}` });
      const told = await Promise.all([heard.next(() => true, 250), changed.next(() => true, 250)]).catch(() => undefined);
      if (told) break;
      assert.ok(i < 40);
    }
    const sql = postgres(server.db_url, { max: 1 });
    await sql`create table public.later ()`;
    await sql.end();
    for (let i = 0; (await client(server, server.secret_key).from("later").select()).status !== 200; i++) assert.ok(i < 200); // DDL is heard of
    ann.supabase.realtime.disconnect();
    assert.equal(await server.stop(), 0);
  });
}

/** @param {string} dataDir */
function postmasterOrNone(dataDir) {
  try {
    return postmaster(dataDir);
  } catch {
    return undefined;
  }
}

test("two hundred rows claimed by eight clients at once, each once", async (t) => {
  const server = await start(t);
  const sql = postgres(server.db_url, { max: 1, onnotice: () => {} });
  await sql.unsafe(`create table public.work (id integer primary key, claimed boolean not null default false);
    insert into public.work select generate_series(1, 200);
    create function public.claim() returns integer language sql as $$
      update public.work set claimed = true where id = (select id from public.work where not claimed order by id limit 1 for update skip locked)
      returning id $$;`);
  await sql.end();
  const service = Array.from({ length: 8 }, () => client(server, server.secret_key));
  while ((await service[0].rpc("claim")).error) ; // until the API knows the new function
  const begun = performance.now();
  const claimed = (await Promise.all(service.map(async (one) => {
    const mine = [];
    for (;;) {
      const { data, error } = await one.rpc("claim");
      assert.ifError(error);
      if (data === null) return mine;
      mine.push(data);
    }
  }))).flat();
  assert.deepEqual(claimed.sort((x, y) => x - y), Array.from({ length: 199 }, (_, i) => i + 2));
  t.diagnostic(`${Math.round(claimed.length / (performance.now() - begun) * 1000)} claims a second`);
});

test("supabase-py sees no difference", { skip: !process.env.PYTHON && "PYTHON names no interpreter that has supabase-py" }, async (t) => {
  const server = await start(t);
  const { status, stdout, stderr } = spawnSync(/** @type {string} */ (process.env.PYTHON),
    [join(HERE, "python_client.py"), server.api_url, server.publishable_key, server.secret_key, server.db_url],
    { encoding: "utf8", timeout: 60_000 });
  assert.equal(status, 0, stdout + stderr);
  for (const line of stdout.trim().split("\n")) t.diagnostic(line);
});

/** @param {string} text */
const lines = (text) => text.trim().split("\n").length;
