// One websocket: heartbeats, and the channels joined on it.

import { Channel } from "./channel.mjs";
import { decode, encode } from "./protocol.mjs";

/**
 * @typedef {import("./protocol.mjs").Message} Message
 * @typedef {import("./protocol.mjs").Version} Version
 */

const SILENCE_MS = 60_000; // clients send a heartbeat every 25 s; one that is silent for so long is gone

export class Socket {
  /** @type {Map<string, Channel>} by topic */
  #channels = new Map();
  #heard = Date.now();
  /** @type {Promise<void>} the join under way: as in Phoenix, what comes later on this connection waits until it is answered */
  #joining = Promise.resolve();

  /**
   * @param {import("ws").WebSocket} ws @param {import("./server.mjs").Services} services
   * @param {{ version: Version, claims: import("../keys.mjs").Claims }} connection
   */
  constructor(ws, services, { version, claims }) {
    this.ws = ws;
    this.services = services;
    this.version = version;
    this.claims = claims;
    const watch = setInterval(() => Date.now() - this.#heard > SILENCE_MS && ws.terminate(), SILENCE_MS / 4).unref();
    ws.on("message", (data, isBinary) => this.#receive(/** @type {Buffer} */ (data), isBinary));
    ws.on("error", () => ws.terminate());
    ws.on("close", () => {
      clearInterval(watch);
      for (const channel of [...this.#channels.values()]) channel.close();
    });
  }

  /** @param {Buffer} data @param {boolean} isBinary */
  #receive(data, isBinary) {
    this.#heard = Date.now();
    /** @type {Message} */
    let message;
    try {
      message = decode(data, isBinary);
    } catch {
      return this.ws.close(1003, "not a Phoenix message");
    }
    const done = this.#joining.then(() => this.#dispatch(message)).catch((error) => {
      this.services.log(`${message.event} on ${message.topic} failed: ${error.message}`);
      this.#reply(message, "error", { reason: "UnableToConnectToProject: Realtime was unable to connect to the project database" });
    });
    if (message.event === "phx_join") this.#joining = done;
  }

  /** @param {Message} message */
  async #dispatch(message) {
    const { topic, event, ref } = message;
    if (topic === "phoenix") return this.#reply(message, "ok", {});
    const channel = this.#channels.get(topic);
    if (event === "phx_join" && topic.startsWith("realtime:")) {
      channel?.close();
      const joined = new Channel(this, this.services, message);
      this.#channels.set(topic, joined);
      return joined.join(ref);
    }
    if (event === "phx_leave") {
      channel?.close();
      return this.#reply(message, "ok", {});
    }
    if (channel) return channel.handle(message);
    return this.#reply(message, "error", { reason: "unmatched topic" });
  }

  /** @param {Channel} channel */
  forget(channel) {
    if (this.#channels.get(channel.topic) === channel) this.#channels.delete(channel.topic);
  }

  /** @param {Message} message @param {"ok" | "error"} status @param {unknown} response */
  #reply({ joinRef, ref, topic }, status, response) {
    this.sendMessage({ joinRef, ref, topic, event: "phx_reply", payload: { status, response } });
  }

  /** @param {Message} message */
  sendMessage(message) {
    this.send(encode(this.version, message));
  }

  /** @param {string | Buffer} frame */
  send(frame) {
    if (this.ws.readyState === this.ws.OPEN) this.ws.send(frame);
  }
}
