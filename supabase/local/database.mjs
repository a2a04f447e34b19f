// Connections to the database that survive its restart.

import postgres from "postgres";

/**
 * @typedef {import("postgres").Sql} Sql
 * @typedef {import("postgres").ReservedSql} Connection
 * @typedef {{ max: number, name: string, types?: Record<string, import("postgres").PostgresType>,
 *             onnotice?: (notice: import("postgres").Notice) => void }} PoolOptions
 */

/**
 * For single statements. Comes back by itself after the server was restarted.
 * @param {string} url @param {PoolOptions} options @param {() => void} [onclose]
 * @returns {Sql}
 */
export function connect(url, { max, name, types, onnotice = () => {} }, onclose) {
  return postgres(url, {
    max,
    onnotice,
    ...(onclose && { onclose }),
    max_lifetime: null,
    backoff: () => 0.1,
    connection: { application_name: `supabase-local ${name}` },
    ...(types && { types }),
  });
}

/**
 * For several statements on one connection. postgres.js has such connections too, but when one of its connections breaks, a later statement
 * on it (the rollback, most likely) ends the whole process, or lands in somebody else's session. Here every connection is a client of its
 * own, which refuses to work once it is broken, and is thrown away.
 */
export class Pool {
  /** @type {Slot[]} */
  #idle = [];
  /** @type {Set<Slot>} */
  #slots = new Set();
  /** @type {((slot: Slot) => void)[]} */
  #waiting = [];

  /** @param {string} url @param {PoolOptions} options */
  constructor(url, options) {
    this.url = url;
    this.options = options;
  }

  /**
   * A connection, to be given back by its release(). Its trees are the parse trees that PostgreSQL printed in it (see safeupdate.mjs); once
   * retired, it is closed after its release.
   * @returns {Promise<Connection & { trees: string[], retire: () => void }>}
   */
  async reserve() {
    /** @type {Slot} */
    const slot = this.#take() ?? await new Promise((resolve) => this.#waiting.push(resolve));
    try {
      return await slot.open(() => this.#giveBack(slot));
    } catch (error) {
      slot.isBroken = true;
      this.#giveBack(slot);
      throw error;
    }
  }

  /**
   * All or nothing.
   * @template T @param {(tx: Connection) => Promise<T>} work @returns {Promise<T>}
   */
  async transaction(work) {
    const connection = await this.reserve();
    try {
      await connection.unsafe("begin");
      const result = await work(connection);
      await connection.unsafe("commit");
      return result;
    } catch (error) {
      await connection.unsafe("rollback").catch(() => {}); // a broken connection has rolled back already
      throw error;
    } finally {
      connection.release();
    }
  }

  async end() {
    await Promise.all([...this.#slots].map((slot) => slot.end()));
  }

  /** @returns {Slot | undefined} */
  #take() {
    for (let slot = this.#idle.pop(); slot; slot = this.#idle.pop()) {
      if (!slot.isBroken) return slot;
      this.#discard(slot);
    }
    if (this.#slots.size >= this.options.max) return undefined;
    const slot = new Slot(this.url, this.options);
    this.#slots.add(slot);
    return slot;
  }

  /** @param {Slot} slot */
  #giveBack(slot) {
    if (slot.isBroken || slot.isRetired) this.#discard(slot);
    else this.#idle.push(slot);
    if (this.#waiting.length === 0) return;
    const next = this.#take();
    if (next) this.#waiting.shift()?.(next);
  }

  /** @param {Slot} slot */
  #discard(slot) {
    this.#slots.delete(slot);
    void slot.end();
  }
}

/** One client with one connection. */
class Slot {
  isBroken = false;
  isRetired = false;
  /** @type {string[]} */
  trees = [];
  /** @type {Connection | undefined} */
  #connection;

  /** @param {string} url @param {PoolOptions} options */
  constructor(url, options) {
    const onnotice = (/** @type {import("postgres").Notice} */ { detail }) => void (detail?.startsWith("{QUERY") && this.trees.push(detail));
    this.client = connect(url, { ...options, max: 1, onnotice }, () => (this.isBroken = true));
  }

  /** @param {() => void} release @returns {Promise<Connection & { trees: string[], retire: () => void }>} */
  async open(release) {
    const connection = (this.#connection ??= await this.client.reserve());
    let isReleased = false;
    /** @template {(...args: any[]) => any} F @param {F} fn @returns {F} */
    const whileWhole = (fn) => /** @type {F} */ ((...args) => (this.isBroken ? Promise.reject(connectionClosed()) : fn(...args)));
    return Object.assign(whileWhole(connection), {
      unsafe: whileWhole(connection.unsafe),
      json: connection.json,
      trees: this.trees,
      retire: () => void (this.isRetired = true),
      release: () => {
        if (isReleased) return;
        isReleased = true;
        release();
      },
    });
  }

  end() {
    return this.client.end({ timeout: 0 }).catch(() => {});
  }
}

const connectionClosed = () => Object.assign(new Error("the connection to the database is closed"), { code: "CONNECTION_CLOSED" });

/** Did the database refuse, or was there no database? @param {unknown} error */
export function isConnectionError(error) {
  const code = /** @type {any} */ (error)?.code;
  return typeof code === "string" && (/^(CONNECT|ECONN|EPIPE|57P0[123]|08)/.test(code) || code === "ETIMEDOUT");
}
