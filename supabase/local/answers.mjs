/** What PostgREST says while it cannot reach the database. */
export const AWAY = { code: "PGRST001", message: "Database client error. Retrying the connection.", details: null, hint: null };

export const CORS = {
  "access-control-allow-origin": "*",
  "access-control-allow-methods": "GET,HEAD,PUT,PATCH,POST,DELETE,OPTIONS",
  "access-control-allow-headers": "*, authorization, apikey, content-type, x-client-info, x-upsert",
  "access-control-max-age": "86400",
};

/**
 * A JSON answer, open to every origin as the real API is.
 * @param {number} status @param {unknown} body @param {HeadersInit} [headers]
 */
export function json(status, body, headers) {
  const all = new Headers(headers);
  for (const name of ["content-length", "content-encoding", "transfer-encoding"]) all.delete(name);
  for (const [name, value] of Object.entries(CORS)) if (!all.has(name)) all.set(name, value);
  all.set("content-type", "application/json; charset=utf-8");
  return new Response(JSON.stringify(body), { status, headers: all });
}
