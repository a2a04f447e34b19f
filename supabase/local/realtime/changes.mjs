// postgres_changes: from one changed row to the subscribers who may see it. The database judges each distinct subscriber (role, claims,
// filter) by row security and column grants; see _local.visible_change in sql/5_local.sql.

import { crc32 } from "node:zlib";
import { parseFilters } from "./filter.mjs";

/**
 * @typedef {import("./channel.mjs").Channel} Channel
 * @typedef {import("./replication.mjs").Change} Change
 * @typedef {import("./filter.mjs").Filter} Filter
 * @typedef {{ id: number, event: string, schema: string, table: string, filters: Filter[], columns: string[] | null }} Wanted
 */

const JSON_TYPES = new Set([114, 3802]);

export class Changes {
  /** @type {Map<Channel, Wanted[]>} */
  #subscriptions = new Map();
  /** @type {Promise<unknown>} */
  #delivered = Promise.resolve();

  /** @param {{ sql: import("../database.mjs").Sql, visibility: import("./visibility.mjs").Visibility, log: (line: string) => void }} parts */
  constructor({ sql, visibility, log }) {
    this.sql = sql;
    this.visibility = visibility;
    this.log = log;
  }

  /**
   * Subscribes, or says why not.
   * @param {Channel} channel @param {any[]} asked the client's bindings @returns {Promise<string | undefined>}
   */
  async subscribe(channel, asked) {
    try {
      const wanted = asked.map(parse);
      for (const [i, { schema, table, filters, columns, event }] of wanted.entries()) {
        const [{ refusal }] = await this.sql`
          select _local.refuse_subscription(${channel.claims.role}, ${schema}, ${table}, ${this.sql.json(/** @type {any} */ (filters))}) as refusal`;
        if (refusal === null) continue;
        const parameters = `[event: ${event}, schema: ${schema}, table: ${table}, filters: ${JSON.stringify(asked[i].filter ?? [])}, ` +
          `select: ${columns ? JSON.stringify(columns) : "nil"}]`;
        return refusal === ""
          ? "Unable to subscribe to changes with given parameters. Please check Realtime is enabled for the given connect parameters: " + parameters
          : "Unable to subscribe to changes with given parameters. An exception happened so please check your connect parameters: " +
            `${parameters}. Exception: ERROR P0001 (raise_exception) ${refusal}`;
      }
      this.#subscriptions.set(channel, wanted);
      return undefined;
    } catch (error) {
      return /** @type {Error} */ (error).message;
    }
  }

  /** @param {Channel} channel */
  unsubscribe(channel) {
    this.#subscriptions.delete(channel);
  }

  /** Judged side by side, delivered in the order of commits. @param {Change} change */
  publish(change) {
    const { schema, name } = change.relation;
    /** @type {Map<string, { subscriber: any, receivers: Map<Channel, number[]> }>} */
    const groups = new Map();
    for (const [channel, wanted] of this.#subscriptions) {
      for (const want of wanted) {
        if (![schema, "*"].includes(want.schema) || ![name, "*"].includes(want.table)) continue;
        if (![change.action, "*"].includes(want.event)) continue;
        const subscriber = {
          role: channel.claims.role, claims: JSON.stringify(channel.claims), filters: want.filters, columns: want.columns,
        };
        const key = JSON.stringify(subscriber);
        const group = groups.get(key) ?? { subscriber, receivers: new Map() };
        groups.set(key, group);
        group.receivers.set(channel, [...(group.receivers.get(channel) ?? []), want.id]);
      }
    }
    if (groups.size === 0) return;
    const all = [...groups.values()];
    const judged = this.#judge(change, all.map(({ subscriber }) => subscriber));
    judged.catch(() => {});
    this.#delivered = this.#delivered.then(async () => {
      const visible = await judged;
      all.forEach(({ receivers }, i) => {
        if (visible[i] !== null) deliver(change, visible[i], receivers);
      });
    }).catch((error) => this.log(`a change of ${schema}.${name} could not be delivered: ${error.message}`));
  }

  /** @param {Change} change @param {any[]} subscribers @returns {Promise<any[]>} */
  async #judge({ action, relation, row, old, transaction }, subscribers) {
    await this.visibility.of(transaction.xid); // or row security would be asked about a row that is not there yet
    const rows = await this.sql`
      select _local.visible_change(${relation.relationOid}, ${action}, ${toJson(relation, row)}::text::jsonb, ${toJson(relation, old)}::text::jsonb,
                                   s ->> 'role', s ->> 'claims', s -> 'filters', nullif(s -> 'columns', 'null'))::text as visible
        from jsonb_array_elements(${JSON.stringify(subscribers)}::text::jsonb) with ordinality as subscribers (s, i) order by i`;
    return rows.map(({ visible }) => visible);
  }
}

/** @param {any} asked @returns {Wanted} */
function parse(asked) {
  const { event, schema, table, filter, select } = asked ?? {};
  if (typeof schema !== "string" && typeof table !== "string") {
    throw new Error(`No subscription params provided. Please provide at least a \`schema\` or \`table\` to subscribe to: ${JSON.stringify(asked)}`);
  }
  const action = String(event ?? "*").toUpperCase();
  return {
    id: idOf(asked),
    event: ["INSERT", "UPDATE", "DELETE"].includes(action) ? action : "*",
    schema: schema ?? "public",
    table: table ?? "*",
    filters: parseFilters(filter),
    columns: Array.isArray(select) && select.length > 0 ? select.filter((name) => typeof name === "string") : null,
  };
}

/** The same parameters have the same id, by which clients tell their bindings apart. @param {unknown} asked */
export const idOf = (asked) => crc32(JSON.stringify(asked)) % 2 ** 27;

/** @param {Change} change @param {string} visible @param {Map<Channel, number[]>} receivers */
function deliver({ action, relation, transaction }, visible, receivers) {
  const { columns = [], errors = null, record, old_record } = JSON.parse(visible);
  const data = {
    schema: relation.schema, table: relation.name, type: action, commit_timestamp: transaction.committedAt.toISOString(), columns, errors,
    ...(action !== "DELETE" && { record: record ?? {} }),
    ...(action !== "INSERT" && { old_record: old_record ?? {} }),
  };
  for (const [channel, ids] of receivers) channel.push("postgres_changes", { ids, data });
}

/**
 * A row as JSON of texts, which the database reads through each column's type; JSON columns stand as they are.
 * @param {Change["relation"]} relation @param {import("./replication.mjs").Row | null} row
 */
function toJson(relation, row) {
  if (row === null) return null;
  const fields = relation.columns.flatMap(({ name, typeOid }) => {
    const text = row[name];
    if (text === undefined) return [];
    return `${JSON.stringify(name)}:${text !== null && JSON_TYPES.has(typeOid) ? text : JSON.stringify(text)}`;
  });
  return `{${fields.join(",")}}`;
}
