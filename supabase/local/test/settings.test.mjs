// What SQL says of REST and Auth: settings of the database and its roles, PostgREST's own configuration, seeded users.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import postgres from "postgres";
import { client, start, user } from "./harness.mjs";
import { libraryProject } from "./library.mjs";

const SEED = `
  insert into auth.users (
    instance_id, id, aud, role, email, encrypted_password, email_confirmed_at, recovery_sent_at, last_sign_in_at, raw_app_meta_data,
    raw_user_meta_data, is_super_admin, created_at, updated_at, phone, confirmation_token, email_change, email_change_token_new, recovery_token
  ) values (
    '00000000-0000-0000-0000-000000000000', 'a0000000-0000-4000-8000-000000000001', 'authenticated', 'authenticated', 'Seeded@example.com',
    crypt('correct horse', gen_salt('bf')), now(), null, null, '{"provider": "email", "providers": ["email"]}', '{"name": "Seeded"}', false,
    now(), now(), null, '', '', '', ''
  );
  insert into auth.identities (user_id, provider_id, provider, identity_data, last_sign_in_at, created_at, updated_at)
  select id, id::text, 'email', jsonb_build_object('sub', id, 'email', email, 'email_verified', true), now(), now(), now() from auth.users;
  insert into public.notes (user_id, body) select id, 'seeded' from auth.users;
`;

/** @type {Awaited<ReturnType<typeof start>>} */
let server;
/** @type {ReturnType<typeof client>} */
let service;
/** @type {import("postgres").Sql} as the role postgres, whom migrations and the SQL editor run as */
let owner;
/** @type {(() => unknown)[]} */
const endings = [];

before(async () => {
  const t = { after: (/** @type {() => unknown} */ fn) => endings.unshift(fn) };
  server = await start(t, { supabaseDir: libraryProject(t, SEED) });
  service = client(server, server.secret_key);
  owner = postgres(server.db_url.replace("supabase_admin", "postgres"), { max: 1, onnotice: () => {} });
  t.after(() => owner.end());
});
after(async () => {
  for (const end of endings) await end();
});

/** Asks until the gateway has heard of it. @template T @param {() => Promise<T>} ask @param {(answer: T) => unknown} fits @returns {Promise<T>} */
async function eventually(ask, fits) {
  for (let i = 0; ; i++) {
    const answer = await ask();
    if (fits(answer)) return answer;
    assert.ok(i < 2000, JSON.stringify(answer));
  }
}

const day = "2026-02-03";

describe("settings of the database and of roles", () => {
  test("times are ISO 8601 under any DateStyle, which says how a date is read", async () => {
    await owner`alter database postgres set datestyle = 'SQL, DMY'`;
    await owner`alter role authenticated set datestyle = 'German'`;
    await owner`notify pgrst, 'reload config'`;
    const style = async () => (await service.rpc("request_guc", { name: "DateStyle" })).data;
    await eventually(style, (text) => text === "SQL, DMY");
    const { data, error } = await service.from("kinds").insert({ id: 1, day: "03/02/2026", moment: `${day}T04:05:06Z`, local: "03/02/2026 04:05:06" })
      .select("day, moment, local").single();
    assert.ifError(error);
    assert.deepEqual(data, { day, moment: `${day}T04:05:06+00:00`, local: `${day}T04:05:06` });
    const ann = await user(server);
    assert.match(String(ann.session.user.created_at), /^\d{4}-\d\d-\d\dT/);
    const note = await ann.supabase.from("notes").insert({ body: "dated" }).select("created_at").single();
    assert.match(note.data?.created_at, /^\d{4}-\d\d-\d\dT.*\+00:00$/);
    assert.ifError((await ann.supabase.auth.refreshSession()).error);
    await owner`alter database postgres reset datestyle`;
    await owner`alter role authenticated reset datestyle`;
  });

  test("the time zone, intervals and floats are written as they are set", async () => {
    await owner`alter database postgres set timezone = 'America/New_York'`;
    await owner`alter role authenticator set intervalstyle = 'iso_8601'`;
    await owner`notify pgrst`;
    await eventually(async () => (await service.rpc("request_guc", { name: "TimeZone" })).data, (zone) => zone === "America/New_York");
    const { data } = await service.from("kinds").insert({ id: 2, moment: `${day}T04:05:06Z`, span: "26 hours", approx: 0.1 }).select("moment, span, approx").single();
    assert.deepEqual(data, { moment: "2026-02-02T23:05:06-05:00", span: "PT26H", approx: 0.1 });
    await owner`alter database postgres reset timezone`;
    await owner`alter role authenticator reset intervalstyle`;
  });
});

describe("pgrst.* of the role authenticator", () => {
  test("rows, schemas, aggregates, a function before each request; and back", async () => {
    await owner.unsafe(`
      create table private.secrets (id integer primary key);
      grant usage on schema private to service_role;
      grant all on private.secrets to service_role;
      create function public.check_request() returns void language plpgsql as $$
      begin
        if current_setting('request.headers')::json ->> 'x-deny' = 'yes' then
          raise sqlstate 'PT403' using message = 'denied at ' || current_setting('request.path');
        end if;
      end $$;
      alter role authenticator set pgrst.db_max_rows = '2';
      alter role authenticator set pgrst.db_schemas = 'public, private';
      alter role authenticator set pgrst.db_aggregates_enabled = 'true';
      alter role authenticator set pgrst.db_pre_request = 'public.check_request';
      alter role authenticator set pgrst.openapi_mode = 'disabled';
      notify pgrst, 'reload config';`);
    await eventually(async () => (await service.from("many").select()).data?.length, (length) => length === 2);
    assert.deepEqual((await service.from("books").select("pages.sum()")).data, [{ sum: 30 }]);
    assert.deepEqual((await service.schema("private").from("secrets").insert({ id: 7 }).select()).data, [{ id: 7 }]);
    const denied = await service.from("books").select("id").setHeader("x-deny", "yes");
    assert.deepEqual([denied.status, denied.error?.code, denied.error?.message], [403, "PT403", "denied at /books"]);
    assert.match(server.errors(), /pgrst\.openapi_mode of the role authenticator is not followed here/);

    for (const name of ["db_max_rows", "db_schemas", "db_aggregates_enabled", "db_pre_request"]) {
      await owner.unsafe(`alter role authenticator reset pgrst.${name}`);
    }
    await owner`notify pgrst, 'reload config'`;
    await eventually(async () => (await service.from("many").select()).data?.length, (length) => length === 1000);
    assert.equal((await service.schema("private").from("secrets").select()).error?.code, "PGRST106");
  });
});

describe("Auth", () => {
  test("a user that a seed made signs in with the password", async () => {
    for (const email of ["seeded@example.com", "Seeded@example.com"]) {
      const supabase = client(server);
      const { data, error } = await supabase.auth.signInWithPassword({ email, password: "correct horse" });
      assert.ifError(error);
      assert.deepEqual([data.user?.id, data.user?.user_metadata.name], ["a0000000-0000-4000-8000-000000000001", "Seeded"]);
      assert.equal(data.user?.identities?.[0].provider, "email");
      assert.deepEqual((await supabase.from("notes").select("body")).data, [{ body: "seeded" }]);
    }
  });

  test("what no session has is told as GoTrue does", async () => {
    const { supabase, session } = await user(server);
    const unknown = await client(server).auth.refreshSession({ refresh_token: "nope" });
    assert.deepEqual([unknown.error?.status, unknown.error?.code], [400, "refresh_token_not_found"]);
    const forged = await client(server).auth.getUser(`${session.access_token.slice(0, -4)}AAAA`);
    assert.deepEqual([forged.error?.status, forged.error?.code], [403, "bad_jwt"]);
    assert.ifError((await supabase.auth.signOut({ scope: "global" })).error);
    const gone = await client(server).auth.getUser(session.access_token);
    assert.equal(gone.error?.name, "AuthSessionMissingError"); // supabase-js's name for session_not_found
    const again = await client(server).auth.refreshSession(session);
    assert.deepEqual([again.error?.status, again.error?.code], [400, "refresh_token_not_found"]);
  });

  test("half a body makes no user", async () => {
    const response = await fetch(`${server.api_url}/auth/v1/signup`, { method: "POST", headers: { apikey: server.publishable_key }, body: '{"email' });
    assert.deepEqual([response.status, (await response.json()).error_code], [400, "bad_json"]);
  });
});
