// Who asks: an API key is a role, and a token of Auth is a user.

import { errors, jwtVerify, SignJWT } from "jose";

/**
 * @typedef {{ role: string, sub?: string, exp?: number, [claim: string]: unknown }} Claims
 * @typedef {import("./config.mjs").Config} Config
 */

/**
 * A bearer token or API key that is refused. `message` and `code` are Realtime's; `cause` is the verifier's error, whose message the
 * Storage server answers with. An error without a cause is about the API key.
 */
export class TokenError extends Error {
  name = "TokenError";

  /** @param {string} message @param {{ code?: string, cause?: unknown }} [options] */
  constructor(message, { code = "InvalidJWTToken", cause } = {}) {
    super(message, { cause });
    this.code = code;
  }
}

export class Keys {
  #roles;
  #secret;

  /** @param {Pick<Config, "publishableKey" | "secretKey" | "jwtSecret">} config */
  constructor({ publishableKey, secretKey, jwtSecret }) {
    this.#roles = new Map([[publishableKey, "anon"], [secretKey, "service_role"]]);
    this.#secret = new TextEncoder().encode(jwtSecret);
  }

  /** The claims of an API key or of a user's token. @param {string} token @returns {Promise<Claims>} */
  async claims(token) {
    const role = this.#roles.get(token);
    if (role) return { role };
    try {
      const { payload } = await jwtVerify(token, this.#secret, { algorithms: ["HS256"] });
      if (typeof payload.role !== "string" || payload.exp === undefined) {
        throw new Error("Fields `role` and `exp` are required in JWT");
      }
      return /** @type {Claims} */ (payload);
    } catch (cause) {
      if (cause instanceof errors.JWTExpired) {
        const ago = Math.max(0, Math.floor(Date.now() / 1000) - Number(cause.payload.exp));
        throw new TokenError(`Token has expired ${ago} seconds ago`, { cause });
      }
      if (cause instanceof errors.JWSSignatureVerificationFailed) {
        throw new TokenError("Failed to validate JWT signature", { code: "JwtSignatureError", cause });
      }
      if (cause instanceof errors.JOSEError) throw new TokenError("The token provided is not a valid JWT", { code: "MalformedJWT", cause });
      throw new TokenError(/** @type {Error} */ (cause).message, { cause });
    }
  }

  /** The payload of a token; the error is the library's own. @param {string} token @returns {Promise<Claims>} */
  async verify(token) {
    return /** @type {Claims} */ ((await jwtVerify(token, this.#secret, { algorithms: ["HS256"] })).payload);
  }

  /** @param {string | null | undefined} key */
  isKey(key) {
    return typeof key === "string" && this.#roles.has(key);
  }

  /**
   * The claims of an HTTP request: those of its bearer token, or else of its API key, as Supabase's own gateway does it.
   * @param {Request} request @returns {Promise<Claims>}
   */
  async claimsOf(request) {
    const key = request.headers.get("apikey") ?? new URL(request.url).searchParams.get("apikey");
    const bearer = /^Bearer\s+(.+)$/i.exec(request.headers.get("authorization") ?? "")?.[1];
    if (!this.isKey(key)) throw new TokenError(key ? "Invalid API key" : "No API key found in request");
    return this.claims(bearer && !bearer.startsWith("sb_") ? bearer : /** @type {string} */ (key));
  }

  /** @param {Record<string, unknown>} claims */
  sign(claims) {
    return new SignJWT(claims).setProtectedHeader({ alg: "HS256", typ: "JWT" }).sign(this.#secret);
  }
}

/**
 * Makes a transaction act for somebody, as PostgREST and Realtime do it.
 * @param {import("./database.mjs").Connection} tx @param {Claims} claims @param {string} [topic]
 */
export async function actAs(tx, claims, topic = "") {
  await tx`select set_config('request.jwt.claims', ${JSON.stringify(claims)}, true),
                  set_config('request.jwt.claim.sub', ${claims.sub ?? ""}, true),
                  set_config('request.jwt.claim.role', ${claims.role}, true),
                  set_config('realtime.topic', ${topic}, true),
                  set_config('role', ${claims.role}, true)`;
}
