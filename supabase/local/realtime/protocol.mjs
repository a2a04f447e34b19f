// The Phoenix channel protocol on the wire. vsn 1.0.0 sends JSON objects; vsn 2.0.0 sends JSON arrays, and users' broadcasts as binary
// frames: a kind byte, the lengths of the header fields, the fields, and the payload as it came from the sender.

/**
 * @typedef {"1.0.0" | "2.0.0"} Version
 * @typedef {{ joinRef: string | null, ref: string | null, topic: string, event: string, payload: any }} Message
 *
 * A broadcast on its way through the server. `json` is the text of the user's payload, kept as it came; `binary` its bytes.
 * @typedef {{ event: string, json?: string, binary?: Buffer, meta?: Record<string, unknown> }} UserBroadcast
 */

const USER_BROADCAST_PUSH = 3; // client to server
const USER_BROADCAST = 4; // server to client
const JSON_ENCODING = 1;

/** @param {Buffer} data @param {boolean} isBinary @returns {Message} */
export function decode(data, isBinary) {
  if (isBinary) return decodeBinary(data);
  const message = JSON.parse(data.toString());
  const [joinRef, ref, topic, event, payload] = Array.isArray(message)
    ? message
    : [message.join_ref, message.ref, message.topic, message.event, message.payload];
  if (typeof topic !== "string" || typeof event !== "string") throw new Error("not a Phoenix message");
  return { joinRef: joinRef ?? null, ref: ref ?? null, topic, event, payload: payload ?? {} };
}

/** @param {Buffer} data @returns {Message} */
function decodeBinary(data) {
  if (data[0] !== USER_BROADCAST_PUSH) throw new Error(`unknown kind of frame ${data[0]}`);
  let at = 7;
  const [joinRef, ref, topic, event] = [1, 2, 3, 4].map((i) => data.toString("utf8", at, (at += data[i])));
  at += data[5]; // metadata, which asks for nothing that is done here
  const body = data.subarray(at);
  /** @type {UserBroadcast} */
  const payload = data[6] === JSON_ENCODING ? { event, json: body.toString() } : { event, binary: Buffer.from(body) };
  return { joinRef: joinRef || null, ref: ref || null, topic, event: "broadcast", payload };
}

/** @param {Version} version @param {Message} message @returns {string} */
export function encode(version, { joinRef, ref, topic, event, payload }) {
  return version === "2.0.0"
    ? JSON.stringify([joinRef, ref, topic, event, payload])
    : JSON.stringify({ topic, event, ref, payload });
}

/**
 * @param {Version} version @param {string} topic @param {UserBroadcast} broadcast
 * @returns {string | Buffer | undefined} undefined when this version cannot carry it
 */
export function encodeBroadcast(version, topic, { event, json, binary, meta }) {
  if (version === "1.0.0") {
    if (json === undefined) return undefined;
    const head = JSON.stringify({ topic, event: "broadcast", ref: null });
    const rest = meta ? `,"meta":${JSON.stringify(meta)}` : "";
    return `${head.slice(0, -1)},"payload":{"event":${JSON.stringify(event)},"payload":${json},"type":"broadcast"${rest}}}`;
  }
  const fields = [topic, event, meta ? JSON.stringify(meta) : ""].map((field) => Buffer.from(field));
  if (fields.some((field) => field.length > 255)) return undefined; // the length of a field is one byte
  const body = binary ?? Buffer.from(/** @type {string} */ (json));
  return Buffer.concat([
    Buffer.from([USER_BROADCAST, ...fields.map((field) => field.length), binary ? 0 : JSON_ENCODING]), ...fields, body,
  ]);
}
