// pg_net's part: HTTP requests that the database asks for. A request is a row, which this takes out once its transaction is committed;
// the answer is a row of net._http_response, kept for 6 hours as pg_net does. Nothing is tried again.

const BATCH = 200; // pg_net's default

export class Net {
  #isStopping = false;
  #turn = Promise.resolve();
  /** @type {Set<Promise<void>>} */
  #running = new Set();
  #abort = new AbortController();

  /** @param {{ sql: import("./database.mjs").Sql, log: (line: string) => void }} parts */
  constructor({ sql, log }) {
    this.sql = sql;
    this.log = log;
  }

  async start() {
    await this.sql.listen("_local_net", () => this.#wake(), () => this.#wake()); // the second: whenever listening begins anew
  }

  async stop() {
    this.#isStopping = true;
    this.#abort.abort();
    await this.#turn;
    await Promise.all(this.#running);
  }

  #wake() {
    this.#turn = this.#turn.then(() => this.#takeAll()).catch((error) => this.log(`net: ${error.message}`));
  }

  async #takeAll() {
    for (let taken = BATCH; taken === BATCH && !this.#isStopping; ) {
      const rows = await this.sql`
        delete from net.http_request_queue q
         where q.id in (select id from net.http_request_queue order by id limit ${BATCH} for update skip locked)
        returning q.id, q.method, q.url, q.headers, q.body, q.timeout_milliseconds`;
      taken = rows.length;
      for (const row of rows) {
        const answer = this.#perform(row).catch((error) => this.log(`net: ${error.message}`)).finally(() => this.#running.delete(answer));
        this.#running.add(answer);
      }
    }
  }

  /** @param {Record<string, any>} row */
  async #perform({ id, method, url, headers, body, timeout_milliseconds: timeout }) {
    const deadline = AbortSignal.timeout(timeout);
    /** @type {Record<string, unknown>} */
    let answer;
    try {
      const signal = AbortSignal.any([deadline, this.#abort.signal]);
      const response = await fetch(url, { method, headers, body, redirect: "manual", signal });
      answer = {
        status_code: response.status,
        content_type: response.headers.get("content-type"),
        headers: this.sql.json(Object.fromEntries(response.headers)),
        content: await response.text(),
        timed_out: false,
      };
    } catch (error) {
      if (this.#isStopping) return;
      const reason = /** @type {any} */ (error);
      answer = deadline.aborted
        ? { timed_out: true, error_msg: `Timeout of ${timeout} ms reached.` }
        : { timed_out: false, error_msg: String(reason.cause?.message || reason.message) };
    }
    await this.sql`insert into net._http_response ${this.sql(/** @type {any} */ ({ id, ...answer }))}`;
  }
}

/** Forgets old answers. @param {import("./database.mjs").Sql} sql */
export async function keepAnswers(sql) {
  await sql`delete from net._http_response where created < now() - interval '6 hours'`;
}
