// Buckets: made, changed, emptied and deleted as the caller, so that row security on storage.buckets decides.

import { accessDenied, bucketNotEmpty, duplicate, invalidBucketName, invalidRequest, noSuchBucket } from "./errors.mjs";
import { checkAllowedMimeTypes, checkBucketName, parseSizeLimit } from "./limits.mjs";
import { readJson, readQuery } from "./body.mjs";

/** @typedef {import("./server.mjs").Call} Call */

const SETTINGS = /** @type {const} */ ({
  public: { type: "boolean" }, allowed_mime_types: { type: "array", nullable: true, of: { type: "string" } },
});

/** @param {Call} call */
export async function listBuckets({ url, scope, db }) {
  const { limit = null, offset = 0, sortColumn, sortOrder = "asc", search = "" } = readQuery(url, {
    limit: { type: "integer", minimum: 1 }, offset: { type: "integer", minimum: 0 }, search: { type: "string" },
    sortColumn: { type: "string", oneOf: ["id", "name", "created_at", "updated_at"] },
    sortOrder: { type: "string", oneOf: ["asc", "desc"] },
  });
  const buckets = await db.asCaller(scope, (tx) => tx`
    select * from storage.buckets where strpos(lower(name), lower(${search})) > 0
    ${sortColumn ? tx`order by ${tx(sortColumn)} ${sortOrder === "desc" ? tx`desc` : tx`asc`}` : tx``}
    limit ${limit}::bigint offset ${offset}`);
  return buckets.map(shown);
}

/** @param {Call} call */
export async function getBucket({ bucket: id, scope, db }) {
  const [bucket] = await db.asCaller(scope, (tx) => tx`select * from storage.buckets where id = ${id}`);
  if (!bucket) throw noSuchBucket();
  return shown(bucket);
}

/** @param {Call} call */
export async function createBucket({ request, scope, db, sizeLimit }) {
  const { name, id = name, ...settings } = await readJson(request, {
    name: { type: "string", required: true }, id: { type: "string" }, type: { type: "string", oneOf: ["STANDARD"] }, ...SETTINGS,
  });
  if (name.trim() !== name) throw invalidBucketName();
  checkBucketName(name);
  const owner = scope.claims.sub ?? null;
  const { public: isPublic = false, ...columns } = columnsOf(settings, sizeLimit);
  await db.asCaller(scope, async (tx) => {
    try {
      const row = { id, name, owner, owner_id: owner, public: isPublic, ...columns };
      await tx`insert into storage.buckets ${tx(/** @type {any} */ (row))}`;
    } catch (error) {
      throw /** @type {any} */ (error).code === "23505" ? duplicate("BucketAlreadyExists") : error;
    }
  });
  return { name };
}

/** @param {Call} call */
export async function updateBucket({ request, bucket: id, scope, db, sizeLimit }) {
  const columns = columnsOf(await readJson(request, SETTINGS), sizeLimit);
  if (Object.keys(columns).length === 0) throw invalidRequest("body must have required property 'public'", "Error");
  checkBucketName(id);
  const updated = await db.asCaller(scope, (tx) => tx`
    update storage.buckets set ${tx(/** @type {any} */ (columns))} where id = ${id} returning id`);
  if (updated.length === 0) throw noSuchBucket();
  return { message: "Successfully updated" };
}

/** At once, where the platform's answer promises it for later. Of the service only. @param {Call} call */
export async function emptyBucket({ bucket: id, scope, db, files }) {
  if (scope.claims.role !== "service_role") throw accessDenied("Access denied: Invalid role", 403);
  await db.bucket(id);
  const deleted = await db.asService(scope, (tx) => tx`delete from storage.objects where bucket_id = ${id} returning version`);
  await files.remove(deleted.map(({ version }) => version));
  return { message: "Empty bucket has been queued. Completion may take up to an hour." };
}

/** @param {Call} call */
export async function deleteBucket({ bucket: id, scope, db }) {
  await db.bucket(id);
  const [object] = await db.sql`select from storage.objects where bucket_id = ${id} limit 1`;
  if (object) throw bucketNotEmpty();
  const deleted = await db.asCaller(scope, (tx) => tx`delete from storage.buckets where id = ${id} returning id`);
  if (deleted.length === 0) throw noSuchBucket();
  return { message: "Successfully deleted" };
}

/**
 * The columns that a request names, and no others.
 * @param {any} settings @param {number} sizeLimit
 * @returns {{ public?: boolean, file_size_limit?: number | null, allowed_mime_types?: string[] | null }}
 */
function columnsOf({ public: isPublic, file_size_limit: size, allowed_mime_types: types }, sizeLimit) {
  if (types) checkAllowedMimeTypes(types.filter(Boolean));
  return {
    ...(isPublic !== undefined && { public: isPublic }),
    ...(size !== undefined && { file_size_limit: size === null ? null : parseSizeLimit(size, sizeLimit) }),
    ...(types !== undefined && { allowed_mime_types: types && types.filter(Boolean) }),
  };
}

/** @param {any} bucket */
function shown({ id, name, owner, public: isPublic, type, file_size_limit, allowed_mime_types, created_at, updated_at }) {
  return {
    id, name, owner: owner ?? "", public: isPublic, type, created_at, updated_at,
    file_size_limit: file_size_limit && Number(file_size_limit), allowed_mime_types,
  };
}
