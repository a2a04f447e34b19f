// Downloads, and what can be known of an object without its bytes.

import { findObject } from "./database.mjs";
import { invalidRange, noSuchBucket, noSuchFile } from "./errors.mjs";
import { checkBucketName, checkKey } from "./limits.mjs";
import { verifySigned } from "./sign.mjs";

/**
 * @typedef {import("./server.mjs").Call} Call
 * @typedef {import("./database.mjs").StoredObject} StoredObject
 */

/** @param {Call} call */
export const download = (call) => serve(call, () => find(call));

/** From a public bucket, without a key. @param {Call} call */
export const downloadPublic = (call) => serve(call, () => findPublic(call));

/** @param {Call} call */
export async function downloadSigned(call) {
  const { exp } = await verifySigned(call, "download");
  return serve(call, () => findAsService(call), new Date(exp * 1000).toUTCString());
}

/** @param {Call} call */
export const head = async (call) => headersOnly(await find(call));

/** @param {Call} call */
export const headPublic = async (call) => headersOnly(await findPublic(call));

/** @param {Call} call */
export const info = async (call) => describe(await find(call));

/** @param {Call} call */
export const infoPublic = async (call) => describe(await findPublic(call));

/** In a public bucket nobody is asked who they are. @param {Call} call */
async function find(call) {
  const { bucket, name, scope, db, isAuthenticated } = call;
  checkBucketName(bucket);
  const found = await db.findBucket(bucket);
  if (!found || !(found.public || isAuthenticated)) throw noSuchBucket();
  if (found.public) return findAsService(call);
  checkKey(name);
  return db.asCaller(scope, (tx) => findObject(tx, bucket, name));
}

/** @param {Call} call */
async function findPublic(call) {
  checkBucketName(call.bucket);
  if (!(await call.db.bucket(call.bucket)).public) throw noSuchBucket();
  return findAsService(call);
}

/** @param {Call} call */
function findAsService({ bucket, name, db }) {
  checkKey(name);
  return db.object(bucket, name);
}

/**
 * @param {Call} call @param {() => Promise<StoredObject>} look @param {string} [expires] HTTP date: the end of a signed URL
 * @returns {Promise<Response>}
 */
async function serve({ request, url, files }, look, expires) {
  let object = await look();
  if (isUnchanged(request.headers, object)) {
    return new Response(null, { status: 304, headers: { etag: object.metadata?.eTag ?? "" } });
  }
  let bytes = await files.read(object.version);
  if (!bytes) { // an upload may have replaced the object meanwhile: the row names the next version then
    object = await look();
    bytes = await files.read(object.version);
  }
  if (!bytes) throw noSuchFile();

  const headers = headersOf(object);
  if (expires) {
    headers.set("expires", expires);
    headers.delete("cache-control");
  }
  const wanted = url.searchParams.get("download");
  if (wanted !== null) {
    const encoded = encodeURIComponent(wanted);
    const named = wanted && ` filename=${encoded}; filename*=UTF-8''${encoded}`;
    headers.set("content-disposition", `attachment;${named}`);
  }
  const range = request.headers.get("range");
  const [first, last] = range === null ? [0, bytes.byteLength - 1] : parseRange(range, bytes.byteLength);
  if (range !== null) headers.set("content-range", `bytes ${first}-${last}/${bytes.byteLength}`);
  headers.set("content-length", String(last - first + 1));
  const body = request.method === "HEAD" ? null : /** @type {any} */ (range === null ? bytes : bytes.subarray(first, last + 1));
  return new Response(body, { status: range === null ? 200 : 206, headers });
}

/** If-None-Match comes before If-Modified-Since (RFC 9110, 13.2.2). @param {Headers} headers @param {StoredObject} object */
function isUnchanged(headers, { metadata }) {
  const tags = headers.get("if-none-match");
  const strong = (/** @type {string} */ tag) => tag.trim().replace(/^W\//, "");
  if (tags !== null) return tags.trim() === "*" || tags.split(",").some((tag) => strong(tag) === metadata?.eTag);
  const since = Date.parse(headers.get("if-modified-since") ?? "");
  return Math.floor(Date.parse(metadata?.lastModified ?? "") / 1000) * 1000 <= since;
}

/**
 * The first and the last byte of `bytes=0-99`, `bytes=100-` or `bytes=-100`; one range, as there.
 * @param {string} range @param {number} size @returns {[number, number]}
 */
function parseRange(range, size) {
  const [, from, to] = /^bytes=(\d*)-(\d*)$/.exec(range) ?? [];
  if (from === undefined || (from === "" && Number(to) === 0)) throw invalidRange();
  const first = from === "" ? Math.max(size - Number(to), 0) : Number(from);
  const last = from === "" || to === "" ? size - 1 : Math.min(Number(to), size - 1);
  if (last < first) throw invalidRange();
  return [first, last];
}

/** @param {StoredObject} object */
function headersOf({ metadata }) {
  const headers = new Headers({ "accept-ranges": "bytes", "x-robots-tag": metadata?.xRobotsTag ?? "none" });
  const { mimetype, eTag, cacheControl, lastModified } = metadata ?? {};
  if (mimetype) headers.set("content-type", mimetype.includes("text/html") ? "text/plain" : mimetype); // no pages from a bucket
  if (eTag) headers.set("etag", eTag);
  if (cacheControl) headers.set("cache-control", cacheControl);
  if (lastModified) headers.set("last-modified", new Date(lastModified).toUTCString());
  return headers;
}

/** @param {StoredObject} object */
function headersOnly(object) {
  const headers = headersOf(object);
  if (object.metadata?.contentLength !== undefined) headers.set("content-length", String(object.metadata.contentLength));
  return new Response(null, { headers });
}

/** @param {StoredObject} object */
function describe({ id, name, version, bucket_id, metadata, user_metadata, updated_at, created_at }) {
  return {
    id, name, version, bucket_id, size: metadata?.size ?? null, content_type: metadata?.mimetype ?? null,
    cache_control: metadata?.cacheControl ?? null, etag: metadata?.eTag ?? null, metadata: user_metadata,
    last_modified: updated_at, created_at,
  };
}
