// REST and Auth: @supabase/lite on our database. What lite would do differently from Supabase is set right here where it can be
// done from inside; what is wrong in its answers is set right in auth.mjs.

import { AsyncLocalStorage } from "node:async_hooks";
import { App } from "@supabase/lite";
import { createPostgresConnection } from "@supabase/lite/postgres";
import { sql } from "kysely";
import { AWAY, json } from "./answers.mjs";
import { isConnectionError, Pool } from "./database.mjs";
import { Rest, rollingBackRefusals } from "./rest.mjs";
import { fillEmptyRows, keepColumns, rowsOf, withCsvNulls } from "./rows.mjs";
import { PRINT_TREES, unfilteredVerb } from "./safeupdate.mjs";
import { Session } from "./session.mjs";
import { databaseError, inJson, parseJson, TYPES } from "./values.mjs";

const POOL = 40; // of PostgreSQL's 100: requests that wait for a row lock hold one each

/** The request of REST that is being served; Auth and Storage go past it. @type {AsyncLocalStorage<import("./rest.mjs").RestCall>} */
const served = new AsyncLocalStorage();

/**
 * @param {{ url: string, config: import("./config.mjs").Config, sql: import("./database.mjs").Sql,
 *           log: (line: string) => void }} options
 */
export async function createApi({ url, config, sql: database, log }) {
  const connection = /** @type {any} */ (createPostgresConnection({ url }));
  const pool = new Pool(url, { max: POOL, name: "api", types: TYPES });
  connection.driver.reserve = away(async () => {
    const reserved = await pool.reserve();
    return Object.assign(reserved, { unsafe: away(answeringInJson(refusingUnfiltered(reserved))) });
  });
  const app = new App({ ...config.lite, connection });
  const session = new Session(database, app.config.api, log);
  correct(connection, session);
  await Promise.all([app.init(), session.load()]);
  const { timezones } = await connection.introspect({ useCache: true }); // so that the first request does not wait for it
  const rest = new Rest({ session, timezones: new Set(timezones), run: (call, request) => served.run(call, () => app.fetch(request)) });
  return {
    /** @param {Request} request @returns {Promise<Response>} */
    fetch: (request) => app.fetch(request),
    rest,
    /** After a change of the schema or of the configuration. */
    reload: async () => {
      await session.load();
      await connection.clearSchemaCache();
      await connection.introspect({ useCache: true });
    },
    close: () => pool.end(),
  };
}

/**
 * Refuses a statement that came upon an UPDATE or DELETE without a WHERE clause, also where something else stopped it later. The session is
 * retired, since it prints a function's statements only once.
 * @param {Awaited<ReturnType<Pool["reserve"]>>} connection
 */
function refusingUnfiltered({ unsafe, trees, retire }) {
  return async (/** @type {string} */ text, /** @type {any} */ parameters) => {
    try {
      return await unsafe(text, parameters);
    } finally {
      const verb = trees.length > 0 && trees.splice(0).map(unfilteredVerb).find(Boolean);
      if (verb) {
        retire();
        throw databaseError("21000", `${verb} requires a WHERE clause`);
      }
    }
  };
}

/**
 * Reads the rows of REST's statements as PostgreSQL's JSON.
 * @template {(sql: string, parameters: any) => PromiseLike<any>} F
 * @param {F} unsafe @returns {F}
 */
function answeringInJson(unsafe) {
  return /** @type {any} */ (async (/** @type {string} */ text, /** @type {any} */ parameters) => {
    const wrapped = served.getStore()?.isActing && inJson(text);
    if (!wrapped) return unsafe(text, parameters);
    const [{ body }] = await unsafe(wrapped, parameters);
    if (/^update/i.test(text)) /** @type {import("./rest.mjs").RestCall} */ (served.getStore()).hasUpdated = true;
    const rows = parseJson(body);
    return Object.assign(rows, { command: "SELECT", count: rows.length });
  });
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

/** @param {any} connection @param {Session} session */
function correct(connection, session) {
  // lite grants everything on every table with row security to the API roles. Our grants come from the migrations alone.
  connection.rlsState = "active";

  // The settings of a transaction in one statement instead of eleven; the role comes last, since it may not set all of the others.
  connection.applyJwtSessionContext = async (/** @type {any} */ tx, /** @type {any} */ context) => {
    const role = context.auth?.role || "anon";
    const call = served.getStore();
    const settings = {
      ...session.settings(role, call?.fn),
      "request.jwt.claims": JSON.stringify({ role, ...context.auth?.jwt }),
      "request.jwt.claim.sub": String(context.auth?.uid ?? ""),
      "request.jwt.claim.role": role,
      ...(call && {
        ...(session.printsTrees && PRINT_TREES),
        "request.method": call.method, "request.path": call.path, "request.headers": call.headers,
        search_path: searchPath(call.schema, session.api.extra_search_path), ...(call.timezone && { timezone: call.timezone }),
      }),
      "storage.operation": String(context.storage?.operation ?? ""),
      role,
    };
    await sql`select set_config(key, value, true) from json_each_text(${JSON.stringify(settings)}::json)`.execute(tx);
    if (!call) return;
    call.isActing = true;
    if (session.api.pre_request) await sql`select ${sql.raw(session.api.pre_request)}()`.execute(tx);
  };
  connection.applyRpcRequestGucs = async () => {};

  // The body as the request had it, and what `columns=` leaves of it.
  const resolve = connection.onPostgrestAST.bind(connection);
  connection.onPostgrestAST = async (/** @type {any} */ ast, /** @type {any} */ context) => {
    const call = served.getStore();
    if (ast.type === "rpc") {
      if (call?.fn && call.json && call.json.value !== null) {
        const args = rowsOf(call.json.value, session.arguments(call.fn).arrays);
        Object.assign(ast, { args, inputType: "json", paramsType: ast.paramsType ?? "named" });
      }
    } else if (ast.values !== undefined && ast.type !== "put") {
      const columns = (await connection.introspect({ useCache: true })).columns
        .filter((/** @type {any} */ { schema, table }) => table === ast.from && schema === (ast.schema ?? "public"));
      const isArray = (/** @type {any} */ column) => String(column.pg_type).startsWith("_");
      if (call?.json) ast.values = rowsOf(call.json.value, columns.filter(isArray).map((/** @type {any} */ { name }) => name));
      if (call?.isCsv) ast.values = withCsvNulls(ast.values);
      if (ast.$meta?.columns) keepColumns(ast);
      if (ast.type !== "update") fillEmptyRows(ast, columns[0]?.name);
    }
    if (call && ast.type === "update") readBackAllUpdated(ast, call);
    return resolve(ast, context);
  };

  // What is refused after the statement ran leaves nothing behind.
  const within = connection.withContext.bind(connection);
  connection.withContext = (/** @type {any} */ context, /** @type {(tx: any) => Promise<any>} */ work, /** @type {any} */ options) => {
    const call = served.getStore();
    return call ? rollingBackRefusals(call, (run) => within(context, run, options), work) : within(context, work, options);
  };

  // Errors that lite answers with its own code 500 "SUP": PostgREST hands on PostgreSQL's code under a status of its own.
  const normalize = connection.normalizeDbError.bind(connection);
  connection.normalizeDbError = (/** @type {unknown} */ error) => {
    const known = normalize(error);
    if (isConnectionError(known)) {
      return restError(503, AWAY.code, AWAY.message);
    }
    const status = typeof known?.code === "string" ? statusOf(known.code, known.message) : undefined;
    return status === undefined ? known : restError(status, known.code, known.message, known.detail, known.hint);
  };
}

/**
 * Where the answer to an update has aliases, casts or embeddings, lite reads the changed rows again by key and by the update's own filters,
 * which they may fit no more.
 * @param {any} ast of lite; changed in place @param {import("./rest.mjs").RestCall} call
 */
function readBackAllUpdated(ast, call) {
  const { where } = ast;
  Object.defineProperty(ast, "where", { enumerable: true, get: () => (call.hasUpdated ? undefined : where) });
}

/** @param {string} schema @param {string[]} extra */
const searchPath = (schema, extra) => [schema, ...extra].map((name) => `"${name.replaceAll('"', '""')}"`).join(", ");

/** Only the classes that lite does not know. @param {string} code @param {string} message */
function statusOf(code, message) {
  if (code === "22023" && /^role .* does not exist$/.test(message)) return 401;
  if (code === "42P01") return 404; // inside a function or a trigger: what is asked for by name is not in lite's schema cache
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
