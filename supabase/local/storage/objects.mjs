// Copying, moving and removing objects.

import { findObject, shown } from "./database.mjs";
import { accessDenied, invalidRequest, noSuchFile, noSuchKey } from "./errors.mjs";
import { checkBucketName, checkKey } from "./limits.mjs";
import { readJson } from "./body.mjs";
import { decodeMetadata, store, testUpload } from "./upload.mjs";

/** @typedef {import("./server.mjs").Call} Call */

const MOST_REMOVED = 1000; // names a request (storage-api: src/storage/limits.ts)

const TEXT = /** @type {const} */ ({ type: "string" });
const NAME = /** @type {const} */ ({ type: "string", required: true });
const FROM_TO = { bucketId: NAME, sourceKey: NAME, destinationKey: NAME, destinationBucket: TEXT };

/** @param {Call} call */
export async function copy({ request, scope, db, files }) {
  const body = await readJson(request, {
    ...FROM_TO, metadata: { type: "object", fields: { cacheControl: TEXT, mimetype: TEXT } }, copyMetadata: { type: "boolean" },
  });
  const { bucketId, sourceKey, destinationKey, destinationBucket = bucketId, metadata: given, copyMetadata = true } = body;
  checkBucketName(bucketId);
  checkKey(destinationKey);
  const upsert = request.headers.get("x-upsert") === "true";
  const source = await db.asCaller(scope, (tx) => findObject(tx, bucketId, sourceKey));
  const metadata = { ...source.metadata, ...(!copyMetadata && given) };
  const userMetadata = copyMetadata ? source.user_metadata : decodeMetadata(request.headers.get("x-metadata"));
  const object = { bucket: destinationBucket, name: destinationKey, owner: scope.claims.sub, metadata, userMetadata };
  await testUpload(db, scope, object, upsert);

  const bytes = await files.read(source.version);
  if (!bytes) throw noSuchFile();
  const { version, eTag, lastModified } = await files.write(bytes);
  const saved = await store(db, files, scope, { ...object, version, metadata: { ...metadata, eTag, lastModified } });
  return { Id: saved.id, Key: `${destinationBucket}/${destinationKey}`, ...shown(saved) };
}

/** The bytes stay where they are: only the row's name changes, in one statement. @param {Call} call */
export async function move({ request, scope, db }) {
  const { bucketId, sourceKey, destinationKey, destinationBucket = bucketId } = await readJson(request, FROM_TO);
  checkBucketName(bucketId);
  checkKey(destinationKey);
  await db.asCaller(scope, async (tx) => {
    await findObject(tx, bucketId, sourceKey);
    const moved = await tx`
      update storage.objects
         set bucket_id = ${destinationBucket}, name = ${destinationKey}, owner_id = coalesce(${scope.claims.sub ?? null}, owner_id)
       where bucket_id = ${bucketId} and name = ${sourceKey} returning id`;
    if (moved.length === 0) throw noSuchKey();
  });
  return { message: "Successfully moved" };
}

/** @param {Call} call */
export async function remove({ bucket, name, scope, db, files }) {
  checkBucketName(bucket);
  await db.object(bucket, name);
  const deleted = await db.asCaller(scope, (tx) => tx`
    delete from storage.objects where bucket_id = ${bucket} and name = ${name} returning version`);
  if (deleted.length === 0) throw accessDenied();
  await files.remove(deleted.map(({ version }) => version));
  return { message: "Successfully deleted" };
}

/** What the caller may not see or delete is left out of the answer. @param {Call} call */
export async function removeMany({ request, bucket, scope, db, files }) {
  const { prefixes } = await readJson(request, { prefixes: { type: "array", minItems: 1, required: true, of: TEXT } });
  if (prefixes.length > MOST_REMOVED) {
    throw invalidRequest(`Bulk object requests are limited to ${MOST_REMOVED} objects per request.`);
  }
  checkBucketName(bucket);
  const deleted = /** @type {any[]} */ (await db.asCaller(scope, (tx) => tx`
    delete from storage.objects where bucket_id = ${bucket} and name = any (${prefixes}) returning *`));
  await files.remove(deleted.map(({ version }) => version));
  return deleted.map(shown);
}
