// Where the bytes of storage objects lie: one file an object, named by a hash (object names are the users' and may be anything), with what
// must be known about it in a small file beside it.

import { createHash, randomUUID } from "node:crypto";
import { mkdir, open, readFile, rename, rm } from "node:fs/promises";
import { dirname, join } from "node:path";

/** @typedef {{ mimetype: string, cacheControl: string, eTag: string, lastModified: string, size: number }} Facts */

export class FileStore {
  driver = null; // what @supabase/lite calls the thing underneath; nothing here

  /** @param {string} dir */
  constructor(dir) {
    this.dir = dir;
  }

  /** @param {string} bucket @param {string} name */
  #path(bucket, name) {
    const hash = createHash("sha256").update(`${bucket}/${name}`).digest("hex");
    return join(this.dir, hash.slice(0, 2), hash);
  }

  /**
   * @param {string} bucket @param {string} name @param {string | undefined} _version
   * @param {ReadableStream | Uint8Array} body @param {string} mimetype @param {string} cacheControl
   */
  async uploadObject(bucket, name, _version, body, mimetype, cacheControl) {
    const bytes = body instanceof Uint8Array ? body : new Uint8Array(await new Response(body).arrayBuffer());
    return this.#put(this.#path(bucket, name), bytes, mimetype, cacheControl);
  }

  /** @param {string} path @param {Uint8Array} bytes @param {string} mimetype @param {string} cacheControl */
  async #put(path, bytes, mimetype, cacheControl) {
    const eTag = `"${createHash("md5").update(bytes).digest("hex")}"`;
    const facts = { mimetype, cacheControl, eTag, lastModified: new Date().toISOString(), size: bytes.byteLength };
    await mkdir(dirname(path), { recursive: true });
    await write(`${path}.json`, JSON.stringify(facts));
    await write(path, bytes);
    return describe(facts);
  }

  /** @param {string} bucket @param {string} name */
  async getObject(bucket, name) {
    const path = this.#path(bucket, name);
    const [body, facts] = await Promise.all([readFile(path), readFacts(path)]);
    return { httpStatusCode: 200, metadata: describe(facts), body };
  }

  /** @param {string} bucket @param {string} name */
  async headObject(bucket, name) {
    return describe(await readFacts(this.#path(bucket, name)));
  }

  /** @param {string} bucket @param {string} name */
  async deleteObject(bucket, name) {
    const path = this.#path(bucket, name);
    await Promise.all([rm(path, { force: true }), rm(`${path}.json`, { force: true })]);
  }

  /** @param {string} bucket @param {string[]} names */
  async deleteObjects(bucket, names) {
    await Promise.all(names.map((name) => this.deleteObject(bucket, name)));
  }

  /**
   * @param {string} bucket @param {string} name @param {string | undefined} _version
   * @param {string} toBucket @param {string} toName
   */
  async copyObject(bucket, name, _version, toBucket, toName) {
    const { body, metadata } = await this.getObject(bucket, name);
    const copy = await this.#put(this.#path(toBucket, toName), body, metadata.mimetype, metadata.cacheControl);
    return { httpStatusCode: 200, eTag: copy.eTag, lastModified: copy.lastModified };
  }

  /** @param {string} bucket @param {string} name */
  async privateAssetUrl(bucket, name) {
    return `file://${this.#path(bucket, name)}`;
  }
}

/** Whole or not at all, and on the disk before anybody is told. @param {string} path @param {string | Uint8Array} content */
async function write(path, content) {
  const temporary = `${path}.${randomUUID()}`;
  const file = await open(temporary, "w");
  try {
    await file.writeFile(content);
    await file.sync();
  } finally {
    await file.close();
  }
  await rename(temporary, path);
}

/** @param {string} path @returns {Promise<Facts>} */
async function readFacts(path) {
  return JSON.parse(await readFile(`${path}.json`, "utf8"));
}

/** @param {Facts} facts */
function describe(facts) {
  return { ...facts, lastModified: new Date(facts.lastModified), contentLength: facts.size };
}
