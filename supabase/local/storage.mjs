// Around @supabase/lite's Storage: what it answers otherwise than Supabase's.

import { json } from "./answers.mjs";
import { actAs, TokenError } from "./keys.mjs";

/**
 * @typedef {(request: Request) => Promise<Response>} Fetch
 */

export class Storage {
  /** @param {{ pool: import("./database.mjs").Pool, keys: import("./keys.mjs").Keys, lite: Fetch }} parts */
  constructor({ pool, keys, lite }) {
    this.pool = pool;
    this.keys = keys;
    this.lite = lite;
  }

  /** @param {Request} request @param {URL} url @returns {Promise<Response>} */
  async fetch(request, url) {
    const path = url.pathname.slice("/storage/v1".length);
    const refused = await this.#verify(request, url, path);
    if (refused) return refused;
    const list = /^\/object\/list\/([^/]+)$/.exec(path);
    if (list && request.method === "POST") return this.#list(request, decodeURIComponent(list[1]));
    const signMany = /^\/object\/sign\/[^/]+$/.test(path);
    if (signMany && request.method === "POST") return this.#signMany(request, url);
    const response = await this.lite(await asPlainBody(request));
    if (request.method === "POST" && response.ok && /^\/object\/(upload\/)?sign\//.test(path)) {
      return json(response.status, mendSigned(await response.json()), response.headers);
    }
    if (response.status === 500 && /^\/object\/(upload\/)?sign\//.test(path)) {
      return refusal("400", "InvalidJWT", "\"exp\" claim timestamp check failed or signature invalid");
    }
    const wanted = url.searchParams.get("download");
    if (response.ok && request.method === "GET" && wanted !== null) {
      const name = wanted || decodeURIComponent(path.slice(path.lastIndexOf("/") + 1));
      response.headers.set("content-disposition", `attachment; filename*=UTF-8''${encodeURIComponent(name)}`);
    }
    return response;
  }

  /**
   * Refuses a bearer token that is not valid in the real server's form, which has row security's status and code
   * (https://github.com/supabase/storage, src/http/plugins/jwt.ts). Public objects and signed URLs need no token.
   * @param {Request} request @param {URL} url @param {string} path
   */
  async #verify(request, url, path) {
    if (request.method === "OPTIONS" || url.searchParams.has("token") || /^\/object\/(info\/)?public\//.test(path)) return undefined;
    try {
      await this.keys.claimsOf(request);
    } catch (error) {
      if (!(error instanceof TokenError && error.cause instanceof Error)) throw error;
      return refusal("403", "Unauthorized", error.cause.message, "AccessDenied");
    }
    return undefined;
  }

  /** lite takes the call for many as one for the object without a name. @param {Request} request @param {URL} url */
  async #signMany(request, url) {
    const { paths, expiresIn } = await request.json();
    const headers = new Headers(request.headers);
    headers.delete("content-length");
    const sign = async (/** @type {string} */ path) => {
      const one = new URL(`${url.pathname}/${path.split("/").map(encodeURIComponent).join("/")}`, url);
      const response = await this.lite(new Request(one, { method: "POST", headers, body: JSON.stringify({ expiresIn }) }));
      if (response.ok) return { path, error: null, ...mendSigned(await response.json()) };
      return { path, signedURL: null, error: "Either the object does not exist or you do not have access to it" };
    };
    return json(200, await Promise.all(paths.map(sign)));
  }

  /** lite lists whole names under a prefix; Supabase lists one level, folders included. @param {Request} request @param {string} bucket */
  async #list(request, bucket) {
    const claims = await this.keys.claimsOf(request);
    const { prefix = "", limit = 100, offset = 0, search = "", sortBy } = await request.json();
    const rows = await this.pool.transaction(async (tx) => {
      await actAs(tx, claims);
      return tx`select row_to_json(s) as json
                  from storage.search(${prefix}, ${bucket}, ${limit}, 1, ${offset}, ${search},
                                      ${sortBy?.column ?? "name"}, ${sortBy?.order ?? "asc"}) s`;
    });
    return json(200, rows.map((row) => row.json));
  }
}

/**
 * supabase-js and storage3 upload a file as a form, whose parts lite reads differently: it gets the file itself, as the body.
 * @param {Request} request @returns {Promise<Request>}
 */
async function asPlainBody(request) {
  if (!["POST", "PUT"].includes(request.method) || !request.headers.get("content-type")?.startsWith("multipart/form-data")) return request;
  const form = await request.formData();
  const file = [...form.values()].find((value) => typeof value !== "string");
  const headers = new Headers(request.headers);
  headers.set("content-type", (file instanceof Blob && file.type) || "application/octet-stream");
  const age = form.get("cacheControl");
  if (typeof age === "string" && /^\d+$/.test(age)) headers.set("cache-control", `max-age=${age}`);
  const body = file instanceof Blob ? await file.arrayBuffer() : new ArrayBuffer(0);
  headers.set("content-length", String(body.byteLength));
  return new Request(request.url, { method: request.method, headers, body });
}

/** Both clients put the answer behind `…/storage/v1`. @param {{ signedUrl: string, token?: string }} signed */
function mendSigned({ signedUrl, token }) {
  const url = signedUrl.replace(/^\/storage\/v1/, "");
  return token === undefined ? { signedURL: url } : { url, token }; // the latter is a place to upload to
}

/** @param {string} statusCode @param {string} error @param {string} message @param {string} [code] */
export const refusal = (statusCode, error, message, code) => json(400, { statusCode, ...(code && { code }), error, message });
