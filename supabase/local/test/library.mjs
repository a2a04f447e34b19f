// The scratch project with a library in it: tables and functions of every kind, for the tests of REST.

import { copyFileSync, cpSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { HERE, SCRATCH, temporaryFolder } from "./harness.mjs";

/** @param {import("./harness.mjs").Test} t @param {string} [seed] @returns {string} the supabase folder */
export function libraryProject(t, seed) {
  const dir = join(temporaryFolder(t), "supabase");
  cpSync(SCRATCH, dir, { recursive: true });
  copyFileSync(join(HERE, "library.sql"), join(dir, "migrations/20260101000200_library.sql"));
  if (seed) writeFileSync(join(dir, "seed.sql"), seed);
  return dir;
}
