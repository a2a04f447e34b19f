// Errors of the Storage API. Status codes, codes and messages are those of Supabase's storage-api
// (src/internal/errors/codes.ts), and so is their odd form: every refusal is HTTP 400 with the real status in the
// body, as a string.

import { json } from "../answers.mjs";

export class StorageError extends Error {
  /**
   * @param {number} statusCode @param {string} code @param {string} message
   * @param {{ error?: string, httpStatus?: number }} [options] `error`: the body's older name of the code;
   *   `httpStatus`: other than 400
   */
  constructor(statusCode, code, message, { error = code, httpStatus = statusCode === 500 ? 500 : 400 } = {}) {
    super(message);
    this.httpStatus = httpStatus;
    this.body = { statusCode: String(statusCode), error, message, code };
  }

  get response() {
    return json(this.httpStatus, this.body);
  }
}

export const accessDenied = (message = "Access denied", /** @type {number | undefined} */ httpStatus = undefined) =>
  new StorageError(403, "AccessDenied", message, { error: "Unauthorized", httpStatus: httpStatus ?? 400 });
export const noSuchBucket = () => new StorageError(404, "NoSuchBucket", "Bucket not found", { error: "Bucket not found" });
export const noSuchKey = () => new StorageError(404, "NoSuchKey", "Object not found", { error: "not_found" });
/** A row whose file is gone: what storage-api makes of its backend's 404. */
export const noSuchFile = () => new StorageError(404, "NoSuchKey", "The resource was not found", { error: "Not found" });
export const invalidKey = (/** @type {string} */ key) => new StorageError(400, "InvalidKey", `Invalid key: ${key}`);
export const invalidBucketName = () => new StorageError(400, "InvalidBucketName", "Bucket name invalid", { error: "Invalid Input" });
export const invalidMimeType = (/** @type {string} */ type) =>
  new StorageError(415, "InvalidMimeType", `mime type ${type} is not supported`, { error: "invalid_mime_type" });
export const entityTooLarge = (entity = "object") =>
  new StorageError(413, "EntityTooLarge", `The ${entity} exceeded the maximum allowed size`, { error: "Payload too large" });
export const duplicate = (code = "KeyAlreadyExists") =>
  new StorageError(409, code, "The resource already exists", { error: "Duplicate" });
export const invalidRequest = (/** @type {string} */ message, error = "InvalidRequest") =>
  new StorageError(400, "InvalidRequest", message, { error });
export const invalidParameter = (/** @type {string} */ name, message = `Invalid Parameter ${name}`) =>
  new StorageError(400, "InvalidParameter", message);
export const invalidRange = () =>
  new StorageError(416, "InvalidRange", "invalid range provided", { error: "invalid_range", httpStatus: 416 });
export const invalidJwt = (/** @type {string} */ message) => new StorageError(400, "InvalidJWT", message);
export const invalidSignature = (message = "Invalid signature") => new StorageError(400, "InvalidSignature", message);
export const bucketNotEmpty = () =>
  new StorageError(409, "ResourceNotEmpty", "The bucket you tried to delete is not empty");
/** HTTP 544, which no refusal has: the same call may succeed a moment later. */
export const databaseTimeout = () =>
  new StorageError(544, "DatabaseTimeout", "The connection to the database timed out", { httpStatus: 544 });
export const featureNotEnabled = (/** @type {string} */ feature) =>
  new StorageError(409, "FeatureNotEnabled", `The feature ${feature} is not enabled for this resource`);
export const routeNotFound = (/** @type {string} */ method, /** @type {string} */ path) =>
  new StorageError(404, "InvalidRequest", `Route ${method}:${path} not found`, { error: "Not Found", httpStatus: 404 });

/**
 * The Storage error for an error of PostgreSQL (storage-api: src/storage/database/errors.ts).
 * @param {{ code: string, message: string, detail?: string }} error
 */
export function fromPostgres({ code, message, detail }) {
  switch (code) {
    case "42501":
      return accessDenied(message.includes("row-level security") ? "new row violates row-level security policy" : message);
    case "23505": return duplicate("ResourceAlreadyExists");
    case "23503": {
      if (!detail?.includes("is still referenced from table")) {
        return new StorageError(404, "InvalidRequest", "The related resource does not exist");
      }
      const message = "The resource could not be updated or removed due to a foreign key constraint";
      return new StorageError(409, "ResourceReferenced", message);
    }
    case "55P03": return new StorageError(423, "ResourceLocked", "The resource is locked");
    case "57014": return databaseTimeout();
    case "22P02": return invalidParameter("value", message);
    case "42P17":
      return new StorageError(503, "DatabaseInvalidObjectDefinition", "The database schema is invalid or incompatible.");
    case "42703":
    case "42P01":
      return new StorageError(503, "DatabaseSchemaMismatch", `The database schema is out of sync: ${message}`);
    default: return new StorageError(500, "DatabaseError", `database error, code: ${code}`);
  }
}
