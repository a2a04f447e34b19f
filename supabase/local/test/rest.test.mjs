// REST as a frontend meets it on a hosted project: requests and what PostgREST 14 documents or its source says of each. What is known to
// differ stands in README.md.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { SignJWT } from "jose";
import { client, start, user } from "./harness.mjs";
import { libraryProject } from "./library.mjs";

/** @typedef {{ method?: string, path: string, body?: unknown, headers?: Record<string, string>, as?: "anon" | "ann" | "service" }} Call */
/** @typedef {{ status: number, body?: unknown, code?: string, message?: string | RegExp, headers?: Record<string, string | null> }} Answer */

/** @type {Awaited<ReturnType<typeof start>>} */
let server;
/** @type {Awaited<ReturnType<typeof user>>} */
let ann;
/** @type {ReturnType<typeof client>} */
let service;
/** @type {(() => unknown)[]} */
const endings = [];

before(async () => {
  const t = { after: (/** @type {() => unknown} */ fn) => endings.unshift(fn) };
  server = await start(t, { supabaseDir: libraryProject(t) });
  ann = await user(server);
  service = client(server, server.secret_key);
});
after(async () => {
  for (const end of endings) await end();
});

/** @param {Call} call */
async function send({ method, path, body, headers = {}, as = "service" }) {
  const isRaw = typeof body === "string" || body instanceof Uint8Array;
  const response = await fetch(`${server.api_url}/rest/v1/${path}`, {
    method: method ?? (body === undefined ? "GET" : "POST"),
    headers: {
      apikey: as === "service" ? server.secret_key : server.publishable_key,
      ...(as === "ann" && { authorization: `Bearer ${ann.session.access_token}` }),
      ...(body !== undefined && { "content-type": "application/json" }),
      ...headers,
    },
    ...(body !== undefined && { body: /** @type {any} */ (isRaw ? body : JSON.stringify(body)) }),
  });
  return { response, text: await response.text() };
}

/** A request and its answer, each a test of its own. @param {string} title @param {Call} call @param {Answer} expected */
function answers(title, call, expected) {
  test(title, async () => {
    const { response, text } = await send(call);
    assert.equal(response.status, expected.status, text);
    if ("body" in expected) assert.deepEqual(expected.body === "" ? text : JSON.parse(text), expected.body);
    if (expected.code) {
      const error = JSON.parse(text);
      assert.deepEqual(Object.keys(error).sort(), ["code", "details", "hint", "message"]);
      assert.equal(error.code, expected.code, text);
      if (expected.message) assert.match(error.message, new RegExp(expected.message));
    }
    for (const [name, value] of Object.entries(expected.headers ?? {})) assert.equal(response.headers.get(name), value, name);
  });
}

const whole = { prefer: "return=representation" };
const one = { accept: "application/vnd.pgrst.object+json" };

describe("no statement without a WHERE clause (pg-safeupdate)", () => {
  answers("an update of everything", { method: "PATCH", path: "letters", body: { body: "x" } },
    { status: 400, code: "21000", message: /^UPDATE requires a WHERE clause$/ });
  answers("a limit is no WHERE clause", { method: "PATCH", path: "letters?limit=1&order=id", body: { body: "x" } }, { status: 400, code: "21000" });
  answers("a delete of everything", { method: "DELETE", path: "letters" }, { status: 400, code: "21000", message: /^DELETE requires a WHERE clause$/ });

  for (const round of ["first", "again, in a session that may know it"]) {
    answers(`inside a function, ${round}`, { path: "rpc/empties_letters", body: {} }, { status: 400, code: "21000", message: /^DELETE requires a WHERE clause$/ });
    answers(`in SQL made by a function, ${round}`, { path: "rpc/rewrites", body: { name: "letters" } }, { status: 400, code: "21000", message: /^UPDATE/ });
    answers(`inside a trigger, ${round}`, { path: "genres", body: { id: 3, name: "verse" } }, { status: 400, code: "21000", message: /^UPDATE/ });
  }
  answers("whatever else stops the function", { path: "rpc/empties_and_fails", body: {} }, { status: 400, code: "21000" });
  answers("with one, a function writes", { path: "rpc/writes", body: {} }, { status: 200, body: 1 });

  test("supabase-js is told so, and nothing is gone", async () => {
    const { error, status } = await /** @type {any} */ (service.from("letters").delete());
    assert.deepEqual([status, error?.code, error?.message], [400, "21000", "DELETE requires a WHERE clause"]);
    assert.equal((await service.from("letters").select("*", { count: "exact", head: true }).lt("id", 3)).count, 2);
  });
});

describe("the rows of a body", () => {
  answers("of different shape, without columns", { path: "letters", body: [{ id: 10, body: "x" }, { id: 11 }] },
    { status: 400, code: "PGRST102", message: /^All object keys must match$/ });
  answers("no row", { path: "letters", body: [], headers: whole }, { status: 201, body: [] });
  answers("half a JSON", { path: "letters", body: '{"id":' }, { status: 400, code: "PGRST102" });
  answers("a column that is none", { path: "letters", body: { id: 15, nope: 1 } },
    { status: 400, code: "PGRST204", message: /^Could not find the 'nope' column of 'letters' in the schema cache$/ });
  answers("an empty object has all defaults", { path: "books?select=pages", body: {}, headers: whole }, { status: 400, code: "23502" });
  answers("CSV, with NULL for none", { path: "letters?select=id,body", body: "id,body\n31,csv\n32,NULL", headers: { ...whole, "content-type": "text/csv" } },
    { status: 201, body: [{ id: 31, body: "csv" }, { id: 32, body: null }] });

  test("a missing key of several rows is null, and the answer is what is stored", async () => {
    const inserted = await service.from("letters").insert([{ id: 12, body: "x", kept: "k" }, { id: 13 }]).select("id, body, kept");
    assert.ifError(inserted.error);
    assert.deepEqual(inserted.data, [{ id: 12, body: "x", kept: "k" }, { id: 13, body: null, kept: null }]);
    assert.deepEqual((await service.from("letters").select("id, body, kept").in("id", [12, 13]).order("id")).data, inserted.data);
  });

  test("or has its default, when that is asked for", async () => {
    const inserted = await service.from("letters").insert([{ id: 14, kept: "k" }, { id: 15 }], { defaultToNull: false }).select("id, kept");
    assert.deepEqual(inserted.data, [{ id: 14, kept: "k" }, { id: 15, kept: "by default" }]);
    assert.deepEqual((await service.from("letters").select("id, kept").in("id", [14, 15]).order("id")).data, inserted.data);
  });

  test("an upsert changes what is there, makes what is not, and numbers a row without a key", async () => {
    const rows = [{ id: 3, title: "Third, revised" }, { title: "Unnumbered" }];
    const { data, error, status } = await service.from("books").upsert(rows, { defaultToNull: false }).select("id, title, pages");
    assert.ifError(error);
    assert.equal(status, 201);
    assert.deepEqual(data?.map(({ title }) => title), ["Third, revised", "Unnumbered"]);
    assert.ok(Number(data?.[1].id) > 100);
    const again = await service.from("authors").upsert({ id: 99, name: "Ann" }, { onConflict: "name", ignoreDuplicates: true }).select();
    assert.deepEqual([again.status, again.data], [201, []]);
  });
});

describe("text that is none", () => {
  const bytes = (/** @type {string} */ start, /** @type {number[]} */ bad, /** @type {string} */ end) =>
    new Uint8Array([...Buffer.from(start), ...bad, ...Buffer.from(end)]);
  for (const [path, body] of [["letters", '{"id":20,"body":"\\ud800"}'], ["kinds", '{"id":20,"data":{"a":"\\ud800"}}'],
    ["rpc/echo_text", '{"value":"\\ud800"}'], ["rpc/echo_jsonb", '{"value":["\\udc00"]}']]) {
    answers(`half of a surrogate pair: ${path}`, { path, body }, { status: 400, code: "22P02", message: /^invalid input syntax for type json$/ });
  }
  for (const [path, body] of [["letters", '{"id":21,"body":"\\u0000"}'], ["kinds", '{"id":21,"data":{"a":"\\u0000"}}'], ["rpc/echo_text", '{"value":"\\u0000"}']]) {
    answers(`U+0000: ${path}`, { path, body }, { status: 400, code: "22P05", message: /^unsupported Unicode escape sequence$/ });
  }
  answers("a byte of a body", { path: "letters", body: bytes('{"id":22,"body":"ä', [0xff], '"}') },
    { status: 400, code: "22021", message: /^invalid byte sequence for encoding "UTF8": 0xff/ });
  answers("a byte of a filter", { path: "letters?body=eq.%C3%A4%ff" }, { status: 400, code: "22021", message: /0xff/ });
  answers("a surrogate in UTF-8", { path: "rpc/echo_text?value=%ed%a0%80" }, { status: 400, code: "22021" });
  answers("U+0000 in a filter", { path: "letters?body=eq.%00" }, { status: 400, code: "22021" });
  answers("a whole pair is text", { path: "rpc/echo_text", body: '{"value":"\\ud83d\\ude00"}' }, { status: 200, body: "😀" });
});

describe("values", () => {
  test("JSON columns and arguments keep what they are given", async () => {
    await service.from("kinds").insert({ id: 30 });
    for (const value of [true, false, 5, "text", "true", "5", "null", "[1,2]", '{"a":1}', "{x", [], {}, [true, null], { a: "[]" }]) {
      const { data, error } = await service.from("kinds").update({ data: value, plain: value }).eq("id", 30).select("data, plain, text:data::text").single();
      assert.ifError(error);
      assert.deepEqual({ ...data, text: JSON.parse(String(data?.text)) }, { data: value, plain: value, text: value });
      assert.deepEqual((await service.rpc("echo_jsonb", { value })).data, value);
      assert.deepEqual(JSON.parse((await send({ path: "rpc/echo_json", body: JSON.stringify(value) })).text), value);
    }
  });

  test("each type is answered as PostgreSQL's to_json has it", async () => {
    const given = {
      id: 1, flag: "yes", small: "7", big: "9007199254740993", exact: "1.50", approx: "NaN", single: 0.1, day: "2026-02-03",
      moment: "2026-02-03T04:05:06.789Z", local: "2026-02-03 04:05", clock: "04:05", span: "26 hours", bytes: "\\x0102",
      uid: "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", mood: "ok", ints: "{1,2}", words: ["a", 'b "c" \\', null, "null", ""], days: "[2026-01-01,2026-02-01]",
      address: "10.0.0.1", label: 12,
    };
    const { text } = await send({ path: "kinds?select=*", body: given, headers: { ...whole, ...one } });
    assert.ok(text.includes('"big":9007199254740993') && text.includes('"exact":1.50'), text);
    assert.deepEqual(JSON.parse(text), {
      ...given, flag: true, small: 7, big: Number(given.big), exact: 1.5, moment: "2026-02-03T04:05:06.789+00:00", local: "2026-02-03T04:05:00",
      clock: "04:05:00", span: "26:00:00", uid: given.uid.toLowerCase(), ints: [1, 2], days: "[2026-01-01,2026-02-02)", label: "12", plain: null, data: null,
    });
  });

  for (const [column, value, code] of /** @type {const} */ ([["flag", "maybe", "22P02"], ["small", 1.5, "22P02"], ["small", 99999, "22003"],
    ["mood", "angry", "22P02"], ["label", "too long", "22001"], ["ints", { a: 1 }, "22P02"], ["ints", [1, "x"], "22P02"]])) {
    answers(`${column} is not ${JSON.stringify(value)}`, { path: "kinds", body: { id: 2, [column]: value } }, { status: 400, code });
  }
});

describe("filters", () => {
  before(() => service.from("letters").insert(["null", "true", "007", "1.50", "a,b", 'say "x"', "{1,2}"].map((body, i) => ({ id: 50 + i, body }))));
  /** @type {[string, number[]][]} */
  const cases = [
    ["body=eq.null", [50]], ["body=eq.true", [51]], ["body=eq.007", [52]], ["body=eq.1.50", [53]], ["body=eq.a,b", [54]], ['body=eq.say "x"', [55]],
    ["body=eq.{1,2}", [56]], ['body=in.(null,1.50,"a,b")', [50, 53, 54]], ["or=(body.eq.true,body.eq.007,and(body.in.(null,7),id.lt.60))", [50, 51, 52]],
    ["body=not.in.(null,true)&id=gte.52", [52, 53, 54, 55, 56]], ["body=like(any).{t*,0*}", [51, 52]], ["body=is.null&id=gte.50", []],
    ["body=match.^[0-9]", [52, 53]],
  ];
  for (const [filter, ids] of cases) {
    answers(filter, { path: `letters?select=id&order=id&id=gte.50&${filter}` }, { status: 200, body: ids.map((id) => ({ id })) });
  }
  for (const [filter, ids] of /** @type {[string, number[]][]} */ ([
    ["about=fts(english).cats", [1]], ["about=wfts.-cat", [2]], ["details->>year=eq.2001", [1]], ["details->year=gt.2001", [2]], ['details=cs.{"year":2002}', [2]],
    ["pages=isdistinct.10", [2]], ["editor_id=not.is.null", [1]], ['or=(title.eq."First",and(pages.gt.15,not.and(id.eq.1)))', [1, 2]],
  ])) {
    answers(filter, { path: `books?select=id&order=id&id=lt.3&${filter}` }, { status: 200, body: ids.map((id) => ({ id })) });
  }
  answers("no operator", { path: "books?id=1" }, { status: 400, code: "PGRST100" });
});

describe("select", () => {
  /** @type {[string, unknown][]} */
  const cases = [
    ["books?select=n:title,p:pages::text&id=eq.1", [{ n: "First", p: "10" }]],
    ["books?select=details->>year,tag:details->tags->0,details->made->>in&id=eq.1", [{ year: "2001", tag: "x", in: "Rome" }]],
    ["books?select=id,author:authors!books_author_id_fkey(name),editor:authors!editor_id(name)&id=eq.2", [{ id: 2, author: { name: "Ann" }, editor: null }]],
    ["books?select=id,authors!editor_id!inner(name)&id=lt.3", [{ id: 1, authors: { name: 'Bob, "the" (old)' } }]],
    ["books?select=id,genres(name)&id=eq.1", [{ id: 1, genres: [{ name: "fact" }, { name: "fiction" }] }]],
    ["books?select=id,...authors!author_id(author:name)&id=eq.1", [{ id: 1, author: "Ann" }]],
    ["authors?select=name,books!author_id(count)&id=eq.1", [{ name: "Ann", books: [{ count: 2 }] }]],
    ["long_books?select=id,authors(name)&id=eq.2", [{ id: 2, authors: { name: "Ann" } }]],
  ];
  for (const [path, body] of cases) answers(path, { path }, { status: 200, body });
  answers("two ways to embed", { path: "books?select=id,authors(name)" }, { status: 300, code: "PGRST201" });
  answers("no way to embed", { path: "books?select=id,kinds(id)" }, { status: 400, code: "PGRST200" });
  answers("no such column", { path: "books?select=nope" }, { status: 400, code: "42703", message: /^column books.nope does not exist$/ });
  answers("no such table", { path: "book" }, { status: 404, code: "PGRST205", message: /^Could not find the table 'public.book' in the schema cache$/ });
  answers("no such schema", { path: "books", headers: { "accept-profile": "private" } }, { status: 406, code: "PGRST106" });
  answers("no aggregates, unless allowed", { path: "books?select=pages.sum()" }, { status: 400, code: "PGRST123" });
});

describe("ranges, counts, single rows", () => {
  const exact = { prefer: "count=exact" };
  answers("all of them", { path: "genres?select=id", headers: exact }, { status: 200, headers: { "content-range": "0-1/2" } });
  answers("a part", { path: "genres?select=id&limit=1", headers: exact }, { status: 206, headers: { "content-range": "0-0/2" } });
  answers("a part by Range", { path: "genres?select=id", headers: { ...exact, range: "1-1" } }, { status: 206, headers: { "content-range": "1-1/2" } });
  answers("beyond the end", { path: "genres?select=id&offset=9", headers: exact }, { status: 416, code: "PGRST103", headers: { "content-range": "*/2" } });
  answers("HEAD", { method: "HEAD", path: "genres", headers: exact }, { status: 200, body: "", headers: { "content-range": "0-1/2" } });
  test("a thousand rows at most", async () => assert.equal((await service.from("many").select("id").limit(1200)).data?.length, 1000));
  answers("none is not one", { path: "genres?id=eq.9", headers: one }, { status: 406, code: "PGRST116" });
  answers("many are not one, and are not changed", { method: "PATCH", path: "genres?id=gt.0", body: { name: "x" }, headers: { ...one, ...whole } },
    { status: 406, code: "PGRST116" });
  answers("nothing was changed", { path: "genres?select=name&order=id" }, { status: 200, body: [{ name: "fact" }, { name: "fiction" }] });
  test("an update answers with what it changed, whatever the filter says now", async () => {
    const { data, error } = await service.from("letters").update({ body: "moved" }).eq("body", "b").select("n:id, body").single();
    assert.ifError(error);
    assert.deepEqual(data, { n: 2, body: "moved" });
  });
  test("a write of two rows is no single row, and is taken back", async () => {
    const { error, status } = await service.from("letters").insert([{ id: 90 }, { id: 91 }]).select("n:id").single();
    assert.deepEqual([status, error?.code], [406, "PGRST116"]);
    assert.deepEqual((await service.from("letters").select("id").in("id", [90, 91])).data, []);
  });
  answers("headers only", { path: "letters", body: { id: 80 }, headers: { prefer: "return=headers-only" } },
    { status: 201, body: "", headers: { location: "/letters?id=eq.80" } });
  answers("tx=rollback is not allowed and passed over", { path: "letters?select=id", body: { id: 81 }, headers: { prefer: "tx=rollback, return=representation" } },
    { status: 201, body: [{ id: 81 }], headers: { "preference-applied": "return=representation" } });
  answers("so the row is there", { path: "letters?select=id&id=eq.81" }, { status: 200, body: [{ id: 81 }] });
  answers("max-affected", { method: "PATCH", path: "letters?id=gt.0", body: { body: "y" }, headers: { prefer: "handling=strict, max-affected=1" } },
    { status: 400, code: "PGRST124" });
  answers("a time zone", { path: "rpc/request_guc?name=TimeZone", headers: { prefer: "timezone=Asia/Tokyo" } },
    { status: 200, body: "Asia/Tokyo", headers: { "preference-applied": "timezone=Asia/Tokyo" } });
});

describe("functions", () => {
  /** @type {[string, Call, Answer][]} */
  const cases = [
    ["a scalar", { path: "rpc/add?a=1&b=2" }, { status: 200, body: 3 }],
    ["a set of scalars", { path: "rpc/numbers" }, { status: 200, body: [1, 2, 3] }],
    ["a row", { path: "rpc/one_book?p_id=1&select=id" }, { status: 200, body: { id: 1 } }],
    ["a set of rows, filtered", { path: "rpc/all_books?select=id&id=gt.1&id=lt.3" }, { status: 200, body: [{ id: 2 }] }],
    ["nothing", { path: "rpc/nothing", body: {} }, { status: 204, body: "" }],
    ["null", { path: "rpc/null_text", body: {} }, { status: 200, body: null }],
    ["a default argument", { path: "rpc/default_arg", body: { a: 1 } }, { status: 200, body: 11 }],
    ["variadic arguments", { path: "rpc/sum_all", body: { numbers: [1, 2, 3] } }, { status: 200, body: 6 }],
    ["text that looks like a number", { path: "rpc/echo_text?value=1.50" }, { status: 200, body: "1.50" }],
    ["text that looks like a filter", { path: "rpc/echo_text?value=eq.null" }, { status: 200, body: "eq.null" }],
    ["a boolean as text", { path: "rpc/echo_text", body: { value: true } }, { status: 200, body: "true" }],
    ["GET does not write", { path: "rpc/writes" }, { status: 405, code: "25006" }],
    ["no such arguments", { path: "rpc/add", body: { a: 1 } }, { status: 404, code: "PGRST202" }],
    ["a table that it lacks", { path: "rpc/reads_what_is_gone", body: {} }, { status: 404, code: "42P01", message: /^relation "public.gone" does not exist$/ }],
    ["an error of its own making", { path: "rpc/teapot", body: {} }, { status: 418, code: "T1", headers: { "x-pot": "tea" } }],
    ["a status of its own", { path: "rpc/custom_status", body: {} }, { status: 202, body: { ok: true }, headers: { "x-made": "here" } }],
    ["its own time limit, shorter", { path: "rpc/quick", body: {} }, { status: 500, code: "57014" }],
    ["its own time limit, longer than the role's", { path: "rpc/patient", body: {}, as: "anon" }, { status: 200, body: "done" }],
    ["the schema comes first in search_path", { path: "rpc/request_guc?name=search_path" }, { status: 200, body: '"public", "public", "extensions"' }],
    ["the method", { path: "rpc/request_guc?name=request.method" }, { status: 200, body: "GET" }],
  ];
  for (const [title, call, expected] of cases) answers(title, call, expected);
});

describe("who may", () => {
  answers("anon without a grant", { path: "notes", as: "anon" }, { status: 401, code: "42501", headers: { "www-authenticate": "Bearer" } });
  answers("a user without a grant", { path: "notes?select=hidden", as: "ann" }, { status: 403, code: "42501", headers: { "www-authenticate": null } });

  const invalid = (/** @type {string} */ message) => `Bearer error="invalid_token", error_description="${message}"`;
  const now = Math.floor(Date.now() / 1000);
  /** @type {[string, () => Promise<string> | string, number, string, string?][]} */
  const tokens = [
    ["expired", () => sign({ exp: now - 60 }), 401, "PGRST303", "JWT expired"],
    ["of tomorrow", () => sign({ exp: now + 999, nbf: now + 500 }), 401, "PGRST303", "JWT not yet valid"],
    ["signed by another", () => sign({ exp: now + 99 }, "another secret of at least 32 characters"), 401, "PGRST301", "No suitable key or wrong key type"],
    ["that is none", () => "nonsense", 401, "PGRST301", "Expected 3 parts in JWT; got 1"],
    ["of an unknown role", () => sign({ exp: now + 99, role: "nobody" }), 401, "22023"],
    ["of a role that is not the API's", () => sign({ exp: now + 99, role: "supabase_admin" }), 403, "42501"],
  ];
  for (const [title, token, status, code, message] of tokens) {
    test(`a token ${title}`, async () => {
      const { response, text } = await send({ path: "rpc/whoami", body: {}, as: "anon", headers: { authorization: `Bearer ${await token()}` } });
      assert.deepEqual([response.status, JSON.parse(text).code], [status, code], text);
      if (message) assert.deepEqual([JSON.parse(text).message, response.headers.get("www-authenticate")], [message, invalid(message)]);
    });
  }
});

/** @param {Record<string, unknown>} claims @param {string} [secret] the scratch project's */
const sign = (claims, secret = "super-secret-jwt-token-with-at-least-32-characters-long") =>
  new SignJWT({ sub: ann.id, role: "authenticated", ...claims }).setProtectedHeader({ alg: "HS256" }).sign(new TextEncoder().encode(secret));
