// PostgREST's way with a request, before and after @supabase/lite: tokens, bytes that are no text, values that lite would reinterpret.

import { decodeJwt } from "jose";
import { json } from "./answers.mjs";
import { isRecord, parseJson } from "./values.mjs";

/**
 * @typedef {object} RestCall
 * What the hooks in api.mjs know of the request that they serve.
 * @property {string} method
 * @property {string} path            below /rest/v1
 * @property {string} schema
 * @property {string} [fn]            schema.name of the function that is called
 * @property {string} headers         as JSON, for current_setting('request.headers')
 * @property {string} [timezone]      of `Prefer: timezone=…`
 * @property {{ value: any }} [json]  the body, by parseJson
 * @property {boolean} [isCsv]        the body is CSV
 * @property {boolean} isForOne       one row is asked for, as an object
 * @property {boolean} [isActing]     the transaction has its role: statements are REST's own
 * @property {boolean} [hasUpdated]
 */

const RESERVED = /(^|\.)(select|order|limit|offset|on_conflict|columns|apikey)$/;
const TREE = /(^|\.)(or|and)$/;
/** Operators whose operand lite reads as a number, a boolean, null or a list where PostgREST leaves it to the column's type. */
const COMPARED = /^((?:not\.)?(?:eq|neq|gt|gte|lt|lte|match|imatch|cs|cd|ov)\.)(.*)$/s;
const MANY_PATTERNS = /^(?:not\.)?i?like\((?:any|all)\)\./;
const IN_LIST = /^((?:not\.)?in\.\()(.*)\)$/s;
/** One element of in.(…): in quotes, or up to the next comma. */
const LISTED = /("(?:[^"\\]|\\.)*")(?=,|$)|[^,]+/gs;
/** Inside or=(…): text in quotes, an operator with its operand, a list. */
const LEAF = /"(?:[^"\\]|\\.)*"|(\.(?:eq|neq|gt|gte|lt|lte|match|imatch)\.)([^"({,)][^,)]*)|(\.in\.\()((?:"(?:[^"\\]|\\.)*"|[^")])*)\)/gs;

export class Rest {
  /**
   * @param {{ session: import("./session.mjs").Session, timezones: Set<string>,
   *           run: (call: RestCall, request: Request) => Promise<Response> }} parts
   */
  constructor({ session, timezones, run }) {
    this.session = session;
    this.timezones = timezones;
    this.run = run;
  }

  /** @param {Request} request @param {URL} url @returns {Promise<Response>} */
  async fetch(request, url) {
    const headers = new Headers(request.headers);
    const refused = checkToken(headers);
    if (refused) return refused;

    const isRead = request.method === "GET" || request.method === "HEAD";
    const path = url.pathname.slice("/rest/v1".length);
    const schema = headers.get(isRead ? "accept-profile" : "content-profile") ?? this.session.api.schemas[0];
    const name = /^\/rpc\/([^/]+)$/.exec(path)?.[1];
    const fn = name && `${schema}.${new URLSearchParams(`name=${name}`).get("name")}`;
    /** @type {RestCall} */
    const call = {
      method: request.method, path, schema, fn, headers: JSON.stringify(Object.fromEntries(headers)),
      isForOne: headers.get("accept")?.includes("application/vnd.pgrst.object") ?? false,
    };
    const applied = this.#readPreferences(headers, call);

    const badByte = invalidByte(url.pathname + url.search);
    if (badByte) return invalidText(badByte);
    url.search = keepOperands(url.search, isRead && fn ? new Set(this.session.arguments(fn).names) : new Set());

    let body;
    if (!isRead && request.body) {
      const bytes = new Uint8Array(await request.arrayBuffer());
      const text = decode(bytes);
      if (text === undefined) return invalidText(firstInvalid(bytes));
      body = text;
      const kind = (headers.get("content-type") ?? "application/json").split(";")[0].trim();
      call.isCsv = kind === "text/csv";
      if (kind === "application/json" && text !== "") {
        try {
          call.json = { value: parseJson(text) };
        } catch {
          return error(400, "PGRST102", "Empty or invalid json");
        }
        if (!fn && !isRecord(call.json.value) && !Array.isArray(call.json.value)) {
          call.json.value = []; // PostgREST takes a scalar for no row
          body = "[]";
        }
      }
    }
    headers.delete("content-length");
    const response = await this.run(call, new Request(url, { method: request.method, headers, body }));
    if (applied) response.headers.append("preference-applied", applied);
    if (response.status === 401) {
      const { code, message } = await response.clone().json();
      response.headers.set("www-authenticate", challenge(code, message));
    }
    return response;
  }

  /**
   * `tx=` is not allowed on Supabase and passed over in silence; `timezone=` is followed when PostgreSQL knows it.
   * @param {Headers} headers @param {RestCall} call @returns {string | undefined} what the answer says was applied
   */
  #readPreferences(headers, call) {
    const prefer = headers.get("prefer");
    if (!prefer) return undefined;
    const preferences = prefer.split(",").map((preference) => preference.trim()).filter((preference) => !preference.startsWith("tx="));
    if (preferences.length > 0) headers.set("prefer", preferences.join(", "));
    else headers.delete("prefer");
    const timezone = preferences.find((preference) => preference.startsWith("timezone="))?.slice("timezone=".length);
    if (!timezone || !this.timezones.has(timezone)) return undefined;
    call.timezone = timezone;
    return `timezone=${timezone}`;
  }
}

/** @param {number} status @param {string} code @param {string} message @param {string | null} [details] @param {HeadersInit} [headers] */
const error = (status, code, message, details = null, headers) => json(status, { code, details, hint: null, message }, headers);

/** Carries an answer out of a transaction that is rolled back. */
class Refusal extends Error {
  /** @param {Response} response */
  constructor(response) {
    super();
    this.response = response;
  }
}

/**
 * @param {RestCall} call
 * @param {(run: (tx: unknown) => Promise<any>) => Promise<any>} transaction
 * @param {(tx: unknown) => Promise<any>} work
 */
export async function rollingBackRefusals(call, transaction, work) {
  try {
    return await transaction(async (tx) => {
      const answer = await work(tx);
      if (!(answer instanceof Response)) return answer;
      const response = call.isForOne && answer.ok ? await asOne(answer) : answer;
      if (response.status >= 400 && (await response.clone().json().catch(() => ({}))).code?.startsWith("PGRST")) throw new Refusal(response);
      return response;
    });
  } catch (thrown) {
    if (thrown instanceof Refusal) return thrown.response;
    throw thrown;
  }
}

/** lite answers some writes with an array also where an object is asked for. @param {Response} answer @returns {Promise<Response>} */
async function asOne(answer) {
  const rows = parseJson((await answer.clone().text()) || "null");
  if (!Array.isArray(rows) || answer.headers.get("content-type")?.startsWith("application/vnd.pgrst.object")) return answer;
  if (rows.length !== 1) return error(406, "PGRST116", "Cannot coerce the result to a single JSON object", `The result contains ${rows.length} rows`);
  const headers = new Headers(answer.headers);
  headers.set("content-type", "application/vnd.pgrst.object+json; charset=utf-8");
  headers.delete("content-length");
  return new Response(JSON.stringify(rows[0]), { status: answer.status, headers });
}

/** lite takes a token of the wrong form for none, and checks the others. @param {Headers} headers @returns {Response | undefined} */
function checkToken(headers) {
  const bearer = /^bearer(?:\s+(.*))?$/i.exec(headers.get("authorization") ?? "");
  if (!bearer) return undefined;
  const token = bearer[1]?.trim() ?? "";
  if (token.startsWith("sb_")) return undefined;
  headers.set("authorization", `Bearer ${token}`);
  if (token === "") return refuseToken("PGRST301", "Empty JWT is sent in Authorization header");
  const parts = token.split(".").length;
  if (parts !== 3) return refuseToken("PGRST301", `Expected 3 parts in JWT; got ${parts}`);
  try {
    const { nbf } = decodeJwt(token);
    if (typeof nbf === "number" && nbf > Date.now() / 1000) return refuseToken("PGRST303", "JWT not yet valid");
  } catch {
    // no JSON inside: its signature is wrong, too
  }
  return undefined;
}

/** @param {string} code @param {string} message */
const refuseToken = (code, message) => error(401, code, message, null, { "www-authenticate": challenge(code, message) });

/** @param {string | undefined} code @param {string} message */
const challenge = (code, message) =>
  code === "PGRST301" || code === "PGRST303" ? `Bearer error="invalid_token", error_description="${message}"` : "Bearer";

/** @param {string} byte as PostgreSQL shows it */
const invalidText = (byte) => error(400, "22021", `invalid byte sequence for encoding "UTF8": ${byte}`);

/** @param {Uint8Array} bytes @returns {string | undefined} undefined when they are no UTF-8 */
function decode(bytes) {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    return undefined;
  }
}

/** The first byte that is no UTF-8, as PostgreSQL shows it. @param {Uint8Array} bytes */
function firstInvalid(bytes) {
  let good = 0;
  for (let bad = bytes.length; bad - good > 1;) { // a prefix that ends inside a character can only be its last three bytes
    const middle = (good + bad) >> 1;
    const isGood = [0, 1, 2, 3].some((less) => decode(bytes.subarray(0, Math.max(0, middle - less))) !== undefined);
    if (isGood) good = middle;
    else bad = middle;
  }
  while (good > 0 && decode(bytes.subarray(0, good)) === undefined) good -= 1;
  return `0x${bytes[good].toString(16).padStart(2, "0")}`;
}

/** @param {string} text percent-encoded @returns {string | undefined} the first byte that is no UTF-8 */
function invalidByte(text) {
  if (!/%[89a-f]/i.test(text)) return undefined;
  const bytes = Buffer.from(text.replace(/%([0-9a-f]{2})/gi, (_, hex) => String.fromCharCode(parseInt(hex, 16))), "latin1");
  return decode(bytes) === undefined ? firstInvalid(bytes) : undefined;
}

/**
 * Quotes the operands of filters and the arguments of functions, so that lite hands them on as text: whether 007, null or true is a number,
 * a boolean or a word, the column's type says.
 * @param {string} search @param {Set<string>} names of the arguments @returns {string}
 */
function keepOperands(search, names) {
  if (search.length < 2) return search;
  const kept = new URLSearchParams();
  for (const [name, value] of new URLSearchParams(search)) kept.append(name, names.has(name) ? `"${value}"` : quoteOperand(name, value));
  return `?${kept}`;
}

/** @param {string} name @param {string} value */
function quoteOperand(name, value) {
  if (RESERVED.test(name)) return value;
  if (TREE.test(name)) {
    return value.replace(LEAF, (all, operator, operand, list, elements) =>
      operator ? `${operator}"${operand}"` : list ? `${list}${quoteList(elements)})` : all);
  }
  if (MANY_PATTERNS.test(value)) return value.replaceAll("*", "%");
  const compared = COMPARED.exec(value);
  if (compared) return `${compared[1]}"${compared[2]}"`;
  const listed = IN_LIST.exec(value);
  return listed ? `${listed[1]}${quoteList(listed[2])})` : value;
}

/** @param {string} elements of in.(…) */
const quoteList = (elements) =>
  elements.replace(LISTED, (element, quoted) => quoted ?? `"${element.replace(/["\\]/g, "\\$&")}"`);
