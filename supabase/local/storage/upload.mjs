// Uploads: a body, plain or as a form, becomes a file and a row. The order of the checks is storage-api's.

import { insertObject, upsertObject } from "./database.mjs";
import { entityTooLarge, invalidRequest } from "./errors.mjs";
import { checkBucketName, checkKey, checkMimeType, checkRobotsTag, isEmptyFolder } from "./limits.mjs";
import { verifySigned } from "./sign.mjs";

/**
 * @typedef {import("./server.mjs").Call} Call
 * @typedef {{ bytes: Uint8Array, mimetype: string, cacheControl: string, userMetadata?: unknown }} Upload
 */

const FORM_OVERHEAD = 2 * 1024 * 1024; // bytes of a form beside its file: boundaries, and user metadata of at most 1 MiB
const MOST_USER_METADATA = 1024 * 1024;

/** @param {Call} call */
export async function upload(call) {
  const { id } = await save(call, { owner: call.scope.claims.sub, upsert: call.request.headers.get("x-upsert") === "true" });
  return { Id: id, Key: `${call.bucket}/${call.name}` };
}

/** @param {Call} call */
export async function update(call) {
  const { id } = await save(call, { owner: call.scope.claims.sub, upsert: true });
  return { Id: id, Key: `${call.bucket}/${call.name}` };
}

/** Through a signed URL: the token says who owns the object and whether it may replace one. @param {Call} call */
export async function uploadSigned(call) {
  const { owner, upsert } = await verifySigned(call, "upload");
  await save({ ...call, scope: { ...call.scope, claims: { role: "service_role" } } }, { owner, upsert });
  return { Key: `${call.bucket}/${call.name}` };
}

/** @param {Call} call @param {{ owner?: string, upsert: boolean }} options */
async function save({ request, bucket, name, scope, db, files, sizeLimit }, { owner, upsert }) {
  checkBucketName(bucket);
  const { file_size_limit, allowed_mime_types } = await db.bucket(bucket);
  const most = isEmptyFolder(name) ? 0 : Math.min(sizeLimit, Number(file_size_limit ?? Infinity));
  const checkType = (/** @type {string} */ type) => {
    if (allowed_mime_types?.length && !isEmptyFolder(name)) checkMimeType(type, allowed_mime_types);
  };
  const xRobotsTag = request.headers.get("x-robots-tag") ?? undefined;
  if (xRobotsTag !== undefined) checkRobotsTag(xRobotsTag);
  const { bytes, mimetype, cacheControl, userMetadata } = await readUpload(request, most, checkType);
  checkKey(name);
  await testUpload(db, scope, { bucket, name, owner, metadata: { mimetype, contentLength: bytes.byteLength }, userMetadata }, upsert);

  const { version, eTag, size, lastModified } = await files.write(bytes);
  const metadata = { eTag, size, mimetype, cacheControl, lastModified, contentLength: size, httpStatusCode: 200, xRobotsTag };
  const object = { bucket, name, version, owner, metadata, userMetadata: { .../** @type {any} */ (userMetadata) } };
  return store(db, files, scope, object);
}

/**
 * Row security, asked by the statement that would store the object.
 * @param {Call["db"]} db @param {Call["scope"]} scope @param {import("./database.mjs").NewObject} object @param {boolean} upsert
 */
export function testUpload(db, scope, object, upsert) {
  return db.test(scope, (tx) => (upsert ? upsertObject(tx, object) : insertObject(tx, object)));
}

/**
 * Points the row at the new version and removes the file of the one before. A file whose row could not be written is
 * removed too.
 * @param {Call["db"]} db @param {Call["files"]} files @param {Call["scope"]} scope
 * @param {import("./database.mjs").NewObject} object
 */
export async function store(db, files, scope, object) {
  let stored;
  try {
    stored = await db.asService(scope, async (tx) => {
      const [before] = await tx`
        select version from storage.objects where bucket_id = ${object.bucket} and name = ${object.name} for update`;
      return { before, saved: await upsertObject(tx, object) };
    });
  } catch (error) {
    await files.remove([object.version]);
    throw error;
  }
  await files.remove([stored.before?.version]);
  return stored.saved;
}

/**
 * supabase-js uploads a Blob as a form, and bytes as they are.
 * @param {Request} request @param {number} most bytes @param {(type: string) => void} checkType @returns {Promise<Upload>}
 */
async function readUpload(request, most, checkType) {
  const { headers } = request;
  const type = headers.get("content-type") ?? "application/octet-stream";
  if (type.startsWith("multipart/form-data")) return readForm(request, type, most, checkType);
  checkType(type);
  if (Number(headers.get("content-length")) > most) throw entityTooLarge();
  return {
    bytes: await readBytes(request, most),
    mimetype: type,
    cacheControl: headers.get("cache-control") ?? "no-cache",
    userMetadata: decodeMetadata(headers.get("x-metadata")),
  };
}

/**
 * @param {Request} request @param {string} type @param {number} most @param {(type: string) => void} checkType
 * @returns {Promise<Upload>}
 */
async function readForm(request, type, most, checkType) {
  const body = await readBytes(request, most + FORM_OVERHEAD);
  const response = new Response(/** @type {BodyInit} */ (body), { headers: { "content-type": type } });
  const form = await response.formData().catch(() => new FormData());
  const file = [...form.values()].find((value) => value instanceof Blob);
  if (!(file instanceof Blob)) throw invalidRequest("No content provided");
  const field = (/** @type {string} */ name) => {
    const value = form.get(name);
    return typeof value === "string" ? value : undefined;
  };
  const mimetype = field("contentType") || file.type || "application/octet-stream";
  checkType(mimetype);
  const metadata = field("metadata") ?? field("userMetadata");
  if (metadata !== undefined && Buffer.byteLength(metadata) > MOST_USER_METADATA) throw entityTooLarge("user_metadata");
  if (file.size > most) throw entityTooLarge();
  const age = field("cacheControl");
  return {
    bytes: new Uint8Array(await file.arrayBuffer()),
    mimetype,
    cacheControl: age ? `max-age=${age}` : "no-cache",
    userMetadata: metadata && parse(metadata),
  };
}

/**
 * At most `most` bytes. The rest of a longer body is read and discarded while the refusal is answered: the connection
 * would break otherwise before the client reads it. A body that was cut off by a broken connection is no upload.
 * @param {Request} request @param {number} most
 */
async function readBytes({ body, headers, signal }, most) {
  if (!body) return new Uint8Array();
  const reader = body.getReader();
  /** @type {Uint8Array[]} */
  const chunks = [];
  let size = 0;
  for (let next = await reader.read(); next.value; next = await reader.read()) {
    size += next.value.byteLength;
    if (size > most) {
      void discard(reader).catch(() => {});
      throw entityTooLarge();
    }
    chunks.push(next.value);
  }
  const declared = headers.get("content-length");
  const isCutOff = declared === null ? signal.aborted : size < Number(declared);
  if (isCutOff) throw invalidRequest("Request stream closed before upload could complete");
  return chunks.length === 1 ? chunks[0] : Buffer.concat(chunks, size);
}

/** @param {ReadableStreamDefaultReader<Uint8Array>} reader */
async function discard(reader) {
  while (!(await reader.read()).done);
}

/** @param {string | null} text user metadata as JSON in base64 */
export const decodeMetadata = (text) => (text === null ? undefined : parse(Buffer.from(text, "base64").toString()));

/** User metadata that is no JSON is none, as there. @param {string} text */
function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
