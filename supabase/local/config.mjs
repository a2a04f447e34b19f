// supabase/config.toml: the same file that the Supabase CLI reads. Only the parts that mean something here are taken.

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { parse } from "smol-toml";
import { Failure } from "./failure.mjs";
import { parseConfiguredSize } from "./storage/limits.mjs";

/**
 * @typedef {object} Config
 * @property {string} publishableKey  opens the API as role anon
 * @property {string} secretKey       opens the API as role service_role, past row security
 * @property {string} jwtSecret       signs the tokens of signed-in users
 * @property {string[]} seedPaths     relative to the supabase folder
 * @property {boolean} migrate
 * @property {number} sizeLimit      bytes that one upload may have
 * @property {boolean} anonymousSignIns
 * @property {boolean} hasFunctions
 * @property {Record<string, { verifyJwt: boolean, enabled: boolean }>} functions  those of which something is said
 * @property {Record<string, any>} lite  what @supabase/lite understands of the file
 */

/** @param {string} supabaseDir @returns {Config} */
export function readConfig(supabaseDir) {
  const path = join(supabaseDir, "config.toml");
  /** @type {Record<string, any>} */
  let file;
  try {
    file = parse(readFileSync(path, "utf8"));
  } catch (error) {
    throw new Failure(`${path} cannot be read: ${/** @type {Error} */ (error).message}`);
  }
  const auth = file.auth ?? {};
  for (const name of ["publishable_key", "secret_key", "jwt_secret"]) {
    if (typeof auth[name] !== "string" || auth[name] === "" || auth[name].startsWith("env(")) {
      throw new Failure(`${path} needs ${name} in its section [auth]: the keys for local development stand there.`);
    }
  }
  const seed = file.db?.seed ?? {};
  return {
    publishableKey: auth.publishable_key,
    secretKey: auth.secret_key,
    jwtSecret: auth.jwt_secret,
    seedPaths: seed.enabled === false ? [] : (seed.sql_paths ?? ["./seed.sql"]),
    migrate: file.db?.migrations?.enabled !== false,
    sizeLimit: parseConfiguredSize(file.storage?.file_size_limit ?? "50MiB"),
    anonymousSignIns: auth.enable_anonymous_sign_ins === true,
    hasFunctions: file.edge_runtime?.enabled !== false,
    functions: Object.fromEntries(Object.entries(file.functions ?? {}).map(([name, said]) =>
      [name, { verifyJwt: said.verify_jwt !== false, enabled: said.enabled !== false }])),
    lite: {
      api: {
        enabled: true,
        schemas: file.api?.schemas ?? ["public"],
        extra_search_path: file.api?.extra_search_path ?? ["public", "extensions"],
        max_rows: file.api?.max_rows ?? 1000,
        pg_safe_update: true, // preloaded on Supabase
      },
      auth: {
        enabled: true,
        site_url: auth.site_url ?? "http://127.0.0.1:3000",
        jwt_secret: auth.jwt_secret,
        jwt_expiry: auth.jwt_expiry ?? 3600,
        enable_signup: auth.enable_signup !== false,
        enable_refresh_token_rotation: auth.enable_refresh_token_rotation !== false,
        refresh_token_reuse_interval: auth.refresh_token_reuse_interval ?? 10,
        minimum_password_length: auth.minimum_password_length ?? 6,
        publishable_key: auth.publishable_key,
        secret_key: auth.secret_key,
        email: { enable_signup: auth.email?.enabled !== false, enable_confirmations: auth.email?.enable_confirmations === true },
      },
      storage: { enabled: false },
      studio: { enabled: false },
    },
  };
}
