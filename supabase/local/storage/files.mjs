// Where the bytes of storage objects lie: one file a version, named by the version's UUID. A file is never written
// twice, so a reader and a replacing upload cannot meet; which version an object has is in its row.

import { createHash, randomUUID } from "node:crypto";
import { mkdir, open, readFile, rm } from "node:fs/promises";
import { dirname, join } from "node:path";

/** @typedef {{ version: string, eTag: string, size: number, lastModified: string }} Stored */

export class FileStore {
  /** @param {string} dir */
  constructor(dir) {
    this.dir = dir;
  }

  /** @param {string} version */
  #path(version) {
    return join(this.dir, version.slice(0, 2), version);
  }

  /**
   * Stores bytes under a new version; they are on the disk when the promise resolves.
   * @param {Uint8Array} bytes @returns {Promise<Stored>}
   */
  async write(bytes) {
    const version = randomUUID();
    const path = this.#path(version);
    await mkdir(dirname(path), { recursive: true });
    const file = await open(path, "wx");
    try {
      await file.writeFile(bytes);
      await file.sync();
    } finally {
      await file.close();
    }
    const eTag = `"${createHash("md5").update(bytes).digest("hex")}"`;
    return { version, eTag, size: bytes.byteLength, lastModified: new Date().toISOString() };
  }

  /**
   * The bytes of a version, or `undefined` if there is no such file (a row that was inserted by SQL has none).
   * @param {string | null} version @returns {Promise<Buffer | undefined>}
   */
  async read(version) {
    try {
      return version === null ? undefined : await readFile(this.#path(version));
    } catch (error) {
      if (/** @type {NodeJS.ErrnoException} */ (error).code === "ENOENT") return undefined;
      throw error;
    }
  }

  /** @param {(string | null | undefined)[]} versions */
  async remove(versions) {
    await Promise.all(versions.map((version) => version && rm(this.#path(version), { force: true })));
  }
}
