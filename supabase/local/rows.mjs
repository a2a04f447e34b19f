// The rows of a request's body, as PostgREST reads them.

import { sql } from "kysely";
import { isRecord, Value } from "./values.mjs";

const DEFAULT = sql`default`; // the column's own, also where other rows of the statement have a value

/**
 * PostgreSQL reads an array also from its own literal, which postgres.js only takes as a string.
 * @param {Record<string, unknown>} record @param {Set<string>} arrays
 */
const rowOf = (record, arrays) => Object.fromEntries(Object.entries(record).map(([name, value]) =>
  [name, arrays.has(name) && value !== null && !Array.isArray(value) ? String(Value.of(value)) : Value.of(value)]));

/**
 * The rows of a table, or the arguments of a function by name. Other elements of an array are left for lite to refuse.
 * @param {any} body by parseJson @param {string[]} arrays columns or arguments of an array type @returns {any}
 */
export function rowsOf(body, arrays) {
  const names = new Set(arrays);
  if (Array.isArray(body)) return body.map((element) => (isRecord(element) ? rowOf(element, names) : element));
  return isRecord(body) ? rowOf(body, names) : Value.of(body);
}

/** COPY's way with text/csv: an unquoted NULL is none. @param {Record<string, unknown>[]} rows */
export const withCsvNulls = (rows) =>
  rows.map((row) => Object.fromEntries(Object.entries(row).map(([name, value]) => [name, value === "NULL" ? null : value])));

/**
 * `columns=` takes these keys of every row and no other; a missing one is null, or with `Prefer: missing=default` the column's default.
 * @param {any} ast of lite; changed in place
 */
export function keepColumns(ast) {
  const { columns, missing } = ast.$meta;
  const rows = [ast.values].flat();
  if (columns.includes("") || !rows.every((row) => isRecord(row))) return; // lite refuses it
  const filler = missing === "default" ? DEFAULT : null;
  const kept = rows.map((row) =>
    known(Object.fromEntries(columns.map((/** @type {string} */ name) => [name, Object.hasOwn(row, name) ? row[name] : filler]))));
  ast.values = Array.isArray(ast.values) ? kept : kept[0];
  ast.$meta = { ...ast.$meta, columns: undefined };
}

/** A row without any key has all defaults. @param {any} ast of lite; changed in place @param {string | undefined} column any of the table's */
export function fillEmptyRows(ast, column) {
  const fill = (/** @type {any} */ row) => (column && isRecord(row) && Object.keys(row).length === 0 ? known({ [column]: DEFAULT }) : row);
  ast.values = Array.isArray(ast.values) ? ast.values.map(fill) : fill(ast.values);
}

/** lite looks for a row that an upsert would change by the columns that are `in` the new one. @param {Record<string, unknown>} row */
const known = (row) => new Proxy(row, { has: (target, name) => name in target && target[/** @type {string} */ (name)] !== DEFAULT });
