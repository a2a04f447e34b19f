// What @supabase/lite's Auth lacks: anonymous sign-in, the admin calls on users, and the full set of claims in a token.

import { randomBytes, randomUUID } from "node:crypto";
import { json } from "./answers.mjs";

/**
 * @typedef {import("./database.mjs").Sql} Sql
 * @typedef {import("./database.mjs").Pool} Pool
 * @typedef {import("./keys.mjs").Keys} Keys
 * @typedef {(request: Request) => Promise<Response>} Fetch
 */

const ADMIN = /^\/auth\/v1\/admin\/users(?:\/([0-9a-f-]{36}))?$/;

export class Auth {
  /** @param {{ sql: Sql, pool: Pool, keys: Keys, lite: Fetch, anonymousSignIns: boolean }} parts */
  constructor({ sql, pool, keys, lite, anonymousSignIns }) {
    this.sql = sql;
    this.pool = pool;
    this.keys = keys;
    this.lite = lite;
    this.anonymousSignIns = anonymousSignIns;
  }

  /** @param {Request} request @param {URL} url @returns {Promise<Response>} */
  async fetch(request, url) {
    const admin = ADMIN.exec(url.pathname);
    if (admin && request.method !== "OPTIONS") return this.#admin(request, url, admin[1]);
    if (url.pathname === "/auth/v1/signup" && request.method === "POST") {
      const body = await request.clone().json().catch(() => undefined);
      if (!body) return json(400, { code: 400, error_code: "bad_json", msg: "Could not parse request body as JSON" });
      if (!body.email && !body.phone && !body.password) return this.#signInAnonymously(request, body.data ?? {});
    }
    const response = await this.lite(request);
    if (response.status === 400 && url.searchParams.get("grant_type") === "refresh_token") return withRefreshCode(response);
    return this.#complete(response);
  }

  /**
   * lite signs up a user with a name nobody knows; then the user loses name and password.
   * @param {Request} request @param {Record<string, unknown>} data
   */
  async #signInAnonymously(request, data) {
    if (!this.anonymousSignIns) {
      return json(422, { code: 422, error_code: "anonymous_provider_disabled", msg: "Anonymous sign-ins are disabled" });
    }
    const headers = new Headers(request.headers);
    headers.delete("content-length");
    const response = await this.lite(new Request(request.url, {
      method: "POST",
      headers,
      body: JSON.stringify({ email: `${randomUUID()}@anonymous.invalid`, password: `${randomBytes(24).toString("base64url")}aA1!`, data }),
    }));
    const session = await response.clone().json().catch(() => undefined);
    if (!response.ok || !session?.user?.id) return response;
    await this.pool.transaction(async (tx) => {
      await tx`update auth.users set is_anonymous = true, email = null, encrypted_password = null, email_confirmed_at = null,
                      raw_app_meta_data = '{}', raw_user_meta_data = raw_user_meta_data - '{sub,email,email_verified,phone_verified}'::text[]
                where id = ${session.user.id}`;
      await tx`delete from auth.identities where user_id = ${session.user.id}`;
    });
    return this.#complete(response);
  }

  /**
   * A session's token gets the claims that GoTrue puts there, and its user is told as the database has it.
   * @param {Response} response
   */
  async #complete(response) {
    if (!response.ok || !response.headers.get("content-type")?.includes("json")) return response;
    const body = await response.json();
    const id = body?.user?.id ?? (body?.aud ? body.id : undefined);
    const user = id && await this.#user(id);
    if (user && body.user) body.user = { ...body.user, ...user };
    else if (user) Object.assign(body, user);
    if (user && typeof body.access_token === "string") body.access_token = await this.#sign(body.access_token, user);
    return json(response.status, body, response.headers);
  }

  /** @param {string} token @param {Record<string, any>} user */
  async #sign(token, user) {
    const claims = JSON.parse(Buffer.from(token.split(".")[1], "base64url").toString());
    return this.keys.sign({
      iss: "http://127.0.0.1/auth/v1",
      ...claims,
      email: user.email,
      phone: user.phone,
      app_metadata: user.app_metadata,
      user_metadata: user.user_metadata,
      aal: "aal1",
      amr: [{ method: user.is_anonymous ? "anonymous" : "password", timestamp: claims.iat }],
      is_anonymous: user.is_anonymous,
    });
  }

  /** @param {Request} request @param {URL} url @param {string | undefined} id */
  async #admin(request, url, id) {
    const claims = await this.keys.claimsOf(request);
    if (claims.role !== "service_role") return json(403, { code: 403, error_code: "not_admin", msg: "User not allowed" });
    const body = ["POST", "PUT"].includes(request.method) ? await request.json() : {};
    switch (`${request.method} ${id ? "one" : "all"}`) {
      case "POST all":
        return this.#create(body);
      case "GET all":
        return this.#list(Number(url.searchParams.get("page") || 1), Number(url.searchParams.get("per_page") || 50));
      case "GET one":
        return found(await this.#user(id));
      case "PUT one":
        await this.#update(/** @type {string} */ (id), body);
        return found(await this.#user(id));
      case "DELETE one": {
        const user = await this.#user(id);
        await this.sql`delete from auth.users where id = ${/** @type {string} */ (id)}`;
        return user ? json(200, {}) : found(user);
      }
      default:
        return json(405, { code: 405, msg: "Method not allowed" });
    }
  }

  /** @param {Record<string, any>} body */
  async #create(body) {
    const { sql } = this;
    const id = body.id ?? randomUUID();
    const email = body.email ? String(body.email).toLowerCase() : null;
    const [taken] = email ? await sql`select from auth.users where email = ${email} and not is_sso_user` : [];
    if (taken) {
      return json(422, { code: 422, error_code: "email_exists", msg: "A user with this email address has already been registered" });
    }
    const metadata = sql.json({ provider: "email", providers: ["email"], ...body.app_metadata });
    await this.pool.transaction(async (tx) => {
      await tx`insert into auth.users (id, email, phone, encrypted_password, email_confirmed_at, raw_app_meta_data, raw_user_meta_data)
               values (${id}, ${email}, ${body.phone ?? null}, ${body.password ? hash(tx, body.password) : null},
                       ${body.email_confirm ? sql`now()` : null}, ${metadata}, ${sql.json(body.user_metadata ?? {})})`;
      if (email) {
        await tx`insert into auth.identities (id, provider, provider_id, user_id, identity_data)
                 values (${randomUUID()}, 'email', ${id}, ${id},
                         ${sql.json({ sub: id, email, email_verified: false, phone_verified: false })})`;
      }
    });
    return json(200, await this.#user(id));
  }

  /** @param {string} id @param {Record<string, any>} body */
  async #update(id, body) {
    const { sql } = this;
    await this.pool.transaction(async (tx) => {
      if (body.email) await tx`update auth.users set email = ${String(body.email).toLowerCase()} where id = ${id}`;
      if (body.password) await tx`update auth.users set encrypted_password = ${hash(tx, body.password)} where id = ${id}`;
      if (body.email_confirm) await tx`update auth.users set email_confirmed_at = coalesce(email_confirmed_at, now()) where id = ${id}`;
      await tx`update auth.users
                  set raw_app_meta_data = coalesce(raw_app_meta_data, '{}') || ${sql.json(body.app_metadata ?? {})},
                      raw_user_meta_data = coalesce(raw_user_meta_data, '{}') || ${sql.json(body.user_metadata ?? {})},
                      updated_at = now()
                where id = ${id}`;
    });
  }

  /** @param {number} page from 1 @param {number} perPage */
  async #list(page, perPage) {
    const rows = await this.sql`select id from auth.users order by created_at desc, id limit ${perPage} offset ${(page - 1) * perPage}`;
    const users = await Promise.all(rows.map(({ id }) => this.#user(id)));
    const [{ count }] = await this.sql`select count(*)::int as count from auth.users`;
    return json(200, { users, aud: "authenticated" }, { "x-total-count": String(count) });
  }

  /** A user as GoTrue tells it. @param {string | undefined} id @returns {Promise<Record<string, any> | undefined>} */
  async #user(id) {
    const [row] = await this.sql`
      select json_build_object(
               'id', u.id, 'aud', u.aud, 'role', u.role, 'email', coalesce(u.email, ''), 'phone', coalesce(u.phone, ''),
               'email_confirmed_at', u.email_confirmed_at, 'confirmed_at', u.confirmed_at, 'last_sign_in_at', u.last_sign_in_at,
               'app_metadata', u.raw_app_meta_data, 'user_metadata', u.raw_user_meta_data,
               'identities', coalesce((select json_agg(json_build_object(
                 'identity_id', i.id, 'id', i.provider_id, 'user_id', i.user_id, 'identity_data', i.identity_data, 'provider', i.provider,
                 'email', i.email, 'last_sign_in_at', i.last_sign_in_at, 'created_at', i.created_at, 'updated_at', i.updated_at))
                 from auth.identities i where i.user_id = u.id), '[]'),
               'created_at', u.created_at, 'updated_at', u.updated_at, 'is_anonymous', u.is_anonymous) as json
        from auth.users u where u.id = ${/** @type {string} */ (id)}`;
    if (!row) return undefined;
    return Object.fromEntries(Object.entries(row.json).filter(([, value]) => value !== null));
  }
}

/** A token of a form that lite does not issue is as unknown as any other. @param {Response} response */
async function withRefreshCode(response) {
  const body = await response.json();
  return json(400, body.error_code !== "validation_failed" ? body
    : { ...body, error_code: "refresh_token_not_found", msg: "Invalid Refresh Token: Refresh Token Not Found" }, response.headers);
}

/** As GoTrue and lite hash them, so that either can check it. @param {import("postgres").ISql} sql @param {string} password */
const hash = (sql, password) => sql`extensions.crypt(${password}, extensions.gen_salt('bf', 10))`;

/** @param {Record<string, any> | undefined} user */
const found = (user) => user ? json(200, user) : json(404, { code: 404, error_code: "user_not_found", msg: "User not found" });
