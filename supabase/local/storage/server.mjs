// The Storage API under /storage/v1: finds the route, asks who calls, and answers as Supabase's storage-api does.

import { json } from "../answers.mjs";
import { isConnectionError } from "../database.mjs";
import { TokenError } from "../keys.mjs";
import * as buckets from "./buckets.mjs";
import { StorageDatabase } from "./database.mjs";
import { accessDenied, databaseTimeout, featureNotEnabled, fromPostgres, invalidRequest, routeNotFound, StorageError } from "./errors.mjs";
import { FileStore } from "./files.mjs";
import { list, listV2 } from "./list.mjs";
import * as objects from "./objects.mjs";
import * as serve from "./serve.mjs";
import * as sign from "./sign.mjs";
import * as uploads from "./upload.mjs";

/**
 * @typedef {{ request: Request, url: URL, bucket: string, name: string, isAuthenticated: boolean,
 *             scope: import("./database.mjs").Scope, db: StorageDatabase, files: FileStore, keys: import("../keys.mjs").Keys,
 *             sizeLimit: number }} Call
 * @typedef {(call: Call) => Promise<unknown>} Handler a Response, or what the JSON answer holds
 * @typedef {"key" | "open"} Access `key`: needs a valid key or token; `open`: judges for itself, without one too
 */

/**
 * Methods, path, operation, access, handler, in the order of precedence. `storage.operation()` tells a policy the operation.
 * @type {[string, string, string, Access, Handler][]}
 */
const ROUTES = [
  ["GET", "/bucket", "storage.bucket.list", "key", buckets.listBuckets],
  ["POST", "/bucket", "storage.bucket.create", "key", buckets.createBucket],
  ["GET", "/bucket/:bucket", "storage.bucket.get", "key", buckets.getBucket],
  ["PUT", "/bucket/:bucket", "storage.bucket.update", "key", buckets.updateBucket],
  ["DELETE", "/bucket/:bucket", "storage.bucket.delete", "key", buckets.deleteBucket],
  ["POST", "/bucket/:bucket/empty", "storage.bucket.empty", "key", buckets.emptyBucket],

  ["POST", "/object/copy", "storage.object.copy", "key", objects.copy],
  ["POST", "/object/move", "storage.object.move", "key", objects.move],
  ["POST", "/object/list/:bucket", "storage.object.list", "key", list],
  ["POST", "/object/list-v2/:bucket", "storage.object.list_v2", "key", listV2],

  ["POST", "/object/upload/sign/:bucket/*", "storage.object.sign_upload_url", "key", sign.signUpload],
  ["PUT", "/object/upload/sign/:bucket/*", "storage.object.upload_signed", "open", uploads.uploadSigned],
  ["POST", "/object/sign/:bucket", "storage.object.sign_many", "key", sign.signMany],
  ["POST", "/object/sign/:bucket/*", "storage.object.sign", "key", sign.signOne],
  ["GET HEAD", "/object/sign/:bucket/*", "storage.object.get_signed", "open", serve.downloadSigned],

  ["GET", "/object/info/public/:bucket/*", "storage.object.info_public", "open", serve.infoPublic],
  ["GET", "/object/info/authenticated/:bucket/*", "object.get_authenticated_info", "key", serve.info],
  ["GET", "/object/info/:bucket/*", "object.get_authenticated_info", "open", serve.info],
  ["GET", "/object/public/:bucket/*", "storage.object.get_public", "open", serve.downloadPublic],
  ["HEAD", "/object/public/:bucket/*", "storage.object.info_public", "open", serve.headPublic],
  ["GET", "/object/authenticated/:bucket/*", "storage.object.get_authenticated", "key", serve.download],
  ["HEAD", "/object/authenticated/:bucket/*", "object.head_authenticated_info", "key", serve.head],

  ["GET", "/object/:bucket/*", "storage.object.get_authenticated", "open", serve.download],
  ["HEAD", "/object/:bucket/*", "object.head_authenticated_info", "open", serve.head],
  ["POST", "/object/:bucket/*", "storage.object.upload", "key", uploads.upload],
  ["PUT", "/object/:bucket/*", "storage.object.upload_update", "key", uploads.update],
  ["DELETE", "/object/:bucket/*", "storage.object.delete", "key", objects.remove],
  ["DELETE", "/object/:bucket", "storage.object.delete_many", "key", objects.removeMany],
];

const COMPILED = ROUTES.map(([methods, path, operation, access, handler]) => ({
  methods: methods.split(" "), operation, access, handler,
  path: new RegExp(`^${path.replace(":bucket", "([^/]+)").replace("/*", "/(.*)")}${path.endsWith("*") ? "" : "/?"}$`, "s"),
}));

/** What the platform has and this has not, by the beginning of its path. @type {[RegExp, string][]} */
const NOT_OFFERED = [
  [/^\/upload\/resumable/, "resumable uploads"], [/^\/render\//, "image transformation"], [/^\/s3(\/|$)/, "S3 protocol"],
  [/^\/(iceberg|vector)\//, "analytics and vector buckets"], [/^\/cdn\//, "CDN"],
];

export class Storage {
  /**
   * @param {{ sql: import("../database.mjs").Sql, pool: import("../database.mjs").Pool, keys: import("../keys.mjs").Keys,
   *           filesDir: string, sizeLimit: number }} parts `sizeLimit`: of the project, in bytes
   */
  constructor({ sql, pool, keys, filesDir, sizeLimit }) {
    this.parts = { db: new StorageDatabase({ sql, pool }), files: new FileStore(filesDir), keys, sizeLimit };
  }

  /** @param {Request} request @param {URL} url @returns {Promise<Response>} */
  async fetch(request, url) {
    try {
      const answer = await this.#answer(request, url);
      return answer instanceof Response ? answer : json(200, answer);
    } catch (error) {
      if (error instanceof StorageError) return error.response;
      if (isConnectionError(error)) return databaseTimeout().response;
      if (/** @type {any} */ (error).name !== "PostgresError") throw error;
      return fromPostgres(/** @type {any} */ (error)).response;
    }
  }

  /** @param {Request} request @param {URL} url */
  async #answer(request, url) {
    const { method, headers } = request;
    const path = url.pathname.slice("/storage/v1".length);
    const missing = NOT_OFFERED.find(([prefix]) => prefix.test(path));
    if (missing) throw featureNotEnabled(missing[1]);
    for (const { methods, path: pattern, operation, access, handler } of COMPILED) {
      const match = methods.includes(method) && pattern.exec(path);
      if (!match) continue;
      const [bucket = "", name = ""] = match.slice(1).map((part) => decode(part, url));
      const { claims, isAuthenticated } = await this.#caller(request, access);
      const scope = { claims, method, path, headers, operation };
      return handler({ request, url, bucket, name, isAuthenticated, scope, ...this.parts });
    }
    throw routeNotFound(method, path);
  }

  /**
   * The claims of the caller. A token that is not valid is refused with the words of the library that both servers use.
   * @param {Request} request @param {Access} access
   * @returns {Promise<{ claims: import("../keys.mjs").Claims, isAuthenticated: boolean }>}
   */
  async #caller({ headers }, access) {
    const { keys } = this.parts;
    const key = headers.get("apikey");
    if (key !== null && !keys.isKey(key)) throw new TokenError("Invalid API key");
    const bearer = /^Bearer\s+(.+)$/i.exec(headers.get("authorization") ?? "")?.[1];
    const token = bearer && !(key && bearer.startsWith("sb_")) ? bearer : key;
    try {
      if (!token) throw invalidRequest("headers must have required property 'authorization'", "Error");
      if (keys.isKey(token)) return { claims: await keys.claims(token), isAuthenticated: true };
      const claims = await keys.verify(token).catch((error) => {
        throw accessDenied(error.message);
      });
      return { claims: { ...claims, role: claims.role ?? "anon" }, isAuthenticated: true };
    } catch (error) {
      if (access === "open") return { claims: { role: "anon" }, isAuthenticated: false };
      throw error;
    }
  }
}

/** @param {string} part of a path @param {URL} url */
function decode(part, url) {
  try {
    return decodeURIComponent(part);
  } catch {
    throw invalidRequest(`'${url.pathname}' is not a valid url component`, "Bad Request");
  }
}
