import { createServer } from "node:net";
import { Failure } from "./failure.mjs";

export const HOST = "127.0.0.1"; // never anything else: the keys are public

/** The port asked for, or a free one for 0. @param {number} wanted @param {string} option @returns {Promise<number>} */
export function choosePort(wanted, option) {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once("error", () => reject(new Failure(`Port ${wanted} is taken: give ${option} another, or 0 for a free one.`)));
    server.listen(wanted, HOST, () => {
      const { port } = /** @type {import("node:net").AddressInfo} */ (server.address());
      server.close(() => resolve(port));
    });
  });
}
