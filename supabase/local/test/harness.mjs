// Starts the real program on a scratch project, and waits for what comes without sleeping.

import { spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { chmodSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { createInterface } from "node:readline";
import { createClient } from "@supabase/supabase-js";
import WebSocket from "ws";

export const HERE = dirname(fileURLToPath(import.meta.url));
export const SCRATCH = join(HERE, "scratch");
const MAIN = join(HERE, "../main.mjs");

/** @typedef {{ after: (fn: () => unknown) => void }} Test */

/** @type {WeakMap<Test, (() => unknown)[]>} */
const endings = new WeakMap();

/** What was begun last is ended first; node:test would do it the other way round. @param {Test} t @param {() => unknown} end */
function finallyDo(t, end) {
  const known = endings.get(t);
  if (known) return known.unshift(end);
  const ends = [end];
  endings.set(t, ends);
  t.after(async () => {
    for (const one of ends) await one();
  });
}

/** A folder that the database's own account may enter, removed at the end. @param {Test} t */
export function temporaryFolder(t) {
  const dir = mkdtempSync(join(tmpdir(), "supabase-local-"));
  chmodSync(dir, 0o755);
  finallyDo(t, () => rmSync(dir, { recursive: true, force: true }));
  return dir;
}

/**
 * @param {Test} t
 * @param {{ dataDir?: string, supabaseDir?: string, args?: string[] }} [options]
 */
export async function start(t, { dataDir = temporaryFolder(t), supabaseDir = SCRATCH, args = [] } = {}) {
  const child = spawn(process.execPath, [MAIN, "--data-dir", dataDir, "--supabase-dir", supabaseDir, "--watch-stdin", ...args], {
    stdio: ["pipe", "pipe", "pipe"],
  });
  let errors = "";
  child.stderr.on("data", (data) => (errors += data));
  /** @type {Promise<number | null>} */
  const exited = new Promise((resolve) => child.once("exit", resolve));
  const stop = async (/** @type {NodeJS.Signals} */ signal = "SIGTERM") => {
    child.kill(signal);
    return exited;
  };
  finallyDo(t, () => stop());
  const line = await Promise.race([
    new Promise((resolve) => createInterface({ input: child.stdout }).once("line", resolve)),
    exited.then((code) => Promise.reject(Object.assign(new Error(`exit ${code}: ${errors}`), { code, errors }))),
  ]);
  const ready = JSON.parse(line);
  return { ...ready, child, dataDir, stop, exited, errors: () => errors };
}

/** @typedef {Awaited<ReturnType<typeof start>>} Server */

/** @param {Server} server @param {string} key @param {any} [realtime] */
export function client(server, key = server.publishable_key, realtime = {}) {
  return createClient(server.api_url, key, {
    auth: { persistSession: false, autoRefreshToken: false },
    realtime: { transport: /** @type {any} */ (WebSocket), ...realtime },
  });
}

/** A new user with a client of its own. @param {Server} server @param {any} [realtime] */
export async function user(server, realtime) {
  const supabase = client(server, server.publishable_key, realtime);
  const { data, error } = await supabase.auth.signUp({ email: `${randomUUID()}@example.com`, password: "correct horse" });
  if (error || !data.session) throw error ?? new Error("no session");
  return { supabase, id: /** @type {string} */ (data.user?.id), session: data.session };
}

/** What arrived, and a way to wait for the next that fits. @template T */
export class Inbox {
  /** @type {T[]} */
  items = [];
  /** @type {Set<() => void>} */
  #waiting = new Set();

  /** @param {T} item */
  put = (item) => {
    this.items.push(item);
    for (const wake of this.#waiting) wake();
  };

  /** Takes the first that fits. @param {(item: T) => unknown} fits @param {number} timeoutMs @returns {Promise<T>} */
  next(fits = () => true, timeoutMs = 5000) {
    return new Promise((resolve, reject) => {
      const look = () => {
        const i = this.items.findIndex(fits);
        if (i < 0) return;
        finish();
        resolve(this.items.splice(i, 1)[0]);
      };
      const finish = () => {
        clearTimeout(timer);
        this.#waiting.delete(look);
      };
      const timer = setTimeout(() => {
        finish();
        reject(new Error(`nothing came within ${timeoutMs} ms; there was ${JSON.stringify(this.items)}`));
      }, timeoutMs);
      this.#waiting.add(look);
      look();
    });
  }
}

/** @param {any} channel @returns {Promise<{ status: string, error?: Error }>} the first state that subscribing reaches */
export function subscribed(channel) {
  return new Promise((resolve) => channel.subscribe((/** @type {string} */ status, /** @type {Error} */ error) => resolve({ status, error })));
}
