// Applies supabase/migrations in order and then supabase/seed.sql, and writes down what was done where the Supabase CLI looks for it, so
// that `supabase db push` and `supabase migration list` agree with what was done here.

import { createHash } from "node:crypto";
import { globSync, readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { splitSqlStatements } from "@supabase/lite";
import { Failure } from "./failure.mjs";

/**
 * @typedef {import("./database.mjs").Sql} Sql
 * @typedef {{ file: string, version: string, name: string, text: string, hash: string }} Migration
 */

/** @param {string} supabaseDir @returns {Migration[]} */
function readMigrations(supabaseDir) {
  const dir = join(supabaseDir, "migrations");
  return readdirSync(dir)
    .sort()
    .flatMap((file) => {
      const match = /^(\d+)_(.*)\.sql$/.exec(file);
      if (!match) return [];
      const text = readFileSync(join(dir, file), "utf8");
      return [{ file: `migrations/${file}`, version: match[1], name: match[2], text, hash: hashOf(text) }];
    });
}

/** @param {string} text */
const hashOf = (text) => createHash("sha256").update(text).digest("hex");

/**
 * @param {Sql} admin  superuser: keeps our own book of what the files said
 * @param {Sql} owner  role postgres, as which migrations run on Supabase
 * @param {string} supabaseDir
 * @returns {Promise<string[]>} the files applied now
 */
export async function migrate(admin, owner, supabaseDir) {
  await admin`create table if not exists _local.migrations (version text primary key, hash text not null)`;
  const applied = new Map((await admin`select s.version, m.hash from supabase_migrations.schema_migrations s
                                         left join _local.migrations m using (version)`).map((row) => [row.version, row.hash]));
  const migrations = readMigrations(supabaseDir);
  const done = [];
  for (const { file, version, name, text, hash } of migrations) {
    const known = applied.get(version);
    if (known && known !== hash) {
      throw new Failure(`${file} was changed after it was applied here: put the change into a new migration, or start once with --reset.`);
    }
    if (applied.delete(version)) continue;
    await apply(owner, file, text, (tx) => tx`
      insert into supabase_migrations.schema_migrations (version, name, statements)
      values (${version}, ${name}, ${splitSqlStatements(text)})`);
    await admin`insert into _local.migrations (version, hash) values (${version}, ${hash})`;
    done.push(file);
  }
  const [gone] = applied.keys();
  if (gone !== undefined) {
    throw new Failure(`The migration ${gone} was applied here, but its file is gone: bring it back, or start once with --reset.`);
  }
  return done;
}

/** @param {Sql} owner @param {string} supabaseDir @param {string[]} patterns */
export async function seed(owner, supabaseDir, patterns) {
  for (const path of patterns.flatMap((pattern) => globSync(pattern, { cwd: supabaseDir }).sort())) {
    const text = readFileSync(join(supabaseDir, path), "utf8");
    const key = `supabase/${path.replace(/^\.\//, "")}`;
    const [known] = await owner`select from supabase_migrations.seed_files where path = ${key}`;
    if (known) continue;
    await apply(owner, path, text, (tx) => tx`
      insert into supabase_migrations.seed_files (path, hash) values (${key}, ${hashOf(text)})`);
  }
}

/**
 * One file and its entry in the book, together or not at all.
 * @param {Sql} owner @param {string} file @param {string} text @param {(tx: import("postgres").TransactionSql) => PromiseLike<unknown>} record
 */
async function apply(owner, file, text, record) {
  try {
    await owner.begin(async (tx) => {
      await tx.unsafe(text);
      await record(tx);
    });
  } catch (error) {
    const { message, position, hint, detail } = /** @type {any} */ (error);
    const line = position ? ` line ${text.slice(0, Number(position)).split("\n").length}` : "";
    throw new Failure([`${file}${line}: ${message}`, detail, hint].filter(Boolean).join("\n  "));
  }
}

