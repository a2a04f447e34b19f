// One topic joined on one websocket: what it may hear and say, until it is left.

import { setTimeout as sleep } from "node:timers/promises";
import { idOf } from "./changes.mjs";
import { mayRead, mayWrite } from "./authorize.mjs";
import { TokenError } from "../keys.mjs";

/**
 * @typedef {import("./protocol.mjs").Message} Message
 * @typedef {import("./server.mjs").Services} Services
 * @typedef {import("../keys.mjs").Claims} Claims
 */

const LARGEST_PAYLOAD = 3_000_000; // bytes; what the real service allows on its paid plans
const LONGEST_TIMER = 2 ** 31 - 1;

/** The client is told, and the channel ends. */
class Refusal extends Error {}

export class Channel {
  /** @type {boolean | undefined} asked once a token, at the first message */
  #mayWrite;
  /** @type {NodeJS.Timeout | undefined} */
  #expiry;
  #closed = false;
  /** @type {string | undefined} */
  #token;

  /** @param {import("./socket.mjs").Socket} socket @param {Services} services @param {Message} join */
  constructor(socket, services, { topic, joinRef, ref, payload }) {
    this.socket = socket;
    this.services = services;
    this.topic = topic;
    this.name = topic.slice("realtime:".length);
    this.joinRef = joinRef ?? ref;
    const config = payload.config ?? {};
    this.isPrivate = isTrue(config.private);
    this.hearsItself = isTrue(config.broadcast?.self);
    this.acknowledges = isTrue(config.broadcast?.ack);
    this.wantsPresence = isTrue(config.presence?.enabled);
    this.wantsReady = isTrue(config.broadcast?.replication_ready);
    this.waitsForChanges = isTrue(config.postgres_changes_options?.wait);
    /** @type {any[]} */
    this.asked = Array.isArray(config.postgres_changes) ? config.postgres_changes.filter(Boolean) : [];
    this.givenToken = payload.access_token ?? payload.user_token;
    this.claims = socket.claims;
  }

  /** @param {string | null} ref */
  async join(ref) {
    try {
      if (this.name === "") throw new Refusal("TopicNameRequired: You must provide a topic name");
      await this.#authenticate(this.givenToken);
      await this.#authorize();
    } catch (error) {
      this.close();
      await sleep(this.services.joinErrorDelayMs);
      return this.reply(ref, "error", { reason: reasonOf(error) });
    }
    if (this.#closed) return; // left, or joined anew, meanwhile
    this.services.hub.add(this);
    const refusal = this.asked.length > 0 ? await this.services.changes.subscribe(this, this.asked) : undefined;
    if (this.#closed) return this.close();
    if (refusal !== undefined && this.waitsForChanges) {
      this.close();
      return this.reply(ref, "error", { reason: `RealtimeDisabledForConfiguration: ${refusal}` });
    }
    this.reply(ref, "ok", { postgres_changes: this.asked.map((asked) => ({ ...asked, id: idOf(asked) })) });
    if (this.asked.length > 0) this.#tell("postgres_changes", refusal ? "error" : "ok", refusal ?? "Subscribed to PostgreSQL");
    if (this.wantsReady) this.#tell("system", "ok", "Replication connection established");
    if (this.wantsPresence) this.push("presence_state", {}); // presence is not offered; the state stays empty
  }

  /** @param {Message} message */
  async handle({ ref, event, payload }) {
    if (event === "broadcast") return this.#broadcast(ref, payload);
    if (event === "access_token") return this.#refresh(payload.access_token);
    if (event === "presence") return this.reply(ref, "ok", {});
    // anything else is ignored, as the real server does
  }

  /** @param {string | null} ref @param {any} payload */
  async #broadcast(ref, payload) {
    const { json, binary, event } = payload;
    const broadcast = json !== undefined || binary !== undefined
      ? { event, json, binary }
      : { event: String(event), json: JSON.stringify(payload.payload ?? {}) };
    if (this.isPrivate) {
      this.#mayWrite ??= await mayWrite(this.services.pool, this.claims, this.name);
      if (!this.#mayWrite) return; // dropped without a word, as the real server does
    }
    if ((broadcast.json?.length ?? broadcast.binary?.length ?? 0) > LARGEST_PAYLOAD) {
      return this.acknowledges ? this.reply(ref, "error", { reason: "payload_size_exceeded" }) : undefined;
    }
    this.services.hub.publish(this.name, this.isPrivate, broadcast, this.hearsItself ? undefined : this);
    if (this.acknowledges) this.reply(ref, "ok", {});
  }

  /** @param {unknown} token */
  async #refresh(token) {
    if (typeof token !== "string" || token.startsWith("sb_") || token === this.#token) return;
    try {
      await this.#authenticate(token);
      this.#mayWrite = undefined;
      await this.#authorize();
    } catch (error) {
      this.#shutDown(/** @type {Error} */ (error).message);
    }
  }

  /** API keys say nothing about the user, so the connection's own key counts then. @param {unknown} token */
  async #authenticate(token) {
    clearTimeout(this.#expiry);
    if (typeof token !== "string" || token.startsWith("sb_")) {
      this.claims = this.socket.claims;
      return;
    }
    this.claims = await this.services.keys.claims(token);
    this.#token = token;
    const left = Number(this.claims.exp) * 1000 - Date.now();
    this.#expiry = setTimeout(() => this.#shutDown("Token has expired 0 seconds ago"), Math.min(left, LONGEST_TIMER));
    this.#expiry.unref();
  }

  async #authorize() {
    if (!this.isPrivate || await mayRead(this.services.pool, this.claims, this.name)) return;
    throw new Refusal(`You do not have permissions to read from this Channel topic: ${this.name}`);
  }

  /** @param {string} message */
  #shutDown(message) {
    if (this.#closed) return;
    this.#tell("system", "error", message);
    this.close();
    this.socket.sendMessage({ joinRef: this.joinRef, ref: this.joinRef, topic: this.topic, event: "phx_close", payload: {} });
  }

  /** @param {string} extension @param {"ok" | "error"} status @param {string} message */
  #tell(extension, status, message) {
    this.push("system", { extension, status, message, channel: this.name });
  }

  /** @param {string} event @param {unknown} payload */
  push(event, payload) {
    this.socket.sendMessage({ joinRef: null, ref: null, topic: this.topic, event, payload });
  }

  /** @param {string | null} ref @param {"ok" | "error"} status @param {unknown} response */
  reply(ref, status, response) {
    this.socket.sendMessage({ joinRef: this.joinRef, ref, topic: this.topic, event: "phx_reply", payload: { status, response } });
  }

  /** Hears no more. The client is not told: it asked for it, is gone, or has been told. */
  close() {
    this.#closed = true;
    clearTimeout(this.#expiry);
    this.services.hub.remove(this);
    this.services.changes.unsubscribe(this);
    this.socket.forget(this);
  }
}

/** Clients of some languages send booleans as text. @param {unknown} value */
const isTrue = (value) => value === true || (typeof value === "string" && value.toLowerCase() === "true");

/** @param {unknown} error */
function reasonOf(error) {
  const { message } = /** @type {Error} */ (error);
  if (error instanceof Refusal) return message.startsWith("You do not have") ? `Unauthorized: ${message}` : message;
  if (error instanceof TokenError) return `${error.code}: ${message}`;
  return "UnableToConnectToProject: Realtime was unable to connect to the project database";
}
