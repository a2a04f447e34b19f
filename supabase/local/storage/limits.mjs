// What names, sizes and MIME types Storage accepts (storage-api: src/storage/limits.ts and uploader.ts).

import { Failure } from "../failure.mjs";
import { entityTooLarge, invalidBucketName, invalidKey, invalidMimeType, invalidRequest } from "./errors.mjs";

const OBJECT_KEY = /^[A-Za-z0-9_/!.*'() &$=@;:+,?-]+$/;
const BUCKET_NAME = /^[A-Za-z0-9_!.*'() &$=@;:+,?-]{1,100}$/;
const MIME_TYPE = /^([a-zA-Z0-9\-+.]+)\/([a-zA-Z0-9\-+.]+)(;\s*charset=[a-zA-Z0-9-]+)?$|\*$/;
const SIZE = /^(\d+(?:\.\d+)?)(gb|mb|kb|b)$/i;
const ROBOTS_RULE = "(?:[\\w-]+:\\s*)?(?:all|none|noindex|nofollow|nosnippet|indexifembedded|notranslate|noimageindex"
  + "|max-(?:snippet|video-preview):\\s*-?\\d+|max-image-preview:\\s*(?:none|standard|large)"
  + "|unavailable_after:\\s*(?:\\w+, )?[\\w :+-]+)";
const ROBOTS_TAG = new RegExp(`^${ROBOTS_RULE}(?:\\s*,\\s*${ROBOTS_RULE})*$`);
const UNITS = /** @type {const} */ ({ gb: 1e9, mb: 1e6, kb: 1000, b: 1 });

/** @param {string} key @throws {import("./errors.mjs").StorageError} InvalidKey */
export function checkKey(key) {
  if (!OBJECT_KEY.test(key)) throw invalidKey(key);
}

/** @param {string} name @throws {import("./errors.mjs").StorageError} InvalidBucketName */
export function checkBucketName(name) {
  if (!BUCKET_NAME.test(name)) throw invalidBucketName();
}

/** The dashboard's marker of an empty folder: it holds nothing, and its MIME type is not judged. @param {string} key */
export const isEmptyFolder = (key) => key.endsWith(".emptyFolderPlaceholder");

/**
 * A bucket's `file_size_limit` in bytes, from a number or from text as "50MB" (decimal units, three significant digits, as there).
 * @param {number | string} size @param {number} most of the project, in bytes
 */
export function parseSizeLimit(size, most) {
  let bytes = typeof size === "string" && /^\d+$/.test(size) ? Number(size) : size;
  if (typeof bytes === "string") {
    const [, value, unit] = SIZE.exec(bytes) ?? [];
    if (unit === undefined) throw invalidRequest("Invalid file size format, hint: use 20GB / 20MB / 30KB / 3B");
    bytes = Number(parseFloat(value).toPrecision(3)) * UNITS[/** @type {keyof UNITS} */ (unit.toLowerCase())];
  }
  if (!Number.isFinite(bytes) || bytes < 0) throw invalidRequest("body/file_size_limit must be >= 0", "Error");
  if (bytes > most) throw entityTooLarge();
  return bytes;
}

/**
 * `file_size_limit` of `config.toml` in bytes. The Supabase CLI reads its units as powers of 1,024, with or without the i.
 * @param {string | number} size
 */
export function parseConfiguredSize(size) {
  const [, value, unit] = /^(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?$/i.exec(String(size)) ?? [];
  if (unit === undefined) throw new Failure(`[storage] file_size_limit is not a size: ${size}`);
  return Number(value) * 1024 ** " kmgt".indexOf(unit.toLowerCase() || " ");
}

/** @param {string[]} types a bucket's `allowed_mime_types` */
export function checkAllowedMimeTypes(types) {
  for (const type of types) if (type.length > 1000 || !MIME_TYPE.test(type)) throw invalidMimeType(type);
}

/** @param {string} type of the upload @param {string[]} allowed such as `image/png`, or `image/*` */
export function checkMimeType(type, allowed) {
  const [family, kind] = type.split("/");
  const isAllowed = allowed.some((one) => {
    const [allowedFamily, allowedKind] = one.split("/");
    return allowedFamily === family && (allowedKind === "*" || allowedKind === kind);
  });
  if (kind === undefined || !isAllowed) throw invalidMimeType(type);
}

/** An upload's `X-Robots-Tag`, which its downloads carry: rules for crawlers as MDN lists them. @param {string} tag */
export function checkRobotsTag(tag) {
  if (ROBOTS_TAG.test(tag.trim())) return;
  throw invalidRequest(`Invalid X-Robots-Tag header: Invalid X-Robots-Tag rule: "${tag}"`, "invalid_x_robots_tag");
}
