// postgres_changes as supabase-js sees them: only what the subscriber may read.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import postgres from "postgres";
import { parseFilters } from "../realtime/filter.mjs";
import { client, Inbox, start, subscribed, user } from "./harness.mjs";

/** @type {import("./harness.mjs").Server} */
let server;
/** @type {import("postgres").Sql} */
let sql;
/** @type {(() => unknown)[]} */
const endings = [];

before(async () => {
  server = await start({ after: (fn) => endings.unshift(fn) });
  sql = postgres(server.db_url, { max: 2, onnotice: () => {} });
  endings.unshift(() => sql.end());
});
after(async () => {
  for (const end of endings) await end();
});

/** @param {any} supabase @param {any} filter */
async function listen(supabase, filter) {
  await supabase.realtime.setAuth();
  const heard = new Inbox();
  const told = new Inbox();
  const channel = supabase.channel(`changes-${Math.random()}`)
    .on("postgres_changes", { schema: "public", table: "notes", event: "*", ...filter }, heard.put)
    .on("system", {}, told.put);
  const { status, error } = await subscribed(channel);
  endings.unshift(() => supabase.realtime.disconnect());
  return { heard, told, status, error };
}

test("insert, update and delete, with what the subscriber may read and no more", async () => {
  const [ann, bob] = [await user(server), await user(server)];
  const hers = await listen(ann.supabase, {});
  const his = await listen(bob.supabase, {});
  const all = await listen(client(server, server.secret_key), {});
  assert.deepEqual([hers.status, his.status, all.status], ["SUBSCRIBED", "SUBSCRIBED", "SUBSCRIBED"]);
  assert.equal((await hers.told.next()).message, "Subscribed to PostgreSQL");

  const { data } = await ann.supabase.from("notes")
    .insert({ body: "one", amount: 3, tags: ["a b", "c"], data: { deep: [1, { x: null }] }, hidden: "secret" }).select("id, created_at").single();
  const inserted = await hers.heard.next();
  assert.deepEqual({ ...inserted, commit_timestamp: 0 }, {
    schema: "public", table: "notes", eventType: "INSERT", commit_timestamp: 0, errors: null, old: {},
    new: {
      id: data?.id, user_id: ann.id, body: "one", amount: 3, tags: ["a b", "c"], data: { deep: [1, { x: null }] }, created_at: data?.created_at,
    },
  });
  assert.match(inserted.commit_timestamp, /^\d{4}-\d\d-\d\dT[\d:.]+Z$/);
  assert.equal((await all.heard.next()).new.hidden, "secret"); // the service may read that column

  await ann.supabase.from("notes").update({ amount: null }).eq("id", data?.id);
  const updated = await hers.heard.next();
  assert.deepEqual([updated.eventType, updated.new.amount, updated.old], ["UPDATE", null, { id: data?.id }]);

  await ann.supabase.from("notes").delete().eq("id", data?.id);
  const deleted = await hers.heard.next();
  assert.deepEqual([deleted.eventType, deleted.new, deleted.old], ["DELETE", {}, { id: data?.id }]);
  // a deleted row cannot be asked whose it was: as on Supabase everybody hears its primary key, and that is all he ever heard
  assert.deepEqual((await his.heard.next()).old, { id: data?.id });
  assert.deepEqual(his.heard.items, []);
});

test("filters compare as the column's type", async () => {
  const ann = await user(server);
  const filters = {
    "amount=eq.10": [10], "amount=neq.10": [9, 11], "amount=lt.10": [9], "amount=lte.10": [9, 10], "amount=gt.9": [10, 11],
    "amount=gte.10": [10, 11], "amount=in.(9,11)": [9, 11], "amount=gt.9,amount=lt.11": [10], "amount=not.in.(9,11)": [10],
    "body=eq.\"a,b\"": [9], "body=like.n%25": [], "body=like.n%": [10, 11],
  };
  const listeners = await Promise.all(Object.keys(filters).map((filter) => listen(ann.supabase, { filter, event: "INSERT" })));
  await ann.supabase.from("notes").insert([{ body: "a,b", amount: 9 }, { body: "n", amount: 10 }, { body: "n", amount: 11 }]);
  const last = await listen(ann.supabase, { event: "INSERT" });
  await ann.supabase.from("notes").insert({ body: "end", amount: null });
  await last.heard.next();
  Object.entries(filters).forEach(([filter, expected], i) => {
    const amounts = listeners[i].heard.items.map((change) => change.new.amount).filter((amount) => amount !== null);
    assert.deepEqual([filter, amounts], [filter, expected]);
  });
});

test("only the event, only the columns that were asked for", async () => {
  const ann = await user(server);
  const updates = await listen(ann.supabase, { event: "UPDATE", select: ["amount"] });
  const { data } = await ann.supabase.from("notes").insert({ body: "x" }).select("id").single();
  await ann.supabase.from("notes").update({ amount: 1 }).eq("id", data?.id);
  assert.deepEqual((await updates.heard.next()).new, { id: data?.id, amount: 1 });
});

test("a whole schema, and several bindings on one channel", async () => {
  const service = client(server, server.secret_key);
  const [any, inserts] = [new Inbox(), new Inbox()];
  const channel = service.channel("both")
    .on("postgres_changes", { event: "*", schema: "public" }, any.put)
    .on("postgres_changes", { event: "INSERT", schema: "public", table: "notes" }, inserts.put);
  endings.unshift(() => service.realtime.disconnect());
  assert.equal((await subscribed(channel)).status, "SUBSCRIBED");
  const ann = await user(server);
  const { data } = await ann.supabase.from("notes").insert({ body: "x" }).select("id").single();
  assert.equal((await any.next()).new.id, data?.id);
  assert.equal((await inserts.next()).new.id, data?.id);
  assert.deepEqual([any.items, inserts.items], [[], []]);
});

test("what is not published, or no column, is told plainly", async () => {
  const ann = await user(server);
  const unpublished = await listen(ann.supabase, { table: "open_by_default" });
  assert.match((await unpublished.told.next()).message, /Unable to subscribe to changes with given parameters. Please check Realtime is enabled/);
  const column = await listen(ann.supabase, { filter: "hidden=eq.x" });
  assert.match((await column.told.next()).message, /invalid column for filter hidden/);
  const value = await listen(ann.supabase, { filter: "amount=eq.many" });
  assert.match((await value.told.next()).message, /invalid input syntax for type integer/);
});

test("without a grant on the primary key there is only the refusal", async () => {
  const anon = await listen(client(server), { table: "notes" });
  const ann = await user(server);
  await ann.supabase.from("notes").insert({ body: "x" });
  const change = await anon.heard.next();
  assert.deepEqual([change.errors, change.new], [["Error 401: Unauthorized"], {}]);
});

test("large and unchanged values of an update are not lost with replica identity full", async () => {
  await sql`alter table public.notes replica identity full`;
  const ann = await user(server);
  const hers = await listen(ann.supabase, { event: "UPDATE" });
  // too long and too mixed to stay in the row
  const body = Array.from({ length: 20_000 }, (_, i) => String.fromCharCode(33 + (i * 7919) % 90)).join("");
  await ann.supabase.from("notes").insert({ body });
  await ann.supabase.from("notes").update({ amount: 1 }).eq("user_id", ann.id);
  const change = await hers.heard.next();
  assert.equal(change.new.body, body);
  assert.equal(change.old.amount, null);
  await sql`alter table public.notes replica identity default`;
});

test("latency from insert to delivery", async (t) => {
  const ann = await user(server);
  const hers = await listen(ann.supabase, { event: "INSERT" });
  const times = [];
  for (let i = 0; i < 100; i++) {
    const begun = performance.now();
    await Promise.all([sql`insert into public.notes (user_id, body) values (${ann.id}, 'tick')`, hers.heard.next()]);
    times.push(performance.now() - begun);
  }
  times.sort((x, y) => x - y);
  t.diagnostic(`postgres_changes: median ${times[50].toFixed(1)} ms, 95 % ${times[95].toFixed(1)} ms`);
});

test("the parser of filters", () => {
  assert.deepEqual(parseFilters("a=eq.1"), [{ column: "a", op: "eq", value: "1", negate: false }]);
  assert.deepEqual(parseFilters("a=in.(x,\"y,z\")"), [{ column: "a", op: "in", value: '{"x","y,z"}', negate: false }]);
  assert.deepEqual(parseFilters(" "), []);
  assert.throws(() => parseFilters("undefined"), /Error parsing/);
  assert.throws(() => parseFilters("a=foo.1"), /Error parsing/);
});
