// What PostgREST reads from the database about itself: settings of roles and functions, and its own configuration (pgrst.*).

import { mayLackWhere } from "./safeupdate.mjs";
import { databaseError } from "./values.mjs";

/**
 * @typedef {import("./database.mjs").Sql} Sql
 * @typedef {Record<string, string>} Settings
 */

/** pgrst.* of the role authenticator that are followed here, by the name lite has for them. */
const FOLLOWED = /** @type {const} */ ({
  db_schemas: ["schemas", list],
  db_max_rows: ["max_rows", Number],
  db_extra_search_path: ["extra_search_path", list],
  db_aggregates_enabled: ["aggregates_enabled", isTrue],
  db_plan_enabled: ["plan_enabled", isTrue],
  db_pre_request: ["pre_request", String],
});

/** PostgREST's db-hoisted-tx-settings: those of a function that hold for the whole transaction. */
const HOISTED = ["statement_timeout", "default_transaction_isolation", "plan_filter.statement_cost_limit"];

/** @param {string} text */
function list(text) {
  return text.split(",").map((name) => name.trim()).filter(Boolean);
}

/** @param {string} text */
function isTrue(text) {
  return text.toLowerCase() === "true";
}

export class Session {
  /** @type {Map<string, Settings>} what holds for the API roles: the authenticator's settings, then the role's own */
  #roles = new Map();
  /** @type {Map<string, { settings: Settings, arguments: string[], arrays: string[] }>} by schema.name, all overloads together */
  #functions = new Map();
  /** @type {Set<string>} */
  #knownRoles = new Set();
  /** Some function may hold an UPDATE or DELETE without a WHERE clause. */
  printsTrees = false;
  /** @type {Set<string>} pgrst.* that the log has named */
  #ignored = new Set();

  /** @param {Sql} sql as superuser @param {Record<string, any>} api lite's section of that name @param {(line: string) => void} log */
  constructor(sql, api, log) {
    this.sql = sql;
    this.api = api;
    this.fromFile = { ...api };
    this.log = log;
  }

  /** Reads everything again: at the start, and when `notify pgrst` says so. */
  async load() {
    const { sql } = this;
    const [{ settings: everybody }] = await sql`
      select json_object_agg(name, value) as settings from ${this.#settingsOf(sql`0`)} s`;
    const roles = await sql`
      select r.rolname as role, pg_has_role('authenticator', r.oid, 'member') as is_allowed,
             (select json_object_agg(name, value) from ${this.#settingsOf(sql`r.oid`)} s) as settings
        from pg_roles r`;
    this.#knownRoles = new Set(roles.map(({ role }) => role));
    const own = roles.find(({ role }) => role === "authenticator")?.settings ?? {};
    const general = { statement_timeout: "0", ...everybody, ...without(own, "pgrst.") };
    this.#roles = new Map(roles.filter((row) => row.is_allowed)
      .map(({ role, settings }) => [role, { ...general, ...without(settings ?? {}, "pgrst.") }]));
    this.#configure(own);

    const functions = await sql`
      select n.nspname || '.' || p.proname as name, p.proconfig as settings,
             coalesce(p.proargnames[1:p.pronargs], '{}') as arguments,
             array(select p.proargnames[i] from unnest(p.proargtypes) with ordinality a (oid, i) join pg_type t on t.oid = a.oid
                    where t.typcategory = 'A' and p.proargnames[i] is not null) as arrays
        from pg_proc p join pg_namespace n on n.oid = p.pronamespace where n.nspname = any (${this.api.schemas})`;
    this.#functions = new Map();
    for (const { name, settings, arguments: names, arrays } of functions) {
      const known = this.#functions.get(name) ?? { settings: {}, arguments: [], arrays: [] };
      for (const [key, value] of (settings ?? []).map((/** @type {string} */ text) => /^([^=]+)=(.*)$/s.exec(text)?.slice(1) ?? [])) {
        if (HOISTED.includes(key)) known.settings[key] = value;
      }
      known.arguments.push(...names);
      known.arrays.push(...arrays);
      this.#functions.set(name, known);
    }

    const sources = await sql`
      select coalesce(pg_get_function_sqlbody(p.oid), p.prosrc) as source
        from pg_proc p join pg_language l on l.oid = p.prolang
       where l.lanname in ('sql', 'plpgsql') and p.pronamespace not in ('pg_catalog'::regnamespace, '_local'::regnamespace)`;
    this.printsTrees = sources.some(({ source }) => mayLackWhere(source));
  }

  /** What ALTER ROLE or ALTER DATABASE set and a transaction can follow; for this database first. @param {import("postgres").PendingQuery<any>} role */
  #settingsOf(role) {
    return this.sql`(
      select name, substr(setting, length(name) + 2) as value
        from pg_db_role_setting s, unnest(s.setconfig) setting, split_part(setting, '=', 1) name
       where s.setrole = ${role} and s.setdatabase in (0, (select oid from pg_database where datname = current_database()))
         and not exists (select from pg_settings g where g.name = split_part(setting, '=', 1) and g.context not in ('user', 'superuser'))
       order by s.setdatabase)`;
  }

  /** @param {Settings} settings of the role authenticator */
  #configure(settings) {
    for (const key of Object.keys(this.api)) delete this.api[key];
    Object.assign(this.api, this.fromFile);
    for (const [key, value] of Object.entries(settings).filter(([name]) => name.startsWith("pgrst."))) {
      const name = key.slice("pgrst.".length);
      const followed = /** @type {Record<string, readonly [string, (text: string) => unknown]>} */ (FOLLOWED)[name];
      if (followed) this.api[followed[0]] = followed[1](value);
      else if (!this.#ignored.has(name)) this.log(`${key} of the role authenticator is not followed here`);
      if (!followed) this.#ignored.add(name);
    }
  }

  /**
   * The settings of a transaction that acts as one of the API roles.
   * @param {string} role @param {string | undefined} fn schema.name of the function that is called
   * @throws as PostgreSQL does when a token names a role that is none, or none of the authenticator's
   */
  settings(role, fn) {
    const settings = this.#roles.get(role);
    if (settings) return { ...settings, ...(fn && this.#functions.get(fn)?.settings) };
    throw this.#knownRoles.has(role)
      ? databaseError("42501", `permission denied to set role "${role}"`)
      : databaseError("22023", `role "${role}" does not exist`);
  }

  /** Names of a function's arguments, and which of them are arrays. @param {string} fn schema.name */
  arguments(fn) {
    const { arguments: names, arrays } = this.#functions.get(fn) ?? { arguments: [], arrays: [] };
    return { names, arrays };
  }
}

/** @param {Settings} settings @param {string} prefix @returns {Settings} */
function without(settings, prefix) {
  return Object.fromEntries(Object.entries(settings).filter(([name]) => !name.startsWith(prefix)));
}
