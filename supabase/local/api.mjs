// REST and Auth: @supabase/lite on our database. What lite would do differently from Supabase is set right here where it can be
// done from inside; what is wrong in its answers is set right in auth.mjs.

import { App } from "@supabase/lite";
import { createPostgresConnection } from "@supabase/lite/postgres";
import { sql } from "kysely";
import { AWAY, json } from "./answers.mjs";
import { isConnectionError, Pool } from "./database.mjs";

const POOL = 40; // of PostgreSQL's 100: requests that wait for a row lock hold one each

/** @param {number} oid @param {(text: string) => unknown} [parse] @returns {import("postgres").PostgresType} */
const type = (oid, parse = (text) => text) => ({ to: oid, from: [oid], serialize: String, parse });

/** How values come out of the database: as PostgREST and GoTrue would write them. */
const TYPES = {
  bigint: type(20, (text) => (Number.isSafeInteger(Number(text)) ? Number(text) : BigInt(text))),
  numeric: type(1700, (text) => (String(Number(text)) === text ? Number(text) : text)),
  json: { to: 114, from: [114], serialize: jsonText, parse: JSON.parse },
  jsonb: { to: 3802, from: [3802], serialize: jsonText, parse: JSON.parse },
  date: type(1082),
  time: type(1083),
  timetz: type(1266),
  timestamp: type(1114, isoTime),
  timestamptz: type(1184, isoTime), // supabase-py insists on the T
};

/**
 * lite hands on a function's json arguments as text that is JSON already, and column values as they are. The driver alone would make a
 * JSON string of both.
 * @param {unknown} value
 */
function jsonText(value) {
  if (typeof value === "string" && /^\s*[[{]/.test(value)) {
    try {
      JSON.parse(value);
      return value;
    } catch {
      // a text that only begins like JSON
    }
  }
  return JSON.stringify(value);
}

/** @param {string} text as PostgreSQL writes it: 2026-11-22 19:26:09.693+00 */
function isoTime(text) {
  return text.replace(/^(\d{4,}-\d\d-\d\d) (\d\d:\d\d:\d\d(?:\.\d+)?)([+-]\d\d)?(:\d\d)?$/, (_, date, time, hours = "", minutes) =>
    `${date}T${time}${hours}${hours && (minutes ?? ":00")}`);
}

/**
 * @param {{ url: string, config: import("./config.mjs").Config, timeouts: Map<string, string> }} options
 */
export async function createApi({ url, config, timeouts }) {
  const connection = /** @type {any} */ (createPostgresConnection({ url }));
  const pool = new Pool(url, { max: POOL, name: "api", types: TYPES });
  connection.driver.reserve = away(async () => {
    const reserved = await pool.reserve();
    return Object.assign(reserved, { unsafe: away(reserved.unsafe) });
  });
  correct(connection, timeouts);
  const app = new App({ ...config.lite, connection });
  await app.init();
  await connection.introspect({ useCache: true }); // so that the first request does not wait for it
  return {
    /** @param {Request} request @returns {Promise<Response>} */
    fetch: (request) => app.fetch(request),
    /** After a change of the schema. */
    reload: async () => {
      await connection.clearSchemaCache();
      await connection.introspect({ useCache: true });
    },
    close: () => pool.end(),
  };
}

/**
 * PostgREST says 503 while the database is away, which tells clients to come again. lite's web framework asks an error for its answer.
 * @template {(...args: any[]) => PromiseLike<any>} F @param {F} fn @returns {F}
 */
function away(fn) {
  return /** @type {any} */ (async (/** @type {any[]} */ ...args) => {
    try {
      return await fn(...args);
    } catch (error) {
      throw isConnectionError(error) ? Object.assign(/** @type {Error} */ (error), { getResponse: () => json(503, AWAY) }) : error;
    }
  });
}

/** @param {any} connection @param {Map<string, string>} timeouts statement_timeout by role */
function correct(connection, timeouts) {
  // lite grants everything on every table with row security to the API roles. Our grants come from the migrations alone.
  connection.rlsState = "active";

  // The claims in one round trip instead of five, always set, and with the role's time limit, as PostgREST does it.
  connection.applyJwtSessionContext = async (/** @type {any} */ tx, /** @type {any} */ context) => {
    const role = context.auth?.role || "anon";
    const subject = String(context.auth?.uid ?? "");
    const claims = context.auth?.jwt ?? { role };
    await sql`select set_config('role', ${role}, true), set_config('request.jwt.claims', ${JSON.stringify({ role, ...claims })}, true),
                     set_config('request.jwt.claim.sub', ${subject}, true), set_config('request.jwt.claim.role', ${role}, true),
                     set_config('storage.operation', ${String(context.storage?.operation ?? "")}, true),
                     set_config('statement_timeout', ${timeouts.get(role) ?? "0"}, true)`.execute(tx);
  };

  // Errors that lite answers with its own code 500 "SUP": PostgREST hands on PostgreSQL's code under a status of its own.
  const normalize = connection.normalizeDbError.bind(connection);
  connection.normalizeDbError = (/** @type {unknown} */ error) => {
    const known = normalize(error);
    if (isConnectionError(known)) {
      return restError(503, AWAY.code, AWAY.message);
    }
    const status = typeof known?.code === "string" ? statusOf(known.code) : undefined;
    return status === undefined ? known : restError(status, known.code, known.message, known.detail, known.hint);
  };
}

/** Only the classes that lite does not know. @param {string} code */
function statusOf(code) {
  if (code === "P0001" || code === "23514" || code === "23P01") return 400;
  if (code === "57014" || code.startsWith("40") || code.startsWith("P0") || code.startsWith("XX") || code.startsWith("54")) return 500;
  return undefined;
}

/**
 * The form in which PostgREST (and lite with it) lets a function choose status and body of an error.
 * @param {number} status @param {string} code @param {string} message @param {string} [detail] @param {string} [hint]
 */
function restError(status, code, message, detail, hint) {
  return Object.assign(new Error(JSON.stringify({ code, message, details: detail ?? null, hint: hint ?? null })), {
    code: "PGRST",
    message: JSON.stringify({ code, message, details: detail ?? null, hint: hint ?? null }),
    detail: JSON.stringify({ status, headers: {} }),
  });
}

/**
 * statement_timeout of the API roles, as ALTER ROLE set it; a role without one has the authenticator's.
 * @param {import("./database.mjs").Sql} database
 */
export async function readTimeouts(database) {
  const rows = await database`
    select r.rolname as role, split_part(setting, '=', 2) as timeout
      from pg_db_role_setting s join pg_roles r on r.oid = s.setrole, unnest(s.setconfig) setting
     where setting like 'statement_timeout=%'`;
  const timeouts = new Map(rows.map(({ role, timeout }) => [role, timeout]));
  const general = timeouts.get("authenticator") ?? "8s";
  for (const role of ["anon", "authenticated", "service_role"]) timeouts.set(role, timeouts.get(role) ?? general);
  return timeouts;
}
