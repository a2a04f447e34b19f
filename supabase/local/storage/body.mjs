// Bodies and parameters of requests: read with a limit, and checked against a schema with Fastify's (Ajv's) messages.

import { invalidRequest } from "./errors.mjs";

/**
 * @typedef {{ type: "string" | "integer" | "boolean" | "object" | "array", required?: boolean, nullable?: boolean,
 *             minimum?: number, minItems?: number, oneOf?: string[], pattern?: RegExp, of?: Field, fields?: Fields }} Field
 * @typedef {Record<string, Field>} Fields
 */

/** @param {Request} request @param {Fields} fields @returns {Promise<any>} */
export async function readJson(request, fields) {
  const text = await request.text();
  if (text === "") throw invalidRequest("Body cannot be empty when content-type is set to 'application/json'", "FastifyError");
  let body;
  try {
    body = JSON.parse(text);
  } catch {
    throw invalidRequest("Body is not valid JSON but content-type is set to 'application/json'", "FastifyError");
  }
  return check(body, { type: "object", fields }, "body");
}

/** @param {URL} url @param {Fields} fields @returns {any} */
export const readQuery = (url, fields) => check(Object.fromEntries(url.searchParams), { type: "object", fields }, "querystring");

/**
 * The value in the schema's type: numbers and booleans that come as text are converted.
 * @param {any} value @param {Field} field @param {string} where for the message, such as `body/limit` @returns {any}
 */
function check(value, field, where) {
  const fail = (/** @type {string} */ message) => {
    throw invalidRequest(`${where} ${message}`, "Error");
  };
  if (value === null && field.nullable) return null;
  switch (field.type) {
    case "string":
      if (typeof value === "number" || typeof value === "boolean") value = String(value);
      if (typeof value !== "string") fail("must be string");
      if (field.pattern && !field.pattern.test(value)) fail(`must match pattern "${field.pattern.source}"`);
      break;
    case "integer":
      if (typeof value === "string" && value.trim() !== "") value = Number(value);
      if (!Number.isInteger(value)) fail("must be integer");
      if (value < (field.minimum ?? -Infinity)) fail(`must be >= ${field.minimum}`);
      break;
    case "boolean":
      if (value === "true" || value === "false") value = value === "true";
      if (typeof value !== "boolean") fail("must be boolean");
      break;
    case "array":
      if (!Array.isArray(value)) fail("must be array");
      if (value.length < (field.minItems ?? 0)) fail(`must NOT have fewer than ${field.minItems} items`);
      return [...value.entries()].map(([i, one]) => check(one, /** @type {Field} */ (field.of), `${where}/${i}`));
    case "object": {
      if (value === null || typeof value !== "object" || Array.isArray(value)) fail("must be object");
      const checked = { ...value };
      for (const [name, one] of Object.entries(field.fields ?? {})) {
        if (value[name] !== undefined) checked[name] = check(value[name], one, `${where}/${name}`);
        else if (one.required) fail(`must have required property '${name}'`);
      }
      return checked;
    }
  }
  if (field.oneOf && !field.oneOf.includes(value)) fail("must be equal to one of the allowed values");
  return value;
}
