// pg-safeupdate, which Supabase preloads for REST: no UPDATE or DELETE without a WHERE clause, inside functions and triggers either. It is
// C; here PostgreSQL itself prints the parse tree of each statement (debug_print_parse), at its first run in a session, to the gateway.

/** For the transactions of REST, where a function might hold such a statement; the trees are for us and not for the server's log. */
export const PRINT_TREES = {
  debug_print_parse: "on", debug_pretty_print: "off", client_min_messages: "log", log_min_messages: "fatal",
};

/** Of nodes/nodes.h: CmdType. */
const VERBS = /** @type {Record<string, string>} */ ({ 2: "UPDATE", 4: "DELETE" });

/** A query opens with its command and writes mergeActionList right behind its own FROM and WHERE. */
const QUERY_PARTS = /\{QUERY\s+:commandType\s+(\d)|(:quals\s+<>)?\}\s+:mergeActionList/g;

/** The command of a tree that has no WHERE clause, be it in a common table expression. @param {string} tree @returns {string | undefined} */
export function unfilteredVerb(tree) {
  /** @type {string[]} */
  const open = [];
  for (const [, command, withoutWhere] of tree.matchAll(QUERY_PARTS)) {
    if (command) open.push(command);
    else {
      const verb = VERBS[open.pop() ?? ""];
      if (verb && withoutWhere) return verb;
    }
  }
  return undefined;
}

const WRITES = /(?<!\b(?:for|do|key|before|after|or)\s+)\b(?:update|delete\s+from)\b/;

/**
 * Can the body of a function hold an UPDATE or DELETE without a WHERE clause? A guess on the safe side, which decides whether trees are printed.
 * @param {string} source SQL or PL/pgSQL
 */
export function mayLackWhere(source) {
  const text = source.toLowerCase().replace(/--.*$/gm, " ").replace(/\/\*[^]*?\*\//g, " ");
  if (/\bexecute\b/.test(text) && /\b(?:update|delete)\b/.test(text)) return true; // SQL in a string
  const lacks = (/** @type {string} */ part) => part.split(";").some((statement) => WRITES.test(statement) && !/\bwhere\b/.test(statement));
  let found = false;
  let rest = text.replace(/'(?:[^']|'')*'/g, " ");
  for (let before = ""; before !== rest;) { // from the innermost parentheses outwards
    before = rest;
    rest = rest.replace(/\(([^()]*)\)/g, (_, inner) => {
      found ||= lacks(inner);
      return " ";
    });
  }
  return found || lacks(rest);
}
