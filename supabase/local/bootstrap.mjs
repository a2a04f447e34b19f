// Makes a plain PostgreSQL look like a Supabase database before any migration runs: all of it in one transaction, or nothing.

import { readFile } from "node:fs/promises";
import { getAuthSchemaSql, getStorageSchemaSql } from "@supabase/lite";
import { Failure } from "./failure.mjs";
import { PASSWORD } from "./postgres.mjs";

/** Goes up when a file in sql/ changes, since a data directory is not rebuilt. */
const VERSION = 3;

/** @param {string} name */
const file = (name) => readFile(new URL(`./sql/${name}.sql`, import.meta.url), "utf8");

/** @param {import("./database.mjs").Sql} sql as superuser */
export async function bootstrap(sql) {
  const [{ present }] = await sql`select to_regclass('_local.bootstrap') is not null as present`;
  if (present) {
    const [{ version }] = await sql`select max(version) as version from _local.bootstrap`;
    if (version !== VERSION) {
      throw new Failure(`The data directory is of layout ${version}, and this program needs ${VERSION}: start once with --reset.`);
    }
  } else {
    const parts = [
      await file("1_roles"), getAuthSchemaSql(), await file("2_auth"), getStorageSchemaSql(), await file("3_storage"),
      await file("4_realtime"), await file("5_local"), await file("6_net"),
    ];
    await sql.begin(async (tx) => {
      for (const part of parts) await tx.unsafe(part);
      await tx.unsafe(`alter role postgres password '${PASSWORD}'; alter role authenticator password '${PASSWORD}'`);
      await tx`insert into _local.bootstrap (version) values (${VERSION})`;
    });
  }
  await keepMessages(sql);
}

/** Partitions for the days to come, and an end for old messages. @param {import("./database.mjs").Sql} sql */
export async function keepMessages(sql) {
  await sql`select _local.keep_messages()`;
}
