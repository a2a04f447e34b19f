// Which function bodies are watched for statements without a WHERE clause.

import assert from "node:assert/strict";
import { test } from "node:test";
import { mayLackWhere, unfilteredVerb } from "../safeupdate.mjs";

const FILTERED = [
  "update a set b = lower(c) where d = 1",
  "insert into a values (1) on conflict (id) do update set b = excluded.b",
  "select * from a where b for no key update; select 1",
  "select a from b for update skip locked",
  "begin if tg_op = 'UPDATE' then delete from a where id = old.id; end if; end",
  "with gone as (delete from a where b returning id) update c set d = 1 where id in (select id from gone)",
  "-- update a set b = 1\nselect 1 /* delete from a */",
];
const UNFILTERED = [
  "begin delete from a; end",
  "begin\n  UPDATE a SET b = (select max(c) from d where e);\n  perform 1;\nend",
  "with gone as (delete from a returning id) select * from gone where id > 1",
  "begin execute format('delete from %I', t); end",
];
for (const source of FILTERED) test(`not: ${source}`, () => assert.equal(mayLackWhere(source), false));
for (const source of UNFILTERED) test(`yes: ${source}`, () => assert.equal(mayLackWhere(source), true));

test("each query of a parse tree is held by its own WHERE clause", () => {
  const query = (/** @type {number} */ command, /** @type {string} */ quals, inner = "<>") =>
    `{QUERY :commandType ${command} :cteList ${inner} :jointree {FROMEXPR :fromlist <>\n:quals ${quals}} :mergeActionList <>}`;
  assert.equal(unfilteredVerb(query(1, "<>")), undefined);
  assert.equal(unfilteredVerb(query(2, "<>")), "UPDATE");
  assert.equal(unfilteredVerb(query(4, "{CONST}")), undefined);
  assert.equal(unfilteredVerb(query(2, "{CONST}", `(${query(4, "<>")})`)), "DELETE");
  assert.equal(unfilteredVerb(query(1, "<>", `(${query(4, "{CONST}")})`)), undefined);
  assert.equal(unfilteredVerb(query(2, `{SUBLINK ${query(1, "<>")}}`)), undefined);
});
