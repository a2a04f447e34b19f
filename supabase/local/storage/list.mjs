// Listing the objects of a bucket: one level with folders (`list`), or page by page (`list-v2`).

import { invalidParameter } from "./errors.mjs";
import { checkBucketName } from "./limits.mjs";
import { readJson } from "./body.mjs";

/** @typedef {import("./server.mjs").Call} Call */

const MOST_KEYS = 1000; // of a page (storage-api: src/storage/object.ts)

const TEXT = /** @type {const} */ ({ type: "string" });
const LIMIT = /** @type {const} */ ({ type: "integer", minimum: 1 });

/** @param {...string} columns @returns {import("./body.mjs").Field} */
const sortBy = (...columns) => ({
  type: "object",
  fields: { column: { type: "string", oneOf: columns, required: true }, order: { type: "string", oneOf: ["asc", "desc"] } },
});

/** @param {Call} call */
export async function list({ request, bucket, scope, db }) {
  const body = await readJson(request, {
    prefix: { type: "string", required: true }, limit: LIMIT, offset: { type: "integer", minimum: 0 }, search: TEXT,
    sortBy: sortBy("name", "updated_at", "created_at", "last_accessed_at"),
  });
  checkBucketName(bucket);
  const prefix = body.prefix === "" || body.prefix.endsWith("/") ? body.prefix : `${body.prefix}/`;
  const { limit = 100, offset = 0, search = "", sortBy: sort } = body;
  const levels = (prefix + search).split("/").length;
  return db.asCaller(scope, (tx) => tx`
    select * from storage.search(${prefix}, ${bucket}, ${limit}, ${levels}, ${offset}, ${search},
                                 ${sort?.column ?? "name"}, ${sort?.order ?? "asc"})`);
}

/**
 * A page and the cursor of the next, which remembers the order too. With a delimiter what lies deeper shows as one folder.
 * @param {Call} call
 */
export async function listV2({ request, bucket, scope, db }) {
  const body = await readJson(request, {
    prefix: TEXT, limit: LIMIT, cursor: TEXT, with_delimiter: { type: "boolean" },
    sortBy: sortBy("name", "updated_at", "created_at"),
  });
  checkBucketName(bucket);
  const { prefix = "", with_delimiter: isDelimited = false } = body;
  const limit = Math.min(body.limit ?? MOST_KEYS, MOST_KEYS);
  const { after = "", column = "name", order = "asc", time = "" } = body.cursor
    ? decodeCursor(body.cursor)
    : { column: body.sortBy?.column, order: body.sortBy?.order };
  const levels = prefix.split("/").length;
  const rows = await db.asCaller(scope, (tx) => {
    if (isDelimited) {
      return tx`
        select * from storage.search_v2(${prefix}, ${bucket}, ${limit + 1}, ${levels}, ${after}, ${order}, ${column}, ${time})`;
    }
    const direction = order === "desc" ? tx`desc` : tx`asc`;
    const beyond = order === "desc" ? tx`<` : tx`>`;
    const key = column === "name" ? tx`name collate "C"` : tx`date_trunc('milliseconds', ${tx(column)}), name collate "C"`;
    const from = column === "name" ? tx`${after}` : tx`${time || "epoch"}::timestamptz, ${after}`;
    return tx`
      select id, name, metadata, updated_at, created_at, last_accessed_at from storage.objects
       where bucket_id = ${bucket} and starts_with(name, ${prefix}) ${after ? tx`and (${key}) ${beyond} (${from})` : tx``}
       order by (${key}) ${direction} limit ${limit + 1}`;
  });
  const page = rows.slice(0, limit);
  const last = page.at(-1);
  const hasNext = rows.length > limit;
  const next = () => encodeCursor({
    after: last?.id === null ? `${last.name}/` : last?.name, order, column,
    time: column === "name" ? "" : last?.[column]?.toISOString() ?? "",
  });
  return {
    hasNext,
    ...(hasNext && { nextCursor: next(), nextCursorKey: last?.name }),
    folders: page.filter(({ id }) => id === null).map((folder) => ({ ...folder, name: `${folder.name}/` })),
    objects: page.filter(({ id }) => id !== null),
  };
}

/** @typedef {{ after: string, order?: string, column?: string, time?: string }} Cursor */

/** @param {Cursor} cursor */
const encodeCursor = (cursor) => Buffer.from(JSON.stringify(cursor)).toString("base64");

/** @param {string} text @returns {Cursor} */
function decodeCursor(text) {
  try {
    const { after, order, column, time } = JSON.parse(Buffer.from(text, "base64").toString());
    if (typeof after === "string" && ["asc", "desc"].includes(order) && ["name", "created_at", "updated_at"].includes(column)) {
      return { after, order, column, time: time === "" || Number.isNaN(Date.parse(time)) ? "" : time };
    }
  } catch {
    // no cursor of ours
  }
  throw invalidParameter("continuation token");
}
