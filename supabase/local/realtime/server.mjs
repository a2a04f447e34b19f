// Realtime: the websocket, the HTTP endpoint for broadcasts, and the replication stream that feeds both kinds of channel.

import { WebSocketServer } from "ws";
import { CORS, json } from "../answers.mjs";
import { TokenError } from "../keys.mjs";
import { mayWrite } from "./authorize.mjs";
import { Changes } from "./changes.mjs";
import { Hub } from "./hub.mjs";
import { Replication } from "./replication.mjs";
import { Socket } from "./socket.mjs";
import { Visibility } from "./visibility.mjs";

/**
 * @typedef {import("../database.mjs").Sql} Sql
 * @typedef {import("../database.mjs").Pool} Pool
 * @typedef {import("../keys.mjs").Keys} Keys
 * @typedef {(line: string) => void} Log
 * @typedef {{ pool: Pool, keys: Keys, hub: Hub, changes: Changes, log: Log, joinErrorDelayMs: number }} Services
 */

const PATH = "/realtime/v1/websocket";
const SINGLE = /^\/realtime\/v1\/api\/broadcast\/([^/]+)\/events\/([^/]+)$/;

export class Realtime {
  /** @type {Promise<void>} messages go out in the order of their commits */
  #published = Promise.resolve();
  #websockets = new WebSocketServer({ noServer: true, perMessageDeflate: false });

  /** @param {{ sql: Sql, pool: Pool, url: string, keys: Keys, joinErrorDelayMs: number, log: Log }} parts */
  constructor({ sql, pool, url, keys, joinErrorDelayMs, log }) {
    const hub = new Hub();
    const visibility = new Visibility(sql);
    const changes = new Changes({ sql, visibility, log });
    /** @type {Services} */
    this.services = { pool, keys, hub, changes, log, joinErrorDelayMs };
    this.replication = new Replication({
      url,
      log,
      onChange: (change) => {
        if (!isMessage(change)) return changes.publish(change);
        this.#published = this.#published.then(() => visibility.of(change.transaction.xid)).catch(() => {}).then(() => publishMessage(hub, change));
      },
    });
  }

  /** Resolves when the stream runs. */
  start() {
    return this.replication.start();
  }

  async stop() {
    for (const ws of this.#websockets.clients) ws.close(1001, "the server stops");
    await this.replication.stop();
    for (const ws of this.#websockets.clients) ws.terminate();
  }

  /** @param {import("node:http").IncomingMessage} request @param {import("node:stream").Duplex} tcp @param {Buffer} head */
  async upgrade(request, tcp, head) {
    const url = new URL(request.url ?? "/", "http://localhost");
    const key = request.headers["x-api-key"] ?? url.searchParams.get("apikey");
    try {
      if (url.pathname !== PATH) return refuse(tcp, 404, "not found");
      if (typeof key !== "string" || key === "") return refuse(tcp, 401, "API key is missing");
      const claims = await this.services.keys.claims(key);
      const version = url.searchParams.get("vsn") === "2.0.0" ? "2.0.0" : "1.0.0";
      this.#websockets.handleUpgrade(request, tcp, head, (ws) => new Socket(ws, this.services, { version, claims }));
    } catch (error) {
      refuse(tcp, error instanceof TokenError ? 401 : 500, /** @type {Error} */ (error).message);
    }
  }

  /** @param {Request} request @param {URL} url @returns {Promise<Response>} */
  async fetch(request, url) {
    const single = SINGLE.exec(url.pathname);
    if (request.method !== "POST" || (!single && url.pathname !== "/realtime/v1/api/broadcast")) return json(404, { message: "not found" });
    const claims = await this.services.keys.claimsOf(request);
    const messages = single
      ? [await readSingle(request, url, decodeURIComponent(single[1]), decodeURIComponent(single[2]))]
      : await readBatch(request);
    if (!messages) return json(422, { errors: { messages: ["each message needs a topic, an event and a payload"] } });
    for (const { topic, isPrivate, broadcast } of messages) {
      if (isPrivate && !(await mayWrite(this.services.pool, claims, topic))) {
        if (single) return json(401, { message: `You do not have permissions to write to this Channel topic: ${topic}` });
        continue; // a batch drops what may not be sent, as the real server does
      }
      this.services.hub.publish(topic, isPrivate, broadcast);
    }
    return new Response("", { status: 202, headers: CORS });
  }
}

/** @typedef {{ topic: string, isPrivate: boolean, broadcast: import("./protocol.mjs").UserBroadcast }} Outgoing */

/** @param {Request} request @param {URL} url @param {string} topic @param {string} event @returns {Promise<Outgoing>} */
async function readSingle(request, url, topic, event) {
  const bytes = Buffer.from(await request.arrayBuffer());
  const isBinary = request.headers.get("content-type")?.startsWith("application/octet-stream");
  return {
    topic,
    isPrivate: url.searchParams.get("private") === "true",
    broadcast: isBinary ? { event, binary: bytes } : { event, json: JSON.stringify(JSON.parse(bytes.toString() || "{}")) },
  };
}

/** @param {Request} request @returns {Promise<Outgoing[] | undefined>} undefined when it is malformed */
async function readBatch(request) {
  const { messages } = await request.json().catch(() => ({}));
  if (!Array.isArray(messages)) return undefined;
  if (!messages.every((m) => typeof m?.topic === "string" && typeof m.event === "string" && typeof m.payload === "object")) return undefined;
  return messages.map(({ topic, event, payload, private: isPrivate }) => ({
    topic, isPrivate: isPrivate === true, broadcast: { event, json: JSON.stringify(payload) },
  }));
}

/** @param {import("./replication.mjs").Change} change */
const isMessage = ({ relation }) => relation.schema === "realtime" && relation.name.startsWith("messages");

/** A row of realtime.messages is a broadcast to its topic. @param {Hub} hub @param {import("./replication.mjs").Change} change */
function publishMessage(hub, { action, row }) {
  if (action !== "INSERT" || !row?.topic || !row.event) return;
  const broadcast = { event: row.event, meta: { id: row.id } };
  if (row.binary_payload) hub.publish(row.topic, row.private === "t", { ...broadcast, binary: Buffer.from(row.binary_payload.slice(2), "hex") });
  else if (row.payload) hub.publish(row.topic, row.private === "t", { ...broadcast, json: row.payload });
}

/** @param {import("node:stream").Duplex} tcp @param {number} status @param {string} message */
function refuse(tcp, status, message) {
  const body = JSON.stringify({ error: message });
  const head = [
    `HTTP/1.1 ${status} Refused`, "Content-Type: application/json", `Content-Length: ${Buffer.byteLength(body)}`, "Connection: close",
  ];
  tcp.end(`${head.join("\r\n")}\r\n\r\n${body}`);
}
