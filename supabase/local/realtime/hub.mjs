// Who listens to which topic, and the handing out of broadcasts. A topic's private and public channels hear different messages.

import { encodeBroadcast } from "./protocol.mjs";

/** @typedef {import("./channel.mjs").Channel} Channel */

export class Hub {
  /** @type {Map<string, Set<Channel>>} */
  #listeners = new Map();

  /** @param {Channel} channel */
  add(channel) {
    const key = keyOf(channel.name, channel.isPrivate);
    const listeners = this.#listeners.get(key);
    if (listeners) listeners.add(channel);
    else this.#listeners.set(key, new Set([channel]));
  }

  /** @param {Channel} channel */
  remove(channel) {
    const key = keyOf(channel.name, channel.isPrivate);
    const listeners = this.#listeners.get(key);
    listeners?.delete(channel);
    if (listeners?.size === 0) this.#listeners.delete(key);
  }

  /**
   * @param {string} name the topic as users name it @param {boolean} isPrivate
   * @param {import("./protocol.mjs").UserBroadcast} broadcast @param {Channel} [except] the sender, unless it wants to hear itself
   */
  publish(name, isPrivate, broadcast, except) {
    /** @type {Map<string, string | Buffer | undefined>} */
    const frames = new Map(); // encoded once a version, however many listen
    for (const channel of this.#listeners.get(keyOf(name, isPrivate)) ?? []) {
      if (channel === except) continue;
      const { version } = channel.socket;
      if (!frames.has(version)) frames.set(version, encodeBroadcast(version, channel.topic, broadcast));
      const frame = frames.get(version);
      if (frame !== undefined) channel.socket.send(frame);
    }
  }
}

/** @param {string} name @param {boolean} isPrivate */
const keyOf = (name, isPrivate) => `${isPrivate ? "private" : "public"} ${name}`;
