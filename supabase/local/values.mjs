// Values on their way between JSON and PostgreSQL. PostgREST hands a body to json_to_recordset and lets to_json write the answer, so that
// PostgreSQL alone decides how text becomes a column's type and back; here the same is reached around @supabase/lite and postgres.js.

const json = /** @type {any} */ (JSON); // rawJSON and isRawJSON keep a number's own digits; TypeScript does not know them yet

/** A number is kept as it was written where JavaScript's own would differ: 9007199254740993, 1.50. */
const keepDigits = (/** @type {string} */ _, /** @type {unknown} */ value, /** @type {{ source?: string }} */ { source }) =>
  typeof value === "number" && source !== undefined && String(value) !== source ? json.rawJSON(source) : value;

/** A number outside of strings (or what looks like one) that needs the slower parser: long, with an exponent, with a last digit of 0. */
const LONG_OR_ODD_NUMBER = /(?:^|[[:,\s])-?(?:[\d.]{16}|[\d.]+[eE]|\d+\.\d*0(?![\d.]))/;

/** JSON.parse without loss of digits. @param {string} text @returns {any} */
export function parseJson(text) {
  return LONG_OR_ODD_NUMBER.test(text) ? JSON.parse(text, /** @type {any} */ (keepDigits)) : JSON.parse(text);
}

/** @param {any} value of parseJson @returns {value is Record<string, unknown>} */
export const isRecord = (value) => typeof value === "object" && value !== null && !Array.isArray(value) && !json.isRawJSON(value);

/** The form in which lite and postgres.js hand on an error of the database. @param {string} code @param {string} message @param {string} [detail] */
export function databaseError(code, message, detail) {
  return Object.assign(new Error(message), { code, detail: detail ?? null, hint: null });
}

/**
 * One scalar or object of a JSON body. As text it is what json_to_recordset reads into a column of any type but json; as JSON it is the
 * body's own. It has no keys of its own, since lite counts keys.
 */
export class Value {
  #value;

  /** @param {unknown} value */
  constructor(value) {
    this.#value = value;
  }

  /** @param {any} value of parseJson; arrays stay arrays, which postgres.js knows as JSON and as PostgreSQL's @returns {any} */
  static of(value) {
    if (value === null || value === undefined) return value;
    return Array.isArray(value) ? value.map(Value.of) : new Value(value);
  }

  toJSON() {
    return this.#value;
  }

  /** @throws what PostgreSQL says of a JSON string that is no text */
  toString() {
    if (json.isRawJSON(this.#value)) return /** @type {any} */ (this.#value).rawJSON;
    if (typeof this.#value === "object") return JSON.stringify(this.#value);
    return typeof this.#value === "string" ? checkText(this.#value) : String(this.#value);
  }
}

/** @param {string} text @returns {string} @throws as PostgreSQL does of JSON */
function checkText(text) {
  if (!(/** @type {any} */ (text).isWellFormed())) {
    throw databaseError("22P02", "invalid input syntax for type json", "Unicode low surrogate must follow a high surrogate.");
  }
  if (text.includes("\0")) throw databaseError("22P05", "unsupported Unicode escape sequence", "\\u0000 cannot be converted to text.");
  return text;
}

/**
 * @param {number} oid @param {(text: string) => unknown} [parse] @param {(value: any) => string} [serialize]
 * @returns {import("postgres").PostgresType}
 */
const type = (oid, parse = (text) => text, serialize = String) => ({ to: oid, from: [oid], serialize, parse });

/** A string is JSON already: lite has written it, or a filter has it so. @param {unknown} value */
const asJson = (value) => (typeof value === "string" ? value : JSON.stringify(value));

/** @param {unknown} value */
const asText = (value) => (Array.isArray(value) ? JSON.stringify(value) : String(value));

/** How postgres.js reads and writes; what REST answers is written by PostgreSQL itself (see inJson). */
export const TYPES = {
  bool: type(16, (text) => text === "t"),
  bytea: type(17, (text) => Buffer.from(text.slice(2), "hex"),
    (value) => (value instanceof Uint8Array ? `\\x${Buffer.from(value).toString("hex")}` : String(value))),
  bigint: type(20, (text) => (Number.isSafeInteger(Number(text)) ? Number(text) : BigInt(text))),
  text: type(25, undefined, asText),
  varchar: type(1043, undefined, asText),
  numeric: type(1700, (text) => (String(Number(text)) === text ? Number(text) : text)),
  json: type(114, JSON.parse, asJson),
  jsonb: type(3802, JSON.parse, asJson),
  date: type(1082),
  time: type(1083),
  timetz: type(1266),
  timestamp: type(1114, isoTime),
  timestamptz: type(1184, isoTime), // supabase-py insists on the T
};

/** @param {string} text as PostgreSQL writes it: 2026-11-22 19:26:09.693+00 */
function isoTime(text) {
  return text.replace(/^(\d{4,}-\d\d-\d\d) (\d\d:\d\d:\d\d(?:\.\d+)?)([+-]\d\d)?(:\d\d)?$/, (_, date, time, hours = "", minutes) =>
    `${date}T${time}${hours}${hours && (minutes ?? ":00")}`);
}

/**
 * A statement whose rows come back as one JSON text, as PostgREST has them: times in ISO 8601 whatever DateStyle says, exact numerics,
 * bytea as \x…, composite types as objects. undefined for a statement without rows.
 * @param {string} sql
 */
export function inJson(sql) {
  const verb = /^\s*(select|with|insert|update|delete)\b/i.exec(sql)?.[1].toLowerCase();
  if (!verb) return undefined;
  const asRows = (/** @type {string} */ from) => `select coalesce(json_agg(_row), '[]')::text as body from ${from}`;
  if (verb === "select" || verb === "with") return asRows(`(${sql}) _row`);
  const plain = sql.replace(/"(?:[^"]|"")*"|'(?:[^']|'')*'/g, "");
  return / returning /i.test(plain) ? `with _row as (${sql}) ${asRows("_row")}` : undefined;
}
