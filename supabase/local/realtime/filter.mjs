// The filter of a postgres_changes subscription: `column=op.value`, several separated by commas.

/** @typedef {{ column: string, op: string, value: string, negate: boolean }} Filter */

const OPERATORS = new Set(["eq", "neq", "lt", "lte", "gt", "gte", "in", "like", "ilike", "is", "match", "imatch", "isdistinct"]);
const PART = /^([^=]+)=(not\.)?([a-z]+)\.(.*)$/s;

/** @param {unknown} text @returns {Filter[]} */
export function parseFilters(text) {
  if (typeof text !== "string" || text.trim() === "") return [];
  return split(text.trim()).map((part) => {
    const match = PART.exec(part);
    if (!match || !OPERATORS.has(match[3])) throw new Error(`Error parsing \`filter\` params: ${JSON.stringify(part)}`);
    const [, column, not, op, value] = match;
    return { column, op, negate: not !== undefined, value: op === "in" ? arrayLiteral(value) : unquote(value) };
  });
}

/** At commas that stand neither in quotes nor in parentheses. @param {string} text */
function split(text) {
  const parts = [""];
  let depth = 0;
  let quoted = false;
  for (let i = 0; i < text.length; i++) {
    const char = text[i];
    if (quoted && char === "\\") parts[parts.length - 1] += char + (text[++i] ?? "");
    else {
      if (char === '"' && (quoted || ".(,".includes(text[i - 1] ?? ""))) quoted = !quoted;
      else if (!quoted && char === "(") depth++;
      else if (!quoted && char === ")") depth = Math.max(0, depth - 1);
      if (char === "," && depth === 0 && !quoted) parts.push("");
      else parts[parts.length - 1] += char;
    }
  }
  return parts;
}

/** @param {string} value */
function unquote(value) {
  return /^".*"$/s.test(value) ? value.slice(1, -1).replace(/\\(.)/gs, "$1") : value;
}

/** `(a,b)` as PostgreSQL writes an array. @param {string} list */
function arrayLiteral(list) {
  if (!/^\(.*\)$/s.test(list)) throw new Error("Error parsing `filter` params: `in` needs a list in parentheses");
  const inner = list.slice(1, -1);
  const items = inner === "" ? [] : split(inner).map(unquote);
  return `{${items.map((item) => `"${item.replace(/["\\]/g, "\\$&")}"`).join(",")}}`;
}
