// Signed URLs. A token is bound to one object and one action, so that a link to download is none to upload.

import { findObject } from "./database.mjs";
import { invalidJwt, invalidParameter, invalidSignature } from "./errors.mjs";
import { checkBucketName, checkKey } from "./limits.mjs";
import { decodeMetadata, testUpload } from "./upload.mjs";
import { readJson } from "./body.mjs";

/** @typedef {import("./server.mjs").Call} Call */

const UPLOAD_SECONDS = 2 * 60 * 60; // a hosted project's
const EXPIRES_IN = /** @type {const} */ ({ type: "integer", minimum: 1, required: true });

/** @param {Call} call */
export async function signOne({ request, bucket, name, scope, db, keys }) {
  const { expiresIn } = await readJson(request, { expiresIn: EXPIRES_IN });
  checkBucketName(bucket);
  checkKey(name);
  await db.asCaller(scope, (tx) => findObject(tx, bucket, name));
  return { signedURL: await downloadUrl(keys, `${bucket}/${name}`, expiresIn) };
}

/** @param {Call} call */
export async function signMany({ request, bucket, scope, db, keys }) {
  const paths = /** @type {const} */ ({ type: "array", minItems: 1, required: true, of: { type: "string" } });
  const { expiresIn, paths: names } = await readJson(request, { expiresIn: EXPIRES_IN, paths });
  checkBucketName(bucket);
  const found = await db.asCaller(scope, (tx) => tx`
    select name from storage.objects where bucket_id = ${bucket} and name = any (${names})`);
  const known = new Set(found.map(({ name }) => name));
  return Promise.all(names.map(async (/** @type {string} */ path) => (known.has(path)
    ? { error: null, path, signedURL: await downloadUrl(keys, `${bucket}/${path}`, expiresIn) }
    : { error: "Either the object does not exist or you do not have access to it", path, signedURL: null })));
}

/** @param {Call} call */
export async function signUpload({ request, bucket, name, scope, db, keys }) {
  checkBucketName(bucket);
  checkKey(name); // storage-api refuses it at the upload only
  const { headers } = request;
  const upsert = headers.get("x-upsert") === "true";
  const owner = scope.claims.sub;
  const metadata = { mimetype: headers.get("content-type") ?? undefined };
  await testUpload(db, scope, { bucket, name, owner, metadata, userMetadata: decodeMetadata(headers.get("x-metadata")) }, upsert);
  const token = await sign(keys, { owner, url: `${bucket}/${name}`, upsert, scope: "upload" }, UPLOAD_SECONDS);
  return { url: `/object/upload/sign/${bucket}/${name}?token=${token}`, token };
}

/**
 * @param {Call} call @param {"download" | "upload"} action
 * @returns {Promise<any>} the claims of the URL's token
 */
export async function verifySigned({ url, bucket, name, keys }, action) {
  checkBucketName(bucket);
  const token = url.searchParams.get("token");
  if (token === null) throw invalidParameter("token", "querystring must have required property 'token'");
  const claims = await keys.verify(token).catch((error) => {
    throw invalidJwt(error.message);
  });
  const scope = claims.scope ?? ("upsert" in claims ? "upload" : "download");
  if (scope !== action) throw invalidSignature(`Token is not scoped for ${action}`);
  if (claims.url !== `${bucket}/${name}`) throw invalidSignature();
  return claims;
}

/**
 * The URL has no percent-encoding but of "?": both clients encode what they get.
 * @param {Call["keys"]} keys @param {string} path @param {number} seconds
 */
async function downloadUrl(keys, path, seconds) {
  return `/object/sign/${path.replaceAll("?", "%3F")}?token=${await sign(keys, { url: path, scope: "download" }, seconds)}`;
}

/** @param {Call["keys"]} keys @param {Record<string, unknown>} claims @param {number} seconds */
function sign(keys, claims, seconds) {
  const iat = Math.floor(Date.now() / 1000);
  const exp = iat + seconds;
  if (!Number.isSafeInteger(exp * 1000)) throw invalidParameter("expiresIn");
  return keys.sign({ ...claims, iat, exp });
}
