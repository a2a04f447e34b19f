// The embedded Supabase: a real PostgreSQL with the project's migrations, and REST, Auth, Storage, Realtime and Edge Functions in front of
// it, in one program without Docker. Read from here: options → config → postgres → bootstrap → migrations → api → realtime → gateway.

import { mkdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { Failure } from "./failure.mjs";
import { checkInstallation, checkSupabaseDir, readOptions, USAGE } from "./options.mjs";

const UPKEEP_MS = 60 * 60 * 1000;

/**
 * @param {import("./options.mjs").Options} options
 * @param {(line: string) => void} log
 * @param {(kill: () => void) => void} onKillable hears how to end the database at once, as soon as there is one
 */
async function start(options, log, onKillable) {
  const begun = performance.now();
  checkInstallation();
  checkSupabaseDir(options.supabaseDir);
  const parts = await load();
  const config = parts.readConfig(options.supabaseDir);
  config.lite.auth.jwt_expiry = options.jwtExpiry ?? config.lite.auth.jwt_expiry;
  const { dataDir } = options;

  mkdirSync(dataDir, { recursive: true });
  parts.lock(dataDir);
  if (options.reset) for (const name of ["db", "files"]) rmSync(join(dataDir, name), { recursive: true, force: true });
  const port = await parts.choosePort(options.port, "--port");
  const dbPort = await parts.choosePort(options.dbPort, "--db-port");

  /** @type {(() => unknown)[]} */
  const endings = []; // what was started, to be ended in the opposite order
  const stop = async () => {
    for (const end of endings.splice(0).reverse()) await end();
  };
  try {
    const postgres = new parts.Postgres({ dataDir, port: dbPort, log });
    endings.push(() => postgres.stop());
    onKillable(() => postgres.kill());
    await postgres.start();

    const sql = parts.connect(postgres.url, { max: 4, name: "gateway" }); // single statements
    const pool = new parts.Pool(postgres.url, { max: 8, name: "gateway" }); // transactions
    endings.push(() => sql.end({ timeout: 0 }), () => pool.end());
    await parts.bootstrap(sql);
    if (config.migrate) {
      const owner = parts.connect(postgres.urlAs("postgres"), { max: 1, name: "migrations" });
      try {
        for (const file of await parts.migrate(sql, owner, options.supabaseDir)) log(`applied ${file}`);
        await parts.seed(owner, options.supabaseDir, config.seedPaths);
      } finally {
        await owner.end();
      }
    }

    const keys = new parts.Keys(config);
    const realtime = new parts.Realtime({ sql, pool, url: postgres.url, keys, joinErrorDelayMs: options.joinErrorDelayMs, log });
    endings.push(() => realtime.stop());
    const [api] = await Promise.all([
      parts.createApi({ url: postgres.url, config, sql, log }),
      realtime.start(),
    ]);
    endings.push(() => api.close());
    await sql.listen("pgrst", (word) => void (["", "reload schema", "reload config"].includes(word) && api.reload()));
    const keep = () => Promise.all([parts.keepMessages(sql), parts.keepAnswers(sql)]).catch((error) => log(`upkeep failed: ${error.message}`));
    const upkeep = setInterval(keep, UPKEEP_MS);
    endings.push(() => clearInterval(upkeep));

    const net = new parts.Net({ sql, log });
    await net.start();
    endings.push(() => net.stop());
    const apiUrl = `http://${parts.HOST}:${port}`;
    const functions = new parts.Functions({
      config, keys, supabaseDir: options.supabaseDir, dataDir, apiUrl, dbUrl: postgres.urlAs("postgres"), envFile: options.functionsEnv, log,
    });
    endings.push(() => functions.stop());

    const storagePool = new parts.Pool(postgres.url, { max: 16, name: "storage" });
    endings.push(() => storagePool.end());
    const auth = new parts.Auth({ sql, pool, keys, lite: api.fetch, anonymousSignIns: config.anonymousSignIns });
    const storage = new parts.Storage({ sql, pool: storagePool, keys, filesDir: join(dataDir, "files"), sizeLimit: config.sizeLimit });
    const gateway = parts.createGateway({
      auth: (request, url) => auth.fetch(request, url),
      storage: (request, url) => storage.fetch(request, url),
      rest: (request, url) => api.rest.fetch(request, url),
      realtime: (request, url) => realtime.fetch(request, url),
      functions: (request, url) => functions.fetch(request, url),
    });
    gateway.on("upgrade", (request, socket, head) => void realtime.upgrade(request, socket, head));
    await parts.listen(gateway, port);
    endings.push(() => {
      gateway.close();
      gateway.closeAllConnections();
    });

    const ready = {
      event: "ready",
      api_url: apiUrl,
      db_url: postgres.url,
      publishable_key: config.publishableKey,
      secret_key: config.secretKey,
      data_dir: dataDir,
      started_in_ms: Math.round(performance.now() - begun),
    };
    return { ready, stop };
  } catch (error) {
    await stop();
    throw error;
  }
}

/** Loaded only now, so that a missing package is told in a sentence and not by a stack. */
async function load() {
  process.env.LITE_TELEMETRY = "0";
  // @supabase/lite reports every refused statement on the console; the client is told the same, and standard output is the ready line's.
  for (const name of /** @type {const} */ (["log", "info", "warn", "error", "debug"])) console[name] = () => {};
  return {
    ...(await import("./config.mjs")), ...(await import("./lock.mjs")), ...(await import("./ports.mjs")),
    ...(await import("./postgres.mjs")), ...(await import("./database.mjs")), ...(await import("./bootstrap.mjs")),
    ...(await import("./migrations.mjs")), ...(await import("./keys.mjs")), ...(await import("./api.mjs")),
    ...(await import("./auth.mjs")), ...(await import("./storage/server.mjs")), ...(await import("./realtime/server.mjs")),
    ...(await import("./net.mjs")), ...(await import("./functions.mjs")), ...(await import("./gateway.mjs")),
  };
}

/** @param {unknown} error @returns {never} */
function fail(error) {
  const text = error instanceof Failure ? error.message : error instanceof Error ? error.stack : String(error);
  process.stderr.write(`supabase-local: ${text}\n`);
  process.exit(1);
}

async function main() {
  const options = readOptions(process.argv.slice(2));
  if (options.help) return process.stdout.write(`${USAGE}\n`);
  const log = options.quiet ? () => {} : (/** @type {string} */ line) => void process.stderr.write(`supabase-local: ${line}\n`);

  let asked = 0; // times
  let kill = () => {};
  /** @type {Awaited<ReturnType<typeof start>> | undefined} */
  let running;
  const end = async () => {
    asked += 1;
    if (asked > 1) {
      kill();
      process.exit(1);
    }
    if (!running) return; // still starting, and looks for itself when that is done
    await running.stop();
    process.exit(0);
  };
  for (const signal of /** @type {const} */ (["SIGTERM", "SIGINT", "SIGHUP"])) process.on(signal, () => void end().catch(fail));
  const parentIsGone = () => void (asked || end().catch(fail)); // and no second wish, where it asked before it went
  if (options.watchStdin) process.stdin.on("end", parentIsGone).on("error", parentIsGone).resume();

  // What nobody waited for, such as a query of a library while the database restarts, must not take everything down.
  process.on("unhandledRejection", (error) => void process.stderr.write(`supabase-local: ${error}\n`));

  running = await start(options, log, (fn) => (kill = fn));
  if (asked > 0) {
    await running.stop();
    process.exit(0);
  }
  process.stdout.write(`${JSON.stringify(running.ready)}\n`);
}

await main().catch(fail);
