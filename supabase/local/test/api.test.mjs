// REST and Auth as supabase-js sees them.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { client, start, user } from "./harness.mjs";

/** @type {import("./harness.mjs").Server} */
let server;
/** @type {Awaited<ReturnType<typeof user>>} */
let ann;
/** @type {Awaited<ReturnType<typeof user>>} */
let bob;
/** @type {ReturnType<typeof client>} */
let service;
/** @type {(() => unknown)[]} */
const endings = [];

before(async () => {
  server = await start({ after: (fn) => endings.unshift(fn) });
  [ann, bob] = [await user(server), await user(server)];
  service = client(server, server.secret_key);
});
after(async () => {
  for (const end of endings) await end();
});

describe("auth", () => {
  test("signing up gives a session at once, with ISO times and GoTrue's claims", async () => {
    assert.match(String(ann.session.user.created_at), /^\d{4}-\d\d-\d\dT/);
    const claims = JSON.parse(Buffer.from(ann.session.access_token.split(".")[1], "base64url").toString());
    assert.equal(claims.sub, ann.id);
    assert.equal(claims.role, "authenticated");
    assert.equal(claims.is_anonymous, false);
    assert.equal(claims.app_metadata.provider, "email");
  });

  test("signing in, refreshing, asking who I am, signing out", async () => {
    const supabase = client(server);
    const email = String(ann.session.user.email);
    const wrong = await supabase.auth.signInWithPassword({ email, password: "wrong" });
    assert.equal(wrong.error?.code, "invalid_credentials");
    const { data, error } = await supabase.auth.signInWithPassword({ email, password: "correct horse" });
    assert.ifError(error);
    assert.equal(data.user?.id, ann.id);
    const refreshed = await supabase.auth.refreshSession();
    assert.ifError(refreshed.error);
    assert.equal((await supabase.auth.getUser()).data.user?.id, ann.id);
    assert.ifError((await supabase.auth.signOut()).error);
  });

  test("an anonymous user is authenticated and known as anonymous", async () => {
    const supabase = client(server);
    const { data, error } = await supabase.auth.signInAnonymously();
    assert.ifError(error);
    assert.equal(data.user?.is_anonymous, true);
    const { data: me } = await supabase.rpc("whoami");
    assert.deepEqual([me.role, me.anonymous, me.uid], ["authenticated", true, data.user?.id]);
    const again = await supabase.auth.refreshSession();
    assert.equal(again.data.user?.is_anonymous, true);
    const note = await supabase.from("notes").insert({ body: "anonymous" }).select("user_id").single();
    assert.equal(note.data?.user_id, data.user?.id);
  });

  test("the service creates, changes, lists and deletes users; others may not", async () => {
    const { data, error } = await service.auth.admin.createUser({
      email: "made@example.com", password: "correct horse", email_confirm: true, user_metadata: { name: "Made" }, app_metadata: { tier: 2 },
    });
    assert.ifError(error);
    const id = String(data.user?.id);
    const supabase = client(server);
    const signedIn = await supabase.auth.signInWithPassword({ email: "made@example.com", password: "correct horse" });
    assert.equal(signedIn.data.user?.id, id);
    assert.equal(signedIn.data.user?.app_metadata.tier, 2);
    const twice = await service.auth.admin.createUser({ email: "made@example.com", password: "x" });
    assert.equal(twice.error?.code, "email_exists");
    const updated = await service.auth.admin.updateUserById(id, { user_metadata: { name: "Renamed" }, password: "another horse" });
    assert.equal(updated.data.user?.user_metadata.name, "Renamed");
    assert.ifError((await supabase.auth.signInWithPassword({ email: "made@example.com", password: "another horse" })).error);
    const listed = await service.auth.admin.listUsers();
    assert.ok(listed.data.users.some((one) => one.id === id));
    assert.ifError((await service.auth.admin.deleteUser(id)).error);
    assert.equal((await service.auth.admin.getUserById(id)).error?.status, 404);
    assert.equal((await client(server).auth.admin.listUsers()).error?.status, 403);
  });
});

describe("rest", () => {
  test("row security shows and takes only what is mine", async () => {
    const mine = await ann.supabase.from("notes").insert({ body: "hers", tags: ["a", "b"], data: { x: [1, null] } })
      .select("id, user_id, body, tags, data, created_at").single();
    assert.ifError(mine.error);
    assert.equal(mine.data?.user_id, ann.id);
    assert.deepEqual([mine.data?.tags, mine.data?.data], [["a", "b"], { x: [1, null] }]);
    assert.match(mine.data?.created_at, /^\d{4}-\d\d-\d\dT.*\+00:00$/);
    assert.deepEqual((await bob.supabase.from("notes").select("id").eq("id", mine.data?.id)).data, []);
    const forged = await bob.supabase.from("notes").insert({ body: "forged", user_id: ann.id });
    assert.equal(forged.error?.code, "42501");
    assert.equal(forged.status, 403);
    assert.equal((await client(server).from("notes").select("id")).status, 401); // anon has no grant
    assert.equal((await service.from("notes").select("id").eq("id", mine.data?.id)).data?.length, 1);
  });

  test("JSON of every kind is stored as what it is", async () => {
    for (const data of [{ a: "x" }, [1, "two"], "text", 5, null]) {
      const { data: row, error } = await ann.supabase.from("notes").insert({ body: "json", data }).select("id, data").single();
      assert.ifError(error);
      assert.deepEqual(row?.data, data);
    }
    const many = await ann.supabase.from("notes").insert([{ body: "1", data: { n: 1 } }, { body: "2", data: { n: 2 } }]).select("data");
    assert.deepEqual(many.data, [{ data: { n: 1 } }, { data: { n: 2 } }]);
  });

  test("column grants hold", async () => {
    const hidden = await ann.supabase.from("notes").select("hidden");
    assert.equal(hidden.error?.code, "42501");
    const fixed = await ann.supabase.from("notes").update({ created_at: "2020-01-01" }).eq("user_id", ann.id);
    assert.equal(fixed.error?.code, "42501");
    assert.equal((await ann.supabase.from("notes").update({ amount: 5 }).eq("user_id", ann.id)).status, 204);
  });

  test("what a migration leaves open is open, as on Supabase", async () => {
    assert.deepEqual((await client(server).from("open_by_default").select("id").order("id")).data, [{ id: 1 }, { id: 2 }]);
  });

  test("functions: arguments, roles, time limits", async () => {
    assert.equal((await client(server).rpc("add", { a: 2, b: 3 })).data, 5);
    assert.equal((await client(server).rpc("for_service")).error?.code, "42501");
    assert.equal((await service.rpc("for_service")).data, "yes");
    const roles = await Promise.all([client(server), ann.supabase, service].map((one) => one.rpc("whoami")));
    assert.deepEqual(roles.map(({ data }) => [data.role, data.user, data.timeout]),
      [["anon", "anon", "3s"], ["authenticated", "authenticated", "8s"], ["service_role", "service_role", "8s"]]);
    const slow = await client(server).rpc("slow", { seconds: 6 });
    assert.equal(slow.error?.code, "57014");
  });

  test("errors carry PostgreSQL's code and PostgREST's status", async () => {
    const expected = /** @type {const} */ ({ PT429: 429, PT409: 409, P0001: 400, "23514": 400, "40001": 500, "42501": 403, "22023": 400 });
    for (const [code, status] of Object.entries(expected)) {
      const { error, status: got } = await ann.supabase.rpc("fail", { code });
      assert.deepEqual([code, got, error?.code, error?.message, error?.hint], [code, status, code, "as asked", "a hint"]);
    }
    const { error, status } = await ann.supabase.from("notes").insert({ body: "" });
    assert.deepEqual([status, error?.code], [400, "23514"]);
    assert.match(String(error?.message), /notes_body_check/);
    assert.equal((await ann.supabase.from("nothing").select()).status, 404);
  });

  test("a table made later is there at once", async () => {
    const { default: postgres } = await import("postgres");
    const sql = postgres(server.db_url, { max: 1 });
    await sql`create table public.later (id integer primary key)`;
    await sql`insert into public.later values (7)`;
    await sql.end();
    for (let i = 0; ; i++) { // the word of it takes its way through the database
      const { data } = await service.from("later").select();
      if (data) return assert.deepEqual(data, [{ id: 7 }]);
      assert.ok(i < 200);
    }
  });

  test("a wrong key is refused, and no key", async () => {
    for (const path of ["/rest/v1/open_by_default", "/auth/v1/user"]) assert.equal((await fetch(server.api_url + path)).status, 401);
    assert.equal((await client(server, "sb_publishable_wrong").from("open_by_default").select()).status, 401);
  });
});
