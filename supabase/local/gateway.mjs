// The one HTTP port: hands each request to the part that answers it, under the same paths as a Supabase project.

import { createServer } from "node:http";
import { getRequestListener } from "@hono/node-server";
import { AWAY, CORS, json } from "./answers.mjs";
import { isConnectionError } from "./database.mjs";
import { TokenError } from "./keys.mjs";
import { Failure } from "./failure.mjs";
import { HOST } from "./ports.mjs";

/**
 * @typedef {(request: Request, url: URL) => Promise<Response>} Handler
 * @typedef {{ auth: Handler, storage: Handler, rest: Handler, realtime: Handler, functions: Handler }} Parts
 */

const WHAT_IS_HERE = "The embedded Supabase: /rest/v1, /auth/v1, /storage/v1, /realtime/v1, /functions/v1";

/** @param {Parts} parts */
export function createGateway(parts) {
  /** @param {Request} request @returns {Promise<Response>} */
  async function route(request) {
    const url = new URL(request.url);
    const part = /^\/(auth|storage|rest|realtime|functions)\/v1(\/|$)/.exec(url.pathname)?.[1];
    if (!part) return json(url.pathname === "/" ? 200 : 404, { message: WHAT_IS_HERE });
    const isFunction = part === "functions"; // which answers for itself to browsers of other origins
    if (request.method === "OPTIONS" && !isFunction) {
      const asked = request.headers.get("access-control-request-headers");
      return new Response(null, { status: 204, headers: { ...CORS, ...(asked && { "access-control-allow-headers": asked }) } });
    }
    try {
      const response = await parts[/** @type {keyof Parts} */ (part)](request, url);
      if (!isFunction && !response.headers.has("access-control-allow-origin")) response.headers.set("access-control-allow-origin", "*");
      return response;
    } catch (error) {
      if (error instanceof TokenError) return json(401, { message: error.message });
      if (isConnectionError(error)) return json(503, AWAY);
      return json(500, { code: "unexpected", message: String(error) });
    }
  }

  const server = createServer(getRequestListener(route, { overrideGlobalObjects: false }));
  server.keepAliveTimeout = 75_000; // longer than clients keep theirs, so that none writes into a closing connection
  return server;
}

/** @param {import("node:http").Server} server @param {number} port */
export function listen(server, port) {
  return new Promise((resolve, reject) => {
    server.once("error", () => reject(new Failure(`Port ${port} is taken: give --port another, or 0 for a free one.`)));
    server.listen(port, HOST, () => resolve(undefined));
  });
}
