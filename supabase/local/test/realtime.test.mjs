// Broadcast and private channels as supabase-js sees them, under both versions of the protocol.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import postgres from "postgres";
import { client, Inbox, start, subscribed, user } from "./harness.mjs";

/** @type {import("./harness.mjs").Server} */
let server;
/** @type {import("postgres").Sql} */
let sql;
/** @type {(() => unknown)[]} */
const endings = [];
/** @type {ReturnType<typeof client>[]} */
const clients = [];

before(async () => {
  server = await start({ after: (fn) => endings.unshift(fn) });
  sql = postgres(server.db_url, { max: 2, onnotice: () => {} });
  endings.unshift(() => sql.end());
});
after(async () => {
  for (const one of clients) one.realtime.disconnect();
  for (const end of endings) await end();
});

for (const vsn of ["1.0.0", "2.0.0"]) {
  describe(`protocol ${vsn}`, () => {
    const options = { vsn };
    const anyone = () => keep(client(server, server.publishable_key, options));
    const service = () => keep(client(server, server.secret_key, options));
    const someone = async () => {
      const one = await user(server, options);
      await one.supabase.realtime.setAuth();
      keep(one.supabase);
      return one;
    };

    test("from client to client, to oneself when asked, and acknowledged when asked", async () => {
      const [a, b] = [anyone(), anyone()];
      const heardByA = new Inbox();
      const heardByB = new Inbox();
      const channelA = a.channel(`room-${vsn}`, { config: { broadcast: { ack: true, self: true } } }).on("broadcast", { event: "*" }, heardByA.put);
      const channelB = b.channel(`room-${vsn}`).on("broadcast", { event: "hello" }, heardByB.put);
      assert.equal((await subscribed(channelA)).status, "SUBSCRIBED");
      assert.equal((await subscribed(channelB)).status, "SUBSCRIBED");
      assert.equal(await channelA.send({ type: "broadcast", event: "hello", payload: { text: "grüß", n: 1 } }), "ok");
      assert.deepEqual((await heardByB.next()).payload, { text: "grüß", n: 1 });
      assert.deepEqual((await heardByA.next()).payload, { text: "grüß", n: 1 });
      await channelB.send({ type: "broadcast", event: "back", payload: {} });
      assert.equal((await heardByA.next()).event, "back");
      assert.deepEqual(heardByB.items, []); // its own word does not come back to b
    });

    test("from the database, private to private and public to public", async () => {
      const { supabase, id } = await someone();
      const open = anyone();
      const secret = new Inbox();
      const overheard = new Inbox();
      const closed = supabase.channel(`user:${id}`, { config: { private: true } }).on("broadcast", { event: "*" }, secret.put);
      assert.equal((await subscribed(closed)).status, "SUBSCRIBED");
      assert.equal((await subscribed(open.channel(`user:${id}`).on("broadcast", { event: "*" }, overheard.put))).status, "SUBSCRIBED");
      await sql`select realtime.send('{"n": 1, "big": 12345678901234567890}', 'news', ${`user:${id}`}, true)`;
      await sql`select realtime.send('{"n": 2, "id": "given"}', 'news', ${`user:${id}`}, false)`;
      const message = await secret.next();
      assert.equal(message.event, "news");
      assert.equal(message.payload.n, 1);
      assert.equal(message.payload.id, message.meta.id);
      assert.equal((await overheard.next()).payload.id, "given");
      assert.deepEqual([secret.items, overheard.items], [[], []]);
    });

    test("broadcast_changes in a trigger tells the user what happened to a row", async () => {
      const { supabase, id } = await someone();
      const heard = new Inbox();
      await subscribed(supabase.channel(`user:${id}`, { config: { private: true } }).on("broadcast", { event: "*" }, heard.put));
      await supabase.from("notes").insert({ body: "first" });
      const inserted = await heard.next();
      assert.equal(inserted.event, "INSERT");
      assert.deepEqual([inserted.payload.schema, inserted.payload.table, inserted.payload.operation], ["public", "notes", "INSERT"]);
      assert.equal(inserted.payload.record.body, "first");
      assert.equal(inserted.payload.old_record, null);
      await supabase.from("notes").delete().eq("user_id", id);
      assert.equal((await heard.next()).payload.old_record.body, "first");
    });

    test("a private channel lets in whom row security lets in", async () => {
      const ann = await someone();
      const bob = await someone();
      const refused = await subscribed(bob.supabase.channel(`user:${ann.id}`, { config: { private: true } }));
      assert.equal(refused.status, "CHANNEL_ERROR");
      assert.equal(refused.error?.message, `Unauthorized: You do not have permissions to read from this Channel topic: user:${ann.id}`);
      assert.equal((await subscribed(anyone().channel(`user:${ann.id}`, { config: { private: true } }))).status, "CHANNEL_ERROR");
      assert.equal((await subscribed(service().channel(`user:${ann.id}`, { config: { private: true } }))).status, "SUBSCRIBED");
    });

    test("a private channel lets speak whom row security lets speak", async () => {
      const ann = await someone();
      const heard = new Inbox();
      const listening = service();
      const config = { private: true, broadcast: { ack: true } };
      for (const topic of ["room:shared", `user:${ann.id}`]) {
        await subscribed(listening.channel(topic, { config }).on("broadcast", { event: "*" }, heard.put));
      }
      const shared = ann.supabase.channel("room:shared", { config });
      const own = ann.supabase.channel(`user:${ann.id}`, { config });
      assert.deepEqual([(await subscribed(shared)).status, (await subscribed(own)).status], ["SUBSCRIBED", "SUBSCRIBED"]);
      assert.equal(await own.send({ type: "broadcast", event: "not allowed", payload: {} }, { timeout: 300 }), "timed out");
      assert.equal(await shared.send({ type: "broadcast", event: "allowed", payload: {} }), "ok");
      assert.equal((await heard.next()).event, "allowed");
      assert.deepEqual(heard.items, []);
    });

    test("over HTTP, one by one and in a batch", async () => {
      const ann = await someone();
      const heard = new Inbox();
      const listening = service();
      await subscribed(listening.channel("room:shared", { config: { private: true } }).on("broadcast", { event: "*" }, heard.put));
      await subscribed(listening.channel("open").on("broadcast", { event: "*" }, heard.put));
      assert.deepEqual(await ann.supabase.channel("room:shared", { config: { private: true } }).httpSend("single", { n: 1 }), { success: true });
      assert.deepEqual((await heard.next(({ event }) => event === "single")).payload, { n: 1 });
      await assert.rejects(ann.supabase.channel(`user:${ann.id}`, { config: { private: true } }).httpSend("no", {}), /permissions/);
      const response = await fetch(`${server.api_url}/realtime/v1/api/broadcast`, {
        method: "POST",
        headers: { apikey: server.secret_key, "content-type": "application/json" },
        body: JSON.stringify({
          messages: [
            { topic: "open", event: "batch", payload: { n: 2 } }, { topic: "room:shared", event: "batch", payload: { n: 3 }, private: true },
          ],
        }),
      });
      assert.equal(response.status, 202);
      assert.deepEqual([(await heard.next()).payload.n, (await heard.next()).payload.n].sort(), [2, 3]);
      assert.equal((await fetch(`${server.api_url}/realtime/v1/api/broadcast`, { method: "POST", body: "{}" })).status, 401);
    });

    test("leaving and joining again, and a hundred messages in order", async () => {
      const supabase = service();
      const heard = new Inbox();
      const first = supabase.channel("again", { config: { private: true } });
      await subscribed(first);
      assert.equal(await supabase.removeChannel(first), "ok");
      await subscribed(supabase.channel("again", { config: { private: true } }).on("broadcast", { event: "n" }, heard.put));
      await sql`select realtime.send(jsonb_build_object('n', n), 'n', 'again', true) from generate_series(1, 100) n`;
      const numbers = [];
      for (let i = 0; i < 100; i++) numbers.push((await heard.next()).payload.n);
      assert.deepEqual(numbers, Array.from({ length: 100 }, (_, i) => i + 1));
    });
  });
}

test("bytes travel under protocol 2.0.0", async () => {
  const [a, b] = [keep(client(server)), keep(client(server))];
  const heard = new Inbox();
  await subscribed(b.channel("bytes").on("broadcast", { event: "*" }, heard.put));
  const sender = a.channel("bytes");
  await subscribed(sender);
  await sender.send({ type: "broadcast", event: "raw", payload: new Uint8Array([1, 2, 255]).buffer });
  assert.deepEqual([...new Uint8Array((await heard.next()).payload)], [1, 2, 255]);
  await sql`select realtime.send_binary('\\x0aff'::bytea, 'raw', 'bytes', false)`;
  assert.deepEqual([...new Uint8Array((await heard.next()).payload)], [10, 255]);
});

test("a failing send is a warning, and its transaction goes on", async () => {
  const [row] = await sql.begin(async (tx) => {
    await tx`select realtime.send('{}', 'event', null, true)`;
    return tx`select 1 as alive`;
  });
  assert.equal(row.alive, 1);
});

test("messages lie in a partition a day, and go after three days", async () => {
  const days = async () => (await sql`select c.relname as name from pg_inherits i join pg_class c on c.oid = i.inhrelid
                                       where i.inhparent = 'realtime.messages'::regclass order by 1`).map(({ name }) => name);
  const now = await days();
  assert.equal(now.length, 5);
  await sql`select _local.keep_messages((now() at time zone 'utc') + interval '6 days')`;
  const then = await days();
  assert.equal(then.filter((day) => now.includes(day)).length, 1);
  await sql`select _local.keep_messages()`;
  assert.deepEqual((await days()).slice(0, 5), now);
});

test("a new token is asked anew, and an expired one ends the channel", async () => {
  const { supabase, id, session } = await user(server);
  keep(supabase);
  await supabase.realtime.setAuth();
  const told = new Inbox();
  const channel = supabase.channel(`user:${id}`, { config: { private: true } }).on("system", {}, told.put);
  assert.equal((await subscribed(channel)).status, "SUBSCRIBED");
  const { Keys } = await import("../keys.mjs");
  const keys = new Keys({ publishableKey: "", secretKey: "", jwtSecret: "super-secret-jwt-token-with-at-least-32-characters-long" });
  const claims = JSON.parse(Buffer.from(session.access_token.split(".")[1], "base64url").toString());
  await supabase.realtime.setAuth(await keys.sign({ ...claims, sub: "00000000-0000-4000-8000-000000000000" }));
  assert.match((await told.next()).message, /You do not have permissions to read/);
  const short = client(server);
  keep(short);
  await short.realtime.setAuth(await keys.sign({ ...claims, exp: Math.floor(Date.now() / 1000) + 2 }));
  const expiring = short.channel(`user:${id}`, { config: { private: true } }).on("system", {}, told.put);
  assert.equal((await subscribed(expiring)).status, "SUBSCRIBED");
  assert.match((await told.next()).message, /Token has expired/);
});

test("latency from insert to delivery", async (t) => {
  const supabase = keep(client(server, server.secret_key));
  const heard = new Inbox();
  await subscribed(supabase.channel("latency", { config: { private: true } }).on("broadcast", { event: "tick" }, heard.put));
  const times = [];
  for (let i = 0; i < 200; i++) {
    const begun = performance.now();
    await Promise.all([sql`select realtime.send('{}', 'tick', 'latency', true)`, heard.next()]);
    times.push(performance.now() - begun);
  }
  times.sort((x, y) => x - y);
  t.diagnostic(`broadcast from the database: median ${times[100].toFixed(1)} ms, 95 % ${times[190].toFixed(1)} ms`);
  assert.ok(times[100] < 200);
});

/** @param {ReturnType<typeof client>} one */
function keep(one) {
  clients.push(one);
  return one;
}
