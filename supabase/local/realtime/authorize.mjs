// May this user listen to this topic, or speak on it? Row security on realtime.messages says so. It is asked in Supabase's manner: a row of
// that topic is written, by us for listening and by the user for speaking, and all is rolled back.

import { randomUUID } from "node:crypto";
import { actAs } from "../keys.mjs";

/**
 * @typedef {import("../database.mjs").Pool} Pool
 * @typedef {import("../keys.mjs").Claims} Claims
 */

/** @param {Pool} pool @param {Claims} claims @param {string} topic @returns {Promise<boolean>} */
export function mayRead(pool, claims, topic) {
  return rolledBack(pool, async (tx) => {
    const id = randomUUID();
    await tx`insert into realtime.messages (id, topic, extension) values (${id}, ${topic}, 'broadcast')`;
    await actAs(tx, claims, topic);
    const rows = await tx`select from realtime.messages where id = ${id}`;
    return rows.length === 1;
  });
}

/** @param {Pool} pool @param {Claims} claims @param {string} topic @returns {Promise<boolean>} */
export function mayWrite(pool, claims, topic) {
  return rolledBack(pool, async (tx) => {
    await actAs(tx, claims, topic);
    await tx`insert into realtime.messages (topic, extension) values (${topic}, 'broadcast')`;
    return true;
  });
}

class RolledBack extends Error {}

/** @param {Pool} pool @param {(tx: import("../database.mjs").Connection) => Promise<boolean>} ask */
async function rolledBack(pool, ask) {
  let answer = false;
  try {
    await pool.transaction(async (tx) => {
      answer = await ask(tx);
      throw new RolledBack();
    });
  } catch (error) {
    const code = /** @type {any} */ (error).code;
    // A refusal (42501), and likewise a policy that fails: nobody gets through. What is no answer of the database, or one that says that
    // it goes down (57) or has no room (53), is not ours to judge.
    if (!(error instanceof RolledBack) && !/^(?!57|53|08)[0-9A-Z]{5}$/.test(code ?? "")) throw error;
  }
  return answer;
}
