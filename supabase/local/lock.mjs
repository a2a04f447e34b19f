// One program for one data directory. The lock is a file with the holder's process id; one whose process is gone counts for nothing,
// so that a kill -9 leaves nothing to clean up by hand.

import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Failure } from "./failure.mjs";

/** Takes the lock for as long as this process lives. @param {string} dataDir */
export function lock(dataDir) {
  const path = join(dataDir, "gateway.pid");
  for (;;) {
    try {
      writeFileSync(path, `${process.pid}\n`, { flag: "wx" });
      process.on("exit", () => rmSync(path, { force: true }));
      return;
    } catch (error) {
      if (/** @type {NodeJS.ErrnoException} */ (error).code !== "EEXIST") throw error;
    }
    const holder = readPid(path);
    if (holder !== undefined && holder !== process.pid && isAlive(holder, "main.mjs")) {
      throw new Failure(`The data directory ${dataDir} is in use by process ${holder}: stop that one, or choose another --data-dir.`);
    }
    rmSync(path, { force: true });
  }
}

/** The process id on the first line of a file. @param {string} path */
export function readPid(path) {
  try {
    const pid = Number(readFileSync(path, "utf8").split("\n", 1)[0]);
    return Number.isInteger(pid) && pid > 0 ? pid : undefined;
  } catch {
    return undefined;
  }
}

/**
 * Is there such a process, and is it the one that is meant? Process ids are used again, so where the system shows command lines the
 * word must stand in it.
 * @param {number} pid @param {string} word
 */
export function isAlive(pid, word) {
  try {
    process.kill(pid, 0);
  } catch (error) {
    return /** @type {NodeJS.ErrnoException} */ (error).code === "EPERM";
  }
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "utf8").includes(word);
  } catch {
    return true; // no /proc here, or the process belongs to somebody else
  }
}
