// Storage as supabase-js sees it, and as raw HTTP where the client hides it. The expected answers are those of Supabase's storage-api.

import assert from "node:assert/strict";
import { readdirSync } from "node:fs";
import { connect } from "node:net";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { SignJWT } from "jose";
import postgres from "postgres";
import { client, start, user } from "./harness.mjs";

const PNG = new Uint8Array([137, 80, 78, 71, 1, 2, 3]);
const SECRET = "super-secret-jwt-token-with-at-least-32-characters-long"; // of scratch/config.toml

/** @type {import("./harness.mjs").Server} */
let server;
/** @type {Awaited<ReturnType<typeof user>>} */
let ann;
/** @type {Awaited<ReturnType<typeof user>>} */
let bob;
/** @type {ReturnType<typeof client>} */
let service;
/** @type {import("postgres").Sql} */
let sql;
/** @type {(() => unknown)[]} */
const endings = [];

before(async () => {
  server = await start({ after: (fn) => endings.unshift(fn) });
  [ann, bob] = [await user(server), await user(server)];
  service = client(server, server.secret_key);
  sql = postgres(server.db_url, { max: 2, onnotice: () => {} });
  endings.unshift(() => sql.end());
});
after(async () => {
  for (const end of endings) await end();
});

/** A bucket of the test's own. @param {string} id @param {Record<string, unknown>} [options] */
async function bucket(id, options = {}) {
  assert.ifError((await service.storage.createBucket(id, { public: false, ...options })).error);
  return service.storage.from(id);
}

/** @param {string} path @param {RequestInit} [init] @param {string} [token] */
function raw(path, init = {}, token = server.secret_key) {
  return fetch(`${server.api_url}/storage/v1${path}`, { ...init, headers: { authorization: `Bearer ${token}`, ...init.headers } });
}

/** @param {string} path @param {unknown} body @param {Record<string, string>} [headers] */
const post = (path, body, headers = {}) =>
  raw(path, { method: "POST", body: JSON.stringify(body), headers: { "content-type": "application/json", ...headers } });

/** @param {Response} response @param {number} status @param {Record<string, unknown>} body */
async function refuses(response, status, body) {
  assert.deepEqual([response.status, await response.json()], [status, body]);
}

const invalidKey = (/** @type {string} */ key) => ({ statusCode: "400", error: "InvalidKey", message: `Invalid key: ${key}`, code: "InvalidKey" });
const notFound = { statusCode: "404", error: "not_found", message: "Object not found", code: "NoSuchKey" };
const noBucket = { statusCode: "404", error: "Bucket not found", message: "Bucket not found", code: "NoSuchBucket" };
const exists = { statusCode: "409", error: "Duplicate", message: "The resource already exists", code: "KeyAlreadyExists" };
const tooLarge = {
  statusCode: "413", error: "Payload too large", message: "The object exceeded the maximum allowed size", code: "EntityTooLarge",
};
const unauthorized = (/** @type {string} */ message) => ({ statusCode: "403", error: "Unauthorized", message, code: "AccessDenied" });
const rowSecurity = unauthorized("new row violates row-level security policy");

const text = (/** @type {string} */ content) => new Blob([content], { type: "text/plain" });

describe("uploads and downloads", () => {
  test("bytes and a Blob come back as they went, with type, length, validators and age", async () => {
    const papers = ann.supabase.storage.from("papers");
    const path = `${ann.id}/a b/(1) it's.png`;
    const uploaded = await papers.upload(path, PNG, { contentType: "image/png", cacheControl: "60" });
    assert.ifError(uploaded.error);
    assert.deepEqual([uploaded.data?.path, uploaded.data?.fullPath], [path, `papers/${path}`]);
    assert.ifError((await papers.upload(`${ann.id}/blob.txt`, text("hello"), { cacheControl: "90" })).error);
    const { data } = await papers.download(path);
    assert.equal(data?.type, "image/png");
    assert.deepEqual(new Uint8Array(await /** @type {Blob} */ (data).arrayBuffer()), PNG);

    const response = await raw(`/object/authenticated/papers/${encodeURI(path)}`, {}, ann.session.access_token);
    const seen = Object.fromEntries(response.headers);
    assert.deepEqual(
      [seen["content-type"], seen["content-length"], seen["cache-control"], seen["accept-ranges"], seen["x-robots-tag"]],
      ["image/png", "7", "max-age=60", "bytes", "none"],
    );
    assert.match(seen.etag, /^"[0-9a-f]{32}"$/);
    assert.ok(Date.parse(seen["last-modified"]) <= Date.now());
    const blob = await raw(`/object/papers/${ann.id}/blob.txt`, {}, ann.session.access_token);
    assert.deepEqual([blob.headers.get("content-type"), blob.headers.get("cache-control")], ["text/plain", "max-age=90"]);
  });

  test("validators save the bytes: If-None-Match, If-Modified-Since, and the former first", async () => {
    const posters = service.storage.from("posters");
    await posters.upload("cached.txt", text("cached"));
    const url = posters.getPublicUrl("cached.txt").data.publicUrl;
    const { headers } = await fetch(url);
    const [etag, modified] = [String(headers.get("etag")), String(headers.get("last-modified"))];
    const status = async (/** @type {Record<string, string>} */ asked) => {
      const response = await fetch(url, { headers: asked });
      return [response.status, (await response.text()).length];
    };
    assert.deepEqual(await status({ "if-none-match": etag }), [304, 0]);
    assert.deepEqual(await status({ "if-none-match": `"other", W/${etag}` }), [304, 0]);
    assert.deepEqual(await status({ "if-none-match": '"other"' }), [200, 6]);
    assert.deepEqual(await status({ "if-modified-since": modified }), [304, 0]);
    assert.deepEqual(await status({ "if-modified-since": new Date(0).toUTCString() }), [200, 6]);
    assert.deepEqual(await status({ "if-none-match": '"other"', "if-modified-since": modified }), [200, 6]);
    await posters.upload("cached.txt", text("changed"), { upsert: true });
    assert.deepEqual(await status({ "if-none-match": etag }), [200, 7]);
  });

  test("a range is served alone, and one outside is refused", async () => {
    const posters = service.storage.from("posters");
    await posters.upload("range.txt", text("0123456789"));
    const url = posters.getPublicUrl("range.txt").data.publicUrl;
    for (const [range, want, content] of [["bytes=2-4", "2-4", "234"], ["bytes=7-", "7-9", "789"], ["bytes=-3", "7-9", "789"], ["bytes=8-99", "8-9", "89"]]) {
      const response = await fetch(url, { headers: { range } });
      assert.deepEqual([response.status, response.headers.get("content-range"), await response.text()], [206, `bytes ${want}/10`, content]);
    }
    for (const range of ["bytes=10-", "bytes=5-2", "bytes=-0", "lines=1-2", "bytes=-"]) {
      await refuses(await fetch(url, { headers: { range } }), 416,
        { statusCode: "416", error: "invalid_range", message: "invalid range provided", code: "InvalidRange" });
    }
  });

  test("?download= names the file, and a page of HTML is served as text", async () => {
    const posters = service.storage.from("posters");
    await posters.upload("page.html", new Blob(["<p>"], { type: "text/html" }));
    const disposition = async (/** @type {string | boolean} */ download) =>
      (await fetch(posters.getPublicUrl("page.html", { download }).data.publicUrl)).headers.get("content-disposition");
    assert.equal(await disposition("a b.txt"), "attachment; filename=a%20b.txt; filename*=UTF-8''a%20b.txt");
    assert.equal(await disposition(true), "attachment;");
    assert.equal((await fetch(posters.getPublicUrl("page.html").data.publicUrl)).headers.get("content-type"), "text/plain");
  });

  test("a rule for crawlers is kept and served, and another text is refused", async () => {
    const upload = (/** @type {string} */ tag) => raw("/object/posters/robots", { method: "PUT", body: "x", headers: { "x-robots-tag": tag } });
    for (const tag of ["noindex, nofollow", "googlebot: noindex", "max-snippet: 5, max-image-preview: large", "unavailable_after: Mon, 25 Jun 2030 15:00:00 GMT, noindex"]) {
      assert.equal((await upload(tag)).status, 200, tag);
      assert.equal((await raw("/object/posters/robots")).headers.get("x-robots-tag"), tag);
    }
    for (const tag of ["sometimes", "noindex,,nofollow", "max-snippet: much"]) {
      assert.equal((await (await upload(tag)).json()).error, "invalid_x_robots_tag", tag);
    }
  });

  test("a second upload of a name is a duplicate, an update or upsert replaces it and leaves no file behind", async () => {
    const box = await bucket("replaced");
    assert.ifError((await box.upload("a.txt", text("1"))).error);
    assert.equal((await box.upload("a.txt", text("2"))).error?.message, "The resource already exists");
    await refuses(await post("/object/replaced/a.txt", {}), 400, exists);
    const files = () => readdirSync(join(server.dataDir, "files"), { recursive: true }).filter((name) => String(name).length > 3).length;
    const [id] = await sql`select id, version from storage.objects where bucket_id = 'replaced'`;
    const count = files();
    assert.ifError((await box.upload("a.txt", text("3"), { upsert: true })).error);
    assert.ifError((await box.update("a.txt", text("4"))).error);
    assert.ifError((await box.update("new.txt", text("5"))).error); // which makes it
    assert.equal(files(), count + 1);
    assert.equal(await (await box.download("a.txt")).data?.text(), "4");
    const [again] = await sql`select id, version from storage.objects where bucket_id = 'replaced' and name = 'a.txt'`;
    assert.equal(again.id, id.id);
    assert.notEqual(again.version, id.version);
  });

  test("uploads of one name at the same moment leave the bytes of one of them, with its own metadata", async () => {
    const box = await bucket("raced");
    const contents = Array.from({ length: 12 }, (_, i) => String(i).repeat(i + 1));
    const uploads = await Promise.all(contents.map((content) => box.upload("a.txt", text(content), { upsert: true })));
    for (const { error } of uploads) assert.ifError(error);
    const content = String(await (await box.download("a.txt")).data?.text());
    assert.ok(contents.includes(content));
    assert.equal((await box.info("a.txt")).data?.size, content.length);
  });

  test("limits: kinds, with image/*, and sizes, of the bucket and of the project, with and without a length", async () => {
    const box = await bucket("limited", { fileSizeLimit: "1KB", allowedMimeTypes: ["image/*", "text/plain"] });
    for (const type of ["image/png", "image/x-anything", "text/plain"]) {
      assert.ifError((await box.upload(`${type}.bin`, PNG, { contentType: type })).error);
    }
    const wrongKind = (/** @type {string} */ type) => (
      { statusCode: "415", error: "invalid_mime_type", message: `mime type ${type} is not supported`, code: "InvalidMimeType" });
    const body = new Uint8Array(1001);
    const upload = (/** @type {string} */ type, /** @type {BodyInit} */ bytes, /** @type {object} */ more = {}) =>
      raw("/object/limited/x", { method: "POST", body: bytes, headers: { "content-type": type }, ...more });
    for (const type of ["text/html", "imagepng", "text/plain;charset=utf-8"]) await refuses(await upload(type, PNG), 400, wrongKind(type));
    await refuses(await upload("image/png", body), 400, tooLarge);
    const stream = () => new Blob([body]).stream();
    await refuses(await upload("image/png", /** @type {any} */ (stream()), { duplex: "half" }), 400, tooLarge);
    assert.equal((await box.upload("x", new Blob([body], { type: "text/plain" }))).error?.message, tooLarge.message);
    assert.ifError((await box.upload("x", new Uint8Array(1000), { contentType: "image/png" })).error);
    await refuses(await raw("/object/posters/big", { method: "POST", body: new Uint8Array(51 * 1024 * 1024) }), 400, tooLarge);
    await refuses(await raw("/object/posters/big", { method: "POST", body: /** @type {any} */ (new Blob([new Uint8Array(51 * 1024 * 1024)]).stream()), ...{ duplex: "half" } }), 400, tooLarge);
    assert.deepEqual((await service.storage.from("posters").list("", { search: "big" })).data, []);
  });

  test("row security decides, before a byte is kept", async () => {
    const papers = ann.supabase.storage.from("papers");
    await papers.upload(`${ann.id}/hers.png`, PNG, { contentType: "image/png" });
    const put = (/** @type {string} */ path, /** @type {string} */ token) =>
      raw(`/object/papers/${path}`, { method: "POST", body: PNG, headers: { "content-type": "image/png" } }, token);
    await refuses(await put(`${bob.id}/x.png`, ann.session.access_token), 400, rowSecurity);
    const others = bob.supabase.storage.from("papers");
    await refuses(await raw(`/object/papers/${ann.id}/hers.png`, {}, bob.session.access_token), 400, notFound);
    await refuses(await raw(`/object/papers/${ann.id}/hers.png`, {}, server.publishable_key), 400, notFound);
    await refuses(await fetch(`${server.api_url}/storage/v1/object/papers/${ann.id}/hers.png`), 400, noBucket);
    assert.ok((await others.createSignedUrl(`${ann.id}/hers.png`, 60)).error);
    assert.deepEqual((await others.list(ann.id)).data, []);
    assert.deepEqual((await others.remove([`${ann.id}/hers.png`])).data, []);
    await refuses(await raw(`/object/papers/${ann.id}/hers.png`, { method: "DELETE" }, bob.session.access_token), 400, unauthorized("Access denied"));
    assert.equal((await others.exists(`${ann.id}/hers.png`)).data, false);
    assert.equal((await papers.exists(`${ann.id}/hers.png`)).data, true);
    await refuses(await put("nobody/x.png", server.publishable_key), 400, rowSecurity);
    await refuses(await raw("/object/none/x", { method: "POST", body: "x" }), 400, noBucket);
  });

  test("policies see the operation, the method and the path", async () => {
    await bucket("watched");
    await sql.unsafe(`create policy "only plain uploads" on storage.objects for insert to authenticated with check (
      bucket_id = 'watched' and storage.allow_only_operation('object.upload') and storage.operation() = 'storage.object.upload'
      and current_setting('request.method') = 'POST' and current_setting('request.path') = '/object/watched/a.txt'
      and metadata ->> 'mimetype' = 'text/plain' and user_metadata ->> 'kind' = 'note')`);
    const watched = ann.supabase.storage.from("watched");
    assert.ifError((await watched.upload("a.txt", text("x"), { metadata: { kind: "note" } })).error);
    assert.equal((await watched.upload("a.txt", text("x"), { metadata: { kind: "other" } })).error?.message, rowSecurity.message);
    assert.ok((await watched.createSignedUploadUrl("a.txt")).error);
  });
});

describe("names", () => {
  const wrong = ["ü.png", "日本/x.png", "a#b.png", "a%b.png", "a\\b", "a[1].png", "a{b}", "a|b", "a~b", "a<b>", 'a"b', "a^b", "a`b", "tab\tx", "a\u0000b", "a\nb"];

  test("an object's name has Storage's characters, wherever it is given", async () => {
    const box = await bucket("named");
    await box.upload("good.txt", text("x"));
    for (const key of wrong) {
      const path = `/object/named/${encodeURIComponent(key)}`;
      for (const method of ["POST", "PUT", "GET"]) {
        await refuses(await raw(path, { method, ...(method !== "GET" && { body: "x" }) }), 400, invalidKey(key));
      }
      await refuses(await raw(path.replace("object/", "object/info/")), 400, invalidKey(key));
      await refuses(await post(path.replace("object/", "object/sign/"), { expiresIn: 60 }), 400, invalidKey(key));
      await refuses(await post(path.replace("object/", "object/upload/sign/"), {}), 400, invalidKey(key));
      for (const verb of ["copy", "move"]) {
        await refuses(await post(`/object/${verb}`, { bucketId: "named", sourceKey: "good.txt", destinationKey: key }), 400, invalidKey(key));
      }
      assert.equal((await raw(path, { method: "HEAD" })).status, 400);
    }
    await refuses(await raw("/object/named/", { method: "POST", body: "x" }), 400, invalidKey(""));
    assert.deepEqual((await box.list()).data?.map(({ name }) => name), ["good.txt"]);
  });

  test("all of Storage's characters are good", async () => {
    const box = service.storage.from("posters");
    const key = "AZaz09_/!.*'() &$=@;:+,?-";
    assert.ifError((await box.upload("AZaz09_/!.*'() &$=@;:+,-", text("x"))).error); // "?" ends the path of supabase-js
    assert.equal((await raw(`/object/posters/${encodeURIComponent(key)}`, { method: "POST", body: "y" })).status, 200);
    assert.equal(await (await raw(`/object/posters/${encodeURIComponent(key)}`)).text(), "y");
  });

  test("a bucket's name has no slash, and at most 100 characters", async () => {
    const body = { statusCode: "400", error: "Invalid Input", message: "Bucket name invalid", code: "InvalidBucketName" };
    for (const name of ["a/b", "ü", " a", "a ", "", "x".repeat(101), "a#"]) await refuses(await post("/bucket", { name }), 400, body);
    await refuses(await raw("/object/%C3%BC/x", { method: "POST", body: "x" }), 400, body);
    await refuses(await raw("/object/a%2Fb/x"), 400, body);
    assert.equal((await post("/bucket", { name: "x".repeat(100) })).status, 200);
  });

  test("a path that is no UTF-8 is refused", async () => {
    assert.equal((await raw("/object/posters/%ff")).status, 400);
  });
});

describe("info and metadata", () => {
  test("info shows what is known of an object, its user metadata too, from a form and from a header", async () => {
    const box = await bucket("described");
    await box.upload("form.txt", text("hello"), { metadata: { origin: "camera", n: 1 }, cacheControl: "7" });
    await box.upload("bytes.png", PNG, { contentType: "image/png", metadata: { origin: "scan" } });
    const { data, error } = await box.info("form.txt");
    assert.ifError(error);
    assert.deepEqual(
      [data?.name, data?.bucketId, data?.size, data?.contentType, data?.cacheControl, data?.metadata],
      ["form.txt", "described", 5, "text/plain", "max-age=7", { origin: "camera", n: 1 }],
    );
    assert.match(String(data?.createdAt), /^\d{4}-\d\d-\d\dT.*Z$/);
    assert.match(String(data?.version), /^[0-9a-f-]{36}$/);
    assert.deepEqual((await box.info("bytes.png")).data?.metadata, { origin: "scan" });
    assert.equal((await box.info("none")).error?.message, "Object not found");
    const head = await raw("/object/authenticated/described/form.txt", { method: "HEAD" });
    assert.deepEqual([head.status, head.headers.get("content-length"), head.headers.get("etag")], [200, "5", data?.etag]);
    assert.equal((await raw("/object/info/public/described/form.txt")).status, 400);
  });

  test("the row has the platform's columns", async () => {
    const papers = ann.supabase.storage.from("papers");
    await papers.upload(`${ann.id}/row/x.png`, PNG, { contentType: "image/png" });
    const [row] = await sql`select * from storage.objects where name = ${`${ann.id}/row/x.png`}`;
    assert.deepEqual([row.owner, row.owner_id, row.path_tokens, row.user_metadata], [ann.id, ann.id, [ann.id, "row", "x.png"], {}]);
    assert.deepEqual(Object.keys(row.metadata).sort(), ["cacheControl", "contentLength", "eTag", "httpStatusCode", "lastModified", "mimetype", "size"]);
    const [parts] = await sql`select storage.foldername('a/b/c.tar.gz') as folder, storage.foldername('c') as none,
                                     storage.filename('a/b/c.tar.gz') as file, storage.extension('a/b/c.tar.gz') as extension`;
    assert.deepEqual({ ...parts }, { folder: ["a", "b"], none: [], file: "c.tar.gz", extension: "gz" });
    const columns = await sql`select table_name || '.' || column_name as name from information_schema.columns
                               where table_schema = 'storage' and table_name in ('buckets', 'objects')`;
    const names = new Set(columns.map(({ name }) => name));
    for (const name of ["avif_autodetection", "file_size_limit", "allowed_mime_types", "owner_id", "type"]) assert.ok(names.has(`buckets.${name}`), name);
    for (const name of ["version", "owner", "owner_id", "path_tokens", "user_metadata", "last_accessed_at"]) assert.ok(names.has(`objects.${name}`), name);
  });
});

describe("copy and move", () => {
  test("copy gives its path, keeps type and metadata, and goes to other buckets", async () => {
    const [from, to] = [await bucket("from"), await bucket("to")];
    await from.upload("a.png", PNG, { contentType: "image/png", metadata: { k: "v" } });
    assert.deepEqual((await from.copy("a.png", "b.png")).data, { path: "from/b.png" });
    assert.deepEqual((await from.copy("a.png", "x/c.png", { destinationBucket: "to" })).data, { path: "to/x/c.png" });
    const info = (await to.info("x/c.png")).data;
    assert.deepEqual([info?.contentType, info?.metadata, info?.size], ["image/png", { k: "v" }, PNG.length]);
    const answer = await (await post("/object/copy", { bucketId: "from", sourceKey: "a.png", destinationKey: "d.png" })).json();
    assert.deepEqual([answer.Key, answer.Id, answer.name, answer.bucket_id], ["from/d.png", answer.id, "d.png", "from"]);
    await refuses(await post("/object/copy", { bucketId: "from", sourceKey: "a.png", destinationKey: "d.png" }), 400, exists);
    const replaced = { bucketId: "from", sourceKey: "a.png", destinationKey: "d.png", copyMetadata: false, metadata: { mimetype: "text/plain" } };
    const headers = { "x-upsert": "true", "x-metadata": Buffer.from('{"new":1}').toString("base64") };
    assert.equal((await post("/object/copy", replaced, headers)).status, 200);
    const changed = (await from.info("d.png")).data;
    assert.deepEqual([changed?.contentType, changed?.metadata], ["text/plain", { new: 1 }]);
    await refuses(await post("/object/copy", { bucketId: "from", sourceKey: "none", destinationKey: "e" }), 400, notFound);
  });

  test("move renames, and takes an object to another bucket", async () => {
    const [here, there] = [await bucket("here"), await bucket("there")];
    await here.upload("a.txt", text("moved"), { metadata: { k: "v" } });
    await here.upload("taken.txt", text("x"));
    assert.equal((await here.move("a.txt", "taken.txt")).error?.message, "The resource already exists");
    assert.deepEqual((await here.move("a.txt", "b.txt")).data, { message: "Successfully moved" });
    assert.ifError((await here.move("b.txt", "c/d.txt", { destinationBucket: "there" })).error);
    assert.equal((await here.exists("a.txt")).data, false);
    assert.equal((await here.exists("b.txt")).data, false);
    assert.equal(await (await there.download("c/d.txt")).data?.text(), "moved");
    assert.deepEqual((await there.info("c/d.txt")).data?.metadata, { k: "v" });
    await refuses(await post("/object/move", { bucketId: "here", sourceKey: "none", destinationKey: "e" }), 400, notFound);
  });

  test("both are for those whom row security lets read the one place and write the other", async () => {
    const papers = ann.supabase.storage.from("papers");
    await papers.upload(`${ann.id}/mine.png`, PNG, { contentType: "image/png" });
    for (const verb of /** @type {const} */ (["copy", "move"])) {
      assert.equal((await papers[verb](`${ann.id}/mine.png`, `${bob.id}/theirs.png`)).error?.message, rowSecurity.message);
      assert.equal((await bob.supabase.storage.from("papers")[verb](`${ann.id}/mine.png`, `${bob.id}/x.png`)).error?.message, "Object not found");
      assert.ifError((await papers[verb](`${ann.id}/mine.png`, `${ann.id}/${verb}.png`)).error);
    }
  });
});

describe("lists", () => {
  before(async () => {
    const box = await bucket("listed");
    for (const name of ["b.txt", "a/1.txt", "a/2.txt", "a/deep/3.txt", "C.txt", "a.txt", "d/x.txt"]) assert.ifError((await box.upload(name, text(name))).error);
  });

  test("one level, folders among the objects, by name whatever the case", async () => {
    const box = service.storage.from("listed");
    const names = async (/** @type {string} */ path, /** @type {object} */ options) =>
      (await box.list(path, options)).data?.map(({ name, id }) => (id === null ? `${name}/` : name));
    assert.deepEqual(await names("", {}), ["a.txt", "a/", "b.txt", "C.txt", "d/"]);
    assert.deepEqual(await names("", { sortBy: { column: "name", order: "desc" } }), ["d/", "C.txt", "b.txt", "a/", "a.txt"]);
    assert.deepEqual(await names("", { limit: 2, offset: 1 }), ["a/", "b.txt"]);
    assert.deepEqual(await names("a", {}), ["1.txt", "2.txt", "deep/"]);
    assert.deepEqual(await names("a/", { search: "DE" }), ["deep/"]);
    assert.deepEqual(await names("", { search: "c" }), ["C.txt"]);
    assert.deepEqual(await names("", { sortBy: { column: "created_at", order: "desc" } }), ["d/", "a/", "a.txt", "C.txt", "b.txt"]);
    assert.deepEqual(await names("none", {}), []);
    const file = (await box.list("", { search: "b" })).data?.[0];
    assert.deepEqual([file?.metadata?.mimetype, file?.metadata?.size], ["text/plain", 5]);
    await refuses(await post("/object/list/listed", {}), 400,
      { statusCode: "400", error: "Error", message: "body must have required property 'prefix'", code: "InvalidRequest" });
    for (const bad of [{ limit: 0 }, { limit: "x" }, { offset: -1 }, { sortBy: { column: "metadata" } }, { sortBy: { column: "name", order: "up" } }]) {
      assert.equal((await post("/object/list/listed", { prefix: "", ...bad })).status, 400, JSON.stringify(bad));
    }
  });

  test("pages go on from a cursor until all was seen once, in every order, with folders and without", async () => {
    const box = service.storage.from("listed");
    for (const column of /** @type {const} */ (["name", "created_at", "updated_at"])) {
      for (const order of /** @type {const} */ (["asc", "desc"])) {
        for (const with_delimiter of [true, false]) {
          const whole = (await box.listV2({ with_delimiter, sortBy: { column, order } })).data;
          /** @type {string[]} */
          const seen = [];
          let cursor;
          do {
            const { data, error } = await box.listV2({ with_delimiter, limit: 2, cursor, sortBy: { column, order } });
            assert.ifError(error);
            seen.push(...[...(data?.folders ?? []), ...(data?.objects ?? [])].map(({ name }) => name));
            cursor = data?.nextCursor;
            assert.equal(data?.hasNext, cursor !== undefined);
          } while (cursor);
          const all = [...(whole?.folders ?? []), ...(whole?.objects ?? [])].map(({ name }) => name);
          assert.equal(new Set(seen).size, seen.length);
          assert.deepEqual([...seen].sort(), [...all].sort(), `${column} ${order} ${with_delimiter}`);
          assert.equal(seen.length, with_delimiter ? 5 : 7);
        }
      }
    }
  });

  test("keys of a page are whole names, and folders end with a slash", async () => {
    const { data } = await service.storage.from("listed").listV2({ prefix: "a/", with_delimiter: true });
    assert.deepEqual(data?.folders.map(({ name, key }) => [name, key]), [["a/deep/", "deep"]]);
    assert.deepEqual(data?.objects.map(({ name }) => name), ["a/1.txt", "a/2.txt"]);
    assert.equal(data?.hasNext, false);
    const descending = await service.storage.from("listed").listV2({ sortBy: { column: "name", order: "desc" } });
    assert.deepEqual(descending.data?.objects.map(({ name }) => name), ["d/x.txt", "b.txt", "a/deep/3.txt", "a/2.txt", "a/1.txt", "a.txt", "C.txt"]);
    await refuses(await post("/object/list-v2/listed", { cursor: "bm9uZQ==" }), 400,
      { statusCode: "400", error: "InvalidParameter", message: "Invalid Parameter continuation token", code: "InvalidParameter" });
  });
});

describe("removal", () => {
  test("many by name, what was there is answered; one by its path", async () => {
    const box = await bucket("emptied");
    for (const name of ["a", "b", "c"]) await box.upload(name, text(name));
    assert.deepEqual((await box.remove(["a", "none", "b"])).data?.map(({ name }) => name).sort(), ["a", "b"]);
    assert.deepEqual(await (await raw("/object/emptied/c", { method: "DELETE" })).json(), { message: "Successfully deleted" });
    await refuses(await raw("/object/emptied/c", { method: "DELETE" }), 400, notFound);
  });

  test("at most 1,000 names a request", async () => {
    const remove = (/** @type {number} */ n) => raw("/object/posters", {
      method: "DELETE", headers: { "content-type": "application/json" }, body: JSON.stringify({ prefixes: Array.from({ length: n }, (_, i) => `n${i}`) }),
    });
    assert.deepEqual(await (await remove(1000)).json(), []);
    const message = "Bulk object requests are limited to 1000 objects per request.";
    await refuses(await remove(1001), 400, { statusCode: "400", error: "InvalidRequest", message, code: "InvalidRequest" });
    await refuses(await remove(0), 400,
      { statusCode: "400", error: "Error", message: "body/prefixes must NOT have fewer than 1 items", code: "InvalidRequest" });
  });

  test("SQL does not delete objects or buckets, whoever asks, unless it says that it means to", async () => {
    const box = await bucket("guarded");
    await box.upload("a", text("a"));
    for (const role of ["supabase_admin", "postgres", "service_role"]) {
      for (const table of ["objects where bucket_id = 'guarded'", "buckets where id = 'none'"]) {
        await assert.rejects(sql.begin(async (tx) => {
          await tx.unsafe(`set local role ${role}`);
          await tx.unsafe(`delete from storage.${table}`);
        }), { code: "42501", message: "Direct deletion from storage tables is not allowed. Use the Storage API instead." });
      }
    }
    const deleted = await sql.begin(async (tx) => {
      await tx`select set_config('storage.allow_delete_query', 'true', true)`;
      return tx`delete from storage.objects where bucket_id = 'guarded' returning id`;
    });
    assert.equal(deleted.length, 1);
  });

  test("a row without a file is an object that cannot be read, and can be removed", async () => {
    const box = await bucket("hollow");
    await sql`insert into storage.objects (bucket_id, name) values ('hollow', 'x')`;
    await refuses(await raw("/object/hollow/x"), 400,
      { statusCode: "404", error: "Not found", message: "The resource was not found", code: "NoSuchKey" });
    assert.equal((await box.remove(["x"])).data?.length, 1);
  });
});

describe("buckets", () => {
  test("sizes are numbers or words in decimal units, at most the project's", async () => {
    for (const [size, bytes] of [["1KB", 1000], ["1.5mb", 1_500_000], ["20B", 20], [77, 77], [null, null], ["50MB", 50_000_000]]) {
      const id = `sized ${size}`;
      assert.ifError((await service.storage.createBucket(id, { public: false, fileSizeLimit: size })).error);
      assert.equal((await service.storage.getBucket(id)).data?.file_size_limit, bytes);
    }
    await refuses(await post("/bucket", { name: "sized", file_size_limit: "5 furlongs" }), 400,
      { statusCode: "400", error: "InvalidRequest", message: "Invalid file size format, hint: use 20GB / 20MB / 30KB / 3B", code: "InvalidRequest" });
    await refuses(await post("/bucket", { name: "sized", file_size_limit: "1GB" }), 400, tooLarge);
    await refuses(await post("/bucket", { name: "sized", allowed_mime_types: ["png"] }), 400,
      { statusCode: "415", error: "invalid_mime_type", message: "mime type png is not supported", code: "InvalidMimeType" });
    await refuses(await post("/bucket", { name: "posters" }), 400, { ...exists, code: "BucketAlreadyExists" });
  });

  test("a bucket is changed in what is named only, emptied, and deleted when it is empty", async () => {
    const box = await bucket("changed", { fileSizeLimit: 5, allowedMimeTypes: ["text/plain"] });
    assert.deepEqual((await service.storage.updateBucket("changed", { public: true })).data, { message: "Successfully updated" });
    const { data } = await service.storage.getBucket("changed");
    assert.deepEqual([data?.public, data?.file_size_limit, data?.allowed_mime_types, data?.type], [true, 5, ["text/plain"], "STANDARD"]);
    assert.ifError((await service.storage.updateBucket("changed", { public: true, fileSizeLimit: null, allowedMimeTypes: null })).error);
    await box.upload("a", PNG, { contentType: "image/png" });
    await refuses(await raw("/bucket/changed", { method: "DELETE" }), 400, {
      statusCode: "409", error: "ResourceNotEmpty", message: "The bucket you tried to delete is not empty", code: "ResourceNotEmpty",
    });
    assert.ifError((await service.storage.emptyBucket("changed")).error);
    assert.deepEqual((await box.list()).data, []);
    assert.deepEqual((await service.storage.deleteBucket("changed")).data, { message: "Successfully deleted" });
    await refuses(await raw("/bucket/changed"), 400, noBucket);
    await refuses(await raw("/bucket/changed", { method: "PUT", body: "{}", headers: { "content-type": "application/json" } }), 400,
      { statusCode: "400", error: "Error", message: "body must have required property 'public'", code: "InvalidRequest" });
  });

  test("users see and make none without a policy, and none but the service empties one", async () => {
    assert.deepEqual((await ann.supabase.storage.listBuckets()).data, []);
    assert.equal((await ann.supabase.storage.getBucket("posters")).error?.message, "Bucket not found");
    assert.equal((await ann.supabase.storage.createBucket("hers", { public: false })).error?.message, rowSecurity.message);
    await refuses(await raw("/bucket/posters/empty", { method: "POST" }, ann.session.access_token), 403, unauthorized("Access denied: Invalid role"));
    const all = (await service.storage.listBuckets({ search: "post", sortColumn: "name", sortOrder: "desc", limit: 1 })).data;
    assert.deepEqual(all?.map(({ id }) => id), ["posters"]);
  });

  test("a public bucket is open to everybody's eyes and nobody's hands", async () => {
    assert.ifError((await service.storage.from("posters").upload("one.txt", text("hi"))).error);
    const { publicUrl } = client(server).storage.from("posters").getPublicUrl("one.txt").data;
    assert.equal(await (await fetch(publicUrl)).text(), "hi");
    assert.equal(await (await fetch(publicUrl.replace("/public/", "/"))).text(), "hi");
    assert.equal((await fetch(publicUrl, { method: "HEAD" })).headers.get("content-length"), "2");
    assert.ok((await ann.supabase.storage.from("posters").upload("two.txt", text("x"))).error);
    await service.storage.from("papers").upload("private.txt", text("x"));
    await refuses(await fetch(client(server).storage.from("papers").getPublicUrl("private.txt").data.publicUrl), 400, noBucket);
  });
});

describe("signed URLs and tokens", () => {
  const token = (/** @type {Record<string, unknown>} */ claims, /** @type {number} */ exp, secret = SECRET) =>
    new SignJWT({ ...claims, exp }).setProtectedHeader({ alg: "HS256" }).sign(new TextEncoder().encode(secret));
  const past = Math.floor(Date.now() / 1000) - 60;
  const future = past + 3600;

  test("a link to download works without a key, until it expires, and for its object only", async () => {
    const papers = ann.supabase.storage.from("papers");
    const path = `${ann.id}/a (1) + b.png`;
    await papers.upload(path, PNG, { contentType: "image/png" });
    const { data, error } = await papers.createSignedUrl(path, 60, { download: "picture.png" });
    assert.ifError(error);
    const response = await fetch(String(data?.signedUrl));
    assert.deepEqual(new Uint8Array(await response.arrayBuffer()), PNG);
    assert.match(String(response.headers.get("content-disposition")), /filename=picture\.png/);
    assert.ok(Date.parse(String(response.headers.get("expires"))) > Date.now());

    const link = (/** @type {string} */ jwt) => `${server.api_url}/storage/v1/object/sign/papers/${encodeURI(path)}?token=${jwt}`;
    const jwtError = (/** @type {string} */ message) => ({ statusCode: "400", error: "InvalidJWT", message, code: "InvalidJWT" });
    const claims = { url: `papers/${path}`, scope: "download" };
    assert.equal((await fetch(link(await token(claims, future)))).status, 200);
    await refuses(await fetch(link(await token(claims, past))), 400, jwtError('"exp" claim timestamp check failed'));
    await refuses(await fetch(link(await token(claims, future, "another secret of at least 32 characters"))), 400, jwtError("signature verification failed"));
    await refuses(await fetch(link("nonsense")), 400, jwtError("Invalid Compact JWS"));
    const signature = (/** @type {string} */ message) => ({ statusCode: "400", error: "InvalidSignature", message, code: "InvalidSignature" });
    await refuses(await fetch(link(await token({ ...claims, url: "papers/other" }, future))), 400, signature("Invalid signature"));
    await refuses(await fetch(link(await token({ ...claims, scope: "upload" }, future))), 400, signature("Token is not scoped for download"));
    assert.equal((await fetch(link("x").split("?")[0])).status, 400);
    for (const expiresIn of [0, -1, "soon", undefined]) {
      assert.equal((await post(`/object/sign/papers/${encodeURI(path)}`, { expiresIn })).status, 400, String(expiresIn));
    }
  });

  test("many links at once: null where the object is not, or not theirs", async () => {
    const papers = ann.supabase.storage.from("papers");
    await papers.upload(`${ann.id}/many.png`, PNG, { contentType: "image/png" });
    const { data, error } = await papers.createSignedUrls([`${ann.id}/many.png`, `${ann.id}/none.png`], 60);
    assert.ifError(error);
    assert.equal((await fetch(String(data?.[0].signedUrl))).status, 200);
    assert.deepEqual([data?.[1].signedUrl, data?.[1].error], [null, "Either the object does not exist or you do not have access to it"]);
    const theirs = await bob.supabase.storage.from("papers").createSignedUrls([`${ann.id}/many.png`], 60);
    assert.equal(theirs.data?.[0].signedUrl, null);
  });

  test("a place to upload to can be signed away: once, or with upsert again", async () => {
    const papers = ann.supabase.storage.from("papers");
    const anyone = client(server).storage.from("papers");
    const { data, error } = await papers.createSignedUploadUrl(`${ann.id}/later.txt`);
    assert.ifError(error);
    const put = (/** @type {string} */ jwt, /** @type {string} */ content) => anyone.uploadToSignedUrl(`${ann.id}/later.txt`, jwt, text(content));
    assert.ifError((await put(String(data?.token), "x")).error);
    assert.equal((await put(String(data?.token), "y")).error?.message, "The resource already exists");
    assert.equal((await papers.createSignedUploadUrl(`${ann.id}/later.txt`)).error?.message, "The resource already exists");
    const again = await papers.createSignedUploadUrl(`${ann.id}/later.txt`, { upsert: true });
    assert.ifError(again.error);
    assert.ifError((await put(String(again.data?.token), "z")).error);
    assert.equal(await (await papers.download(`${ann.id}/later.txt`)).data?.text(), "z");
    const [{ owner_id }] = await sql`select owner_id from storage.objects where name = ${`${ann.id}/later.txt`}`;
    assert.equal(owner_id, ann.id);
    assert.ok((await papers.createSignedUploadUrl(`${bob.id}/x.txt`)).error);
    const download = await token({ url: `papers/${ann.id}/later.txt`, scope: "download" }, future);
    assert.equal((await put(download, "w")).error?.message, "Token is not scoped for upload");
  });

  test("a user's token that is expired or forged, and none, are refused in Storage's words", async () => {
    const claims = { role: "authenticated", sub: ann.id };
    const path = "/object/list/papers";
    const list = (/** @type {Record<string, string>} */ headers) => fetch(`${server.api_url}/storage/v1${path}`, {
      method: "POST", body: '{"prefix":""}', headers: { "content-type": "application/json", ...headers },
    });
    const bearer = (/** @type {string} */ jwt) => ({ apikey: server.publishable_key, authorization: `Bearer ${jwt}` });
    await refuses(await list(bearer(await token(claims, past))), 400, unauthorized('"exp" claim timestamp check failed'));
    await refuses(await list(bearer(await token(claims, future, "another secret of at least 32 characters"))), 400, unauthorized("signature verification failed"));
    await refuses(await list(bearer("nonsense")), 400, unauthorized("Invalid Compact JWS"));
    await refuses(await list({}), 400,
      { statusCode: "400", error: "Error", message: "headers must have required property 'authorization'", code: "InvalidRequest" });
    assert.equal((await list({ apikey: server.secret_key })).status, 200);
    assert.equal((await list({ apikey: "sb_secret_wrong" })).status, 401);
    await refuses(await raw("/object/papers/x", {}, await token(claims, past)), 400, noBucket); // as nobody, who sees public buckets only
  });
});

test("what is not offered says so by name, and no route is a 404", async () => {
  const error = (/** @type {string} */ feature) => (
    { statusCode: "409", error: "FeatureNotEnabled", message: `The feature ${feature} is not enabled for this resource`, code: "FeatureNotEnabled" });
  await refuses(await post("/upload/resumable", {}), 400, error("resumable uploads"));
  await refuses(await raw("/render/image/public/posters/x"), 400, error("image transformation"));
  await refuses(await raw("/s3/posters"), 400, error("S3 protocol"));
  await refuses(await raw("/nothing"), 404, { statusCode: "404", error: "Not Found", message: "Route GET:/nothing not found", code: "InvalidRequest" });
});

test("an upload whose connection breaks in the middle leaves neither a row nor a file", async () => {
  const box = await bucket("broken");
  for (let i = 0; i < 10; i++) {
    const [length, half] = i % 2 ? ["content-length: 1000", "half"] : ["transfer-encoding: chunked", "4\r\nhalf\r\n"];
    const socket = connect(Number(new URL(server.api_url).port), "127.0.0.1");
    await new Promise((resolve) => socket.write([
      `POST /storage/v1/object/broken/half${i} HTTP/1.1`, "host: x", `authorization: Bearer ${server.secret_key}`,
      "content-type: text/plain", length, "", half,
    ].join("\r\n"), resolve));
    socket.destroy();
    assert.ifError((await box.upload("whole", text("x"), { upsert: true })).error);
  }
  assert.deepEqual((await box.list()).data?.map(({ name }) => name), ["whole"]);
});
