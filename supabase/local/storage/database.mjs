// The tables of schema storage, asked as a caller (row security decides) or as the service (which sees everything).

import { duplicate, noSuchBucket, noSuchKey, StorageError } from "./errors.mjs";

/**
 * @typedef {import("../database.mjs").Connection} Connection
 * @typedef {import("../keys.mjs").Claims} Claims
 * @typedef {{ id: string, public: boolean, file_size_limit: string | null,
 *             allowed_mime_types: string[] | null }} Bucket
 * @typedef {{ eTag?: string, size?: number, mimetype?: string, cacheControl?: string, lastModified?: string,
 *             contentLength?: number, httpStatusCode?: number, xRobotsTag?: string }} Metadata
 * @typedef {{ id: string, name: string, bucket_id: string, version: string | null, metadata: Metadata | null,
 *             user_metadata: unknown, owner: string | null, owner_id: string | null, created_at: Date,
 *             updated_at: Date, last_accessed_at: Date }} StoredObject
 * @typedef {{ bucket: string, name: string, version?: string, owner?: string, metadata: Metadata | null,
 *             userMetadata: unknown }} NewObject
 * @typedef {{ claims: Claims, method: string, path: string, headers: Headers, operation: string }} Scope
 */

const SERVICE = { role: "service_role" };
const UNDONE = Symbol("undone");
const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i;

export class StorageDatabase {
  /** @param {{ sql: import("../database.mjs").Sql, pool: import("../database.mjs").Pool }} parts `sql` as superuser */
  constructor({ sql, pool }) {
    this.sql = sql;
    this.pool = pool;
  }

  /**
   * A transaction as the caller, with the settings that policies on storage.objects may read.
   * @template T @param {Scope} scope @param {(tx: Connection) => Promise<T>} work @returns {Promise<T>}
   */
  asCaller(scope, work) {
    return this.pool.transaction(async (tx) => {
      await enter(tx, scope, scope.claims);
      return work(tx);
    });
  }

  /** @template T @param {Scope} scope @param {(tx: Connection) => Promise<T>} work @returns {Promise<T>} */
  asService(scope, work) {
    return this.pool.transaction(async (tx) => {
      await enter(tx, scope, SERVICE);
      return work(tx);
    });
  }

  /**
   * A permission test: the statements run as the caller and are rolled back, so that row security refuses
   * before any byte is stored.
   * @param {Scope} scope @param {(tx: Connection) => Promise<unknown>} work
   */
  async test(scope, work) {
    try {
      await this.asCaller(scope, async (tx) => {
        await work(tx);
        throw UNDONE;
      });
    } catch (error) {
      if (error !== UNDONE) throw error;
    }
  }

  /**
   * A bucket as the service sees it; row security on buckets is for the bucket API.
   * @param {string} id @returns {Promise<Bucket | undefined>}
   */
  async findBucket(id) {
    const [bucket] = await this.sql`
      select id, public, file_size_limit, allowed_mime_types from storage.buckets where id = ${id}`;
    return /** @type {Bucket | undefined} */ (bucket);
  }

  /** @param {string} id @returns {Promise<Bucket>} @throws {StorageError} NoSuchBucket */
  async bucket(id) {
    const bucket = await this.findBucket(id);
    if (!bucket) throw noSuchBucket();
    return bucket;
  }

  /** An object as the service sees it. @param {string} bucket @param {string} name @returns {Promise<StoredObject>} */
  object(bucket, name) {
    return findObject(this.sql, bucket, name);
  }
}

/** @param {Connection} tx @param {Scope} scope @param {Claims} claims */
async function enter(tx, { method, path, headers, operation }, claims) {
  await tx`select set_config('role', ${claims.role}, true), set_config('request.jwt.claim.role', ${claims.role}, true),
                  set_config('request.jwt.claim.sub', ${claims.sub ?? ""}, true),
                  set_config('request.jwt.claims', ${JSON.stringify(claims)}, true),
                  set_config('request.headers', ${JSON.stringify(Object.fromEntries(headers))}, true),
                  set_config('request.method', ${method}, true), set_config('request.path', ${path}, true),
                  set_config('storage.operation', ${operation}, true), set_config('storage.allow_delete_query', 'true', true)`;
}

/**
 * @param {Connection | import("../database.mjs").Sql} db @param {string} bucket @param {string} name
 * @returns {Promise<StoredObject>} @throws {StorageError} NoSuchKey
 */
export async function findObject(db, bucket, name) {
  const [object] = await db`select * from storage.objects where bucket_id = ${bucket} and name = ${name}`;
  if (!object) throw noSuchKey();
  return /** @type {StoredObject} */ (object);
}

/** @param {Connection} tx @param {NewObject} object */
export async function insertObject(tx, object) {
  try {
    await tx`insert into storage.objects ${row(tx, object)}`;
  } catch (error) {
    throw /** @type {any} */ (error).code === "23505" ? duplicate() : error;
  }
}

/** @param {Connection} tx @param {NewObject} object @returns {Promise<StoredObject>} */
export async function upsertObject(tx, object) {
  const [saved] = await tx`
    insert into storage.objects as o ${row(tx, object)}
    on conflict (name, bucket_id) do update
      set metadata = excluded.metadata, user_metadata = excluded.user_metadata, version = excluded.version,
          owner = coalesce(excluded.owner, o.owner), owner_id = coalesce(excluded.owner_id, o.owner_id)
    returning *`;
  return /** @type {StoredObject} */ (saved);
}

/** @param {Connection} tx @param {NewObject} object */
function row(tx, { bucket, name, version = "1", owner, metadata, userMetadata }) {
  const json = (/** @type {any} */ value) => (value === undefined || value === null ? null : JSON.stringify(value));
  return tx`(bucket_id, name, version, owner, owner_id, metadata, user_metadata)
            values (${bucket}, ${name}, ${version}, ${owner && UUID.test(owner) ? owner : null}, ${owner ?? null},
                    ${json(metadata)}::text::jsonb, ${json(userMetadata)}::text::jsonb)`;
}

/** An object as the API shows it. @param {StoredObject} object */
export function shown(object) {
  const { id, name, bucket_id, updated_at, created_at, last_accessed_at, metadata, user_metadata } = object;
  const [owner, owner_id, version] = [object.owner, object.owner_id, object.version].map((value) => value ?? "");
  return {
    id, name, bucket_id, owner, owner_id, version, updated_at, created_at, last_accessed_at, metadata, user_metadata,
  };
}
