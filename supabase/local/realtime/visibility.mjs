// The replication stream tells of a commit a moment before other sessions see it. Whoever hears of a row and asks for it must find it, so
// every message waits until its transaction shows; that is one question to the database, and nearly always the answer is yes.

import { setTimeout as sleep } from "node:timers/promises";

const PATIENCE_MS = 5000;

export class Visibility {
  #xid = -1;
  /** @type {Promise<void>} */
  #shown = Promise.resolve();

  /** @param {import("../database.mjs").Sql} sql */
  constructor(sql) {
    this.sql = sql;
  }

  /** Resolves when everybody sees what this transaction wrote. @param {number} xid @returns {Promise<void>} */
  of(xid) {
    if (xid !== this.#xid) {
      this.#xid = xid;
      this.#shown = this.#wait(xid);
      this.#shown.catch(() => {});
    }
    return this.#shown;
  }

  /** @param {number} xid */
  async #wait(xid) {
    for (const end = Date.now() + PATIENCE_MS; Date.now() < end; await sleep(1)) {
      const [{ shown }] = await this.sql`select _local.is_visible(${xid}) as shown`;
      if (shown) return;
    }
  }
}
