// Edge Functions: the folders of supabase/functions, run by Deno in one process that is started by the first request.
//
// A function calls Deno.serve, as on Supabase; here that hands over its handler, and one server calls them all. Its address is a port of
// this machine. It may use the network and its environment, and cannot read files or start programs.

import { spawn } from "node:child_process";
import { createWriteStream, existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";
import { parseEnv } from "node:util";
import { json } from "./answers.mjs";
import { Failure } from "./failure.mjs";
import { TokenError } from "./keys.mjs";

const INHERITED = ["PATH", "HOME", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "DENO_CERT", "DENO_TLS_CA_STORE"];
const START_MS = 30_000;

/** What a request must not hand on from one connection to the next. */
const HOP_BY_HOP = ["connection", "keep-alive", "transfer-encoding", "upgrade", "host", "content-length", "content-encoding"];

export class Functions {
  /** @type {Promise<Deno> | undefined} */
  #deno;

  /**
   * @param {{ config: import("./config.mjs").Config, keys: import("./keys.mjs").Keys, supabaseDir: string, dataDir: string,
   *           apiUrl: string, dbUrl: string, envFile: string | undefined, log: (line: string) => void }} parts
   */
  constructor({ config, keys, supabaseDir, dataDir, apiUrl, dbUrl, envFile, log }) {
    this.config = config;
    this.keys = keys;
    this.dir = join(supabaseDir, "functions");
    this.dataDir = dataDir;
    this.log = log;
    this.environment = {
      ...readEnvFile(envFile ?? join(this.dir, ".env"), envFile !== undefined),
      SUPABASE_URL: apiUrl,
      SUPABASE_DB_URL: dbUrl,
      SUPABASE_PUBLISHABLE_KEYS: JSON.stringify({ default: config.publishableKey }),
      SUPABASE_SECRET_KEYS: JSON.stringify({ default: config.secretKey }),
      SUPABASE_ANON_KEY: config.publishableKey,
      SUPABASE_SERVICE_ROLE_KEY: config.secretKey,
    };
  }

  /** @param {Request} request @param {URL} url @returns {Promise<Response>} */
  async fetch(request, url) {
    const name = url.pathname.split("/")[3] ?? "";
    if (!this.#names().includes(name)) return json(404, { code: "NOT_FOUND", message: "Requested function was not found" });
    const refusal = request.method !== "OPTIONS" && (await this.#verify(request, name));
    if (refusal) return refusal;
    let deno;
    try {
      deno = await (this.#deno ??= this.#start());
    } catch (error) {
      this.#deno = undefined;
      this.log(`functions: ${/** @type {Error} */ (error).message}`);
      return json(503, { code: "BOOT_ERROR", message: /** @type {Error} */ (error).message });
    }
    return deno.hand(request, url);
  }

  async stop() {
    (await this.#deno?.catch(() => undefined))?.stop();
  }

  /** As the CLI finds them. */
  #names() {
    const folders = this.config.hasFunctions && existsSync(this.dir) ? readdirSync(this.dir) : [];
    return folders.filter((name) => /^[A-Za-z][\w-]*$/.test(name) && existsSync(this.#entry(name)) && this.config.functions[name]?.enabled !== false);
  }

  /** @param {string} name */
  #entry(name) {
    return join(this.dir, name, "index.ts");
  }

  /** Unless the function does without: its bearer token must be a user's. API keys are no tokens. @param {Request} request @param {string} name */
  async #verify(request, name) {
    if (this.config.functions[name]?.verifyJwt === false) return undefined;
    const token = /^Bearer\s+(.+)$/i.exec(request.headers.get("authorization") ?? "")?.[1];
    if (!token) return json(401, { code: "UNAUTHORIZED_NO_AUTH_HEADER", message: "Missing authorization header" });
    try {
      if (this.keys.isKey(token)) throw new TokenError("an API key is no token");
      await this.keys.claims(token);
      return undefined;
    } catch {
      return json(401, { code: "UNAUTHORIZED_INVALID_JWT_FORMAT", message: "Invalid JWT" });
    }
  }

  async #start() {
    const program = findDeno();
    const main = join(this.dataDir, "functions.ts");
    writeFileSync(main, mainModule(this.#names().map((name) => [name, this.#entry(name)])));
    const config = join(this.dir, "deno.json");
    const output = createWriteStream(join(this.dataDir, "functions.log"), { flags: "a" });
    const inherited = Object.fromEntries(INHERITED.flatMap((name) => (process.env[name] ? [[name, process.env[name]]] : [])));
    const child = spawn(program, [
      "run", "--quiet", "--no-prompt", "--no-lock", "--allow-net", "--allow-env", ...(existsSync(config) ? ["--config", config] : ["--no-config"]), main,
    ], {
      env: { ...inherited, DENO_DIR: join(this.dataDir, "deno"), DENO_NO_UPDATE_CHECK: "1", NO_COLOR: "1", ...this.environment },
      stdio: ["pipe", "pipe", "pipe"], // it ends when its standard input does, so that it cannot outlive this process
    });
    child.stderr.on("data", (data) => output.write(data));
    child.once("exit", () => {
      this.#deno = undefined; // the next request starts another
      output.end();
    });
    const lines = createInterface({ input: child.stdout });
    const port = await new Promise((resolve, reject) => {
      const late = setTimeout(() => reject(new Error("Deno did not start in time")), START_MS);
      child.once("error", (error) => reject(new Error(`Deno cannot be started: ${error.message}`)));
      child.once("exit", (code) => reject(new Error(`Deno ended with ${code}: see functions.log`)));
      lines.once("line", (line) => {
        clearTimeout(late);
        lines.on("line", (more) => output.write(`${more}\n`));
        resolve(JSON.parse(line).port);
      });
    });
    return new Deno(child, port);
  }
}

class Deno {
  /** @param {import("node:child_process").ChildProcess} child @param {number} port */
  constructor(child, port) {
    this.child = child;
    this.port = port;
  }

  /** A function sees its own name as the first part of the path. @param {Request} request @param {URL} url */
  async hand(request, url) {
    const headers = new Headers(request.headers);
    for (const name of HOP_BY_HOP) headers.delete(name);
    const response = await fetch(`http://127.0.0.1:${this.port}${url.pathname.slice("/functions/v1".length)}${url.search}`, {
      method: request.method,
      headers,
      body: request.body,
      redirect: "manual",
      signal: request.signal,
      .../** @type {any} */ ({ duplex: "half" }),
    });
    const answered = new Headers(response.headers);
    for (const name of HOP_BY_HOP) answered.delete(name); // fetch has unpacked the body
    return new Response(response.body, { status: response.status, headers: answered });
  }

  stop() {
    this.child.kill("SIGKILL"); // it keeps nothing
  }
}

/**
 * The program that serves them: the imports are literal, so that Deno may load what they name without a right to read files.
 * @param {[string, string][]} entries name and file
 */
function mainModule(entries) {
  return `const handlers = {};
const serve = Deno.serve;
let current = "";
Deno.serve = (...given) => {
  handlers[current] = given.find((one) => typeof one === "function") ?? given[0].handler;
  return { finished: new Promise(() => {}), shutdown: async () => {}, ref() {}, unref() {} };
};
${entries.map(([name, file]) => `current = ${JSON.stringify(name)};
await import(${JSON.stringify(pathToFileURL(file).href)}).catch((error) => console.error(current, error));`).join("\n")}
serve({
  hostname: "127.0.0.1", port: 0,
  onListen: ({ port }) => console.log(JSON.stringify({ port })),
  onError: (error) => {
    console.error(error);
    return Response.json({ code: "WORKER_ERROR", message: "Function exited due to an error (please check logs)" }, { status: 500 });
  },
}, (request, info) => handlers[new URL(request.url).pathname.split("/")[1]]?.(request, info)
  ?? Response.json({ code: "BOOT_ERROR", message: "Worker failed to boot (please check logs)" }, { status: 503 }));
for await (const _ of Deno.stdin.readable);
Deno.exit(0);
`;
}

/** The binary of the npm package, which has no musl one. */
function findDeno() {
  const platform = { linux: "linux", darwin: "darwin", win32: "win32" }[/** @type {"linux"} */ (process.platform)] ?? process.platform;
  const name = `@deno/${platform}-${process.arch}${platform === "linux" ? "-glibc" : ""}`;
  try {
    const require = createRequire(createRequire(import.meta.url).resolve("deno/package.json"));
    return require.resolve(`${name}/deno${platform === "win32" ? ".exe" : ""}`);
  } catch {
    throw new Failure(`Edge Functions need Deno, and the npm package ${name} is not installed: run \`npm ci\` in supabase/local.`);
  }
}

/** Names that begin with SUPABASE_ are not the file's to set, as there. @param {string} path @param {boolean} isNeeded */
function readEnvFile(path, isNeeded) {
  if (!isNeeded && !existsSync(path)) return {};
  try {
    return Object.fromEntries(Object.entries(parseEnv(readFileSync(path, "utf8"))).filter(([name]) => !name.startsWith("SUPABASE_")));
  } catch (error) {
    throw new Failure(`${path} cannot be read: ${/** @type {Error} */ (error).message}`);
  }
}
