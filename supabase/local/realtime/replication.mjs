// The replication stream: every committed change of the published tables, in commit order, within milliseconds. The slot is temporary, so
// nothing piles up while nobody listens; what was written while the stream was down is not told later, as on Supabase.

import { LogicalReplicationService, PgoutputPlugin } from "pg-logical-replication";
import { setTimeout as sleep } from "node:timers/promises";

/**
 * @typedef {import("pg-logical-replication").Pgoutput.MessageRelation} Relation
 * @typedef {Record<string, string | null | undefined>} Row  each column's text; undefined where an unchanged TOASTed value was left out
 * @typedef {{ action: "INSERT" | "UPDATE" | "DELETE", relation: Relation, row: Row | null, old: Row | null, transaction: Transaction }} Change
 * @typedef {{ xid: number, committedAt: Date }} Transaction
 */

const PUBLICATIONS = ["supabase_realtime_messages_publication", "supabase_realtime"];

/** pgoutput, with a temporary slot and with values left as PostgreSQL's text, since PostgreSQL knows best what they mean. */
class TextPlugin extends PgoutputPlugin {
  constructor() {
    super({ protoVersion: 1, publicationNames: PUBLICATIONS });
  }

  /** @param {import("pg").Client} client @param {string} slot */
  async start(client, slot) {
    await client.query(`CREATE_REPLICATION_SLOT ${slot} TEMPORARY LOGICAL pgoutput NOEXPORT_SNAPSHOT`);
    return super.start(client, slot, "0/0");
  }

  /** @param {Buffer} buffer */
  parse(buffer) {
    const message = super.parse(buffer);
    if (message.tag === "relation") for (const column of message.columns) column.parser = (/** @type {string} */ text) => text;
    return message;
  }
}

export class Replication {
  /** @type {LogicalReplicationService | undefined} */
  #service;
  #stopping = false;

  /** @param {{ url: string, onChange: (change: Change) => void, log: (line: string) => void }} options */
  constructor({ url, onChange, log }) {
    this.url = url;
    this.onChange = onChange;
    this.log = log;
  }

  /** Resolves when the stream runs; from then on it comes back by itself. */
  async start() {
    await new Promise((resolve, reject) => this.#run(resolve).catch(reject));
  }

  /** @param {(value?: unknown) => void} started */
  async #run(started) {
    let told = false;
    for (let wait = 50; !this.#stopping; wait = Math.min(wait * 2, 1000)) {
      try {
        await this.#stream(() => {
          wait = 50;
          if (told) this.log("the replication stream runs again");
          told = false;
          started();
        });
      } catch (error) {
        if (!this.#stopping && !told) this.log(`the replication stream broke off: ${/** @type {Error} */ (error).message}`);
        told = true;
      }
      if (!this.#stopping) await sleep(wait);
    }
  }

  /** Ends when the stream does. @param {() => void} started */
  async #stream(started) {
    const slot = `local_realtime_${process.pid}_${Date.now().toString(36)}`;
    const service = new LogicalReplicationService(
      { connectionString: this.url, application_name: "supabase-local realtime" },
      { acknowledge: { auto: false, timeoutSeconds: 0 } },
    );
    this.#service = service;
    /** @type {Transaction} */
    let transaction = { xid: 0, committedAt: new Date() };
    service.on("start", started);
    service.on("error", () => {}); // subscribe() rejects with the same
    service.on("heartbeat", (lsn) => void service.acknowledge(before(lsn)));
    service.on("data", (_lsn, message) => {
      if (message.tag === "begin") transaction = { xid: message.xid >>> 0, committedAt: toDate(message.commitTime) };
      const change = toChange(message, transaction);
      if (change) this.onChange(change);
    });
    try {
      await service.subscribe(new TextPlugin(), slot);
    } finally {
      await service.destroy().catch(() => {});
    }
  }

  async stop() {
    this.#stopping = true;
    await this.#service?.destroy().catch(() => {});
  }
}

/**
 * The library acknowledges one byte more than it is told. A server that stops waits for exactly what it has sent, and so would wait forever.
 * @param {string} lsn
 */
function before(lsn) {
  const [high, low] = lsn.split("/").map((part) => BigInt(`0x${part}`));
  const previous = (high << 32n) + low - 1n;
  return `${(previous >> 32n).toString(16)}/${(previous & 0xffffffffn).toString(16)}`;
}

/** @param {bigint} microseconds since 1970 */
const toDate = (microseconds) => new Date(Number(microseconds / 1000n));

/** @param {any} message @param {Transaction} transaction @returns {Change | undefined} */
function toChange(message, transaction) {
  const { relation } = message;
  switch (message.tag) {
    case "insert":
      return { action: "INSERT", relation, row: message.new, old: null, transaction };
    case "update":
      return { action: "UPDATE", relation, row: message.new, old: message.old ?? message.key ?? pick(message.new, relation.keyColumns), transaction };
    case "delete":
      return { action: "DELETE", relation, row: null, old: message.old ?? message.key, transaction };
    default:
      return undefined;
  }
}

/** @param {Row} row @param {string[]} names */
const pick = (row, names) => Object.fromEntries(names.map((name) => [name, row[name]]));
