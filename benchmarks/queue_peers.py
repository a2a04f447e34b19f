"""One worker of procrastinate or PGQueuer with no-op jobs, run by benchmarks/queue.py with the interpreter that has them.

    python queue_peers.py procrastinate|pgqueuer DSN JOBS

Makes its tables in the empty database DSN, fills them, and works everything off one job after the other. Prints the moments at
which the jobs ran, in seconds, as a JSON list.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from datetime import timedelta

BATCH = 1000


async def procrastinate(dsn: str, jobs: int) -> list[float]:
    import procrastinate as library  # type: ignore[import-not-found]

    moments: list[float] = []
    app = library.App(connector=library.PsycopgConnector(conninfo=dsn, min_size=1, max_size=4))

    @app.task(name="noop")  # type: ignore[untyped-decorator]
    async def noop() -> None:
        moments.append(time.perf_counter())

    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        for start in range(0, jobs, BATCH):
            await noop.batch_defer_async(*[{}] * min(BATCH, jobs - start))
        await app.connector.execute_query_async("analyze")
        await app.run_worker_async(concurrency=1, wait=False, install_signal_handlers=False)
    return moments


async def pgqueuer(dsn: str, jobs: int) -> list[float]:
    import asyncpg  # type: ignore[import-not-found]
    from pgqueuer import PgQueuer  # type: ignore[import-not-found]
    from pgqueuer.db import AsyncpgDriver  # type: ignore[import-not-found]
    from pgqueuer.queries import Queries  # type: ignore[import-not-found]
    from pgqueuer.types import QueueExecutionMode  # type: ignore[import-not-found]

    moments: list[float] = []
    connection = await asyncpg.connect(dsn)
    queries = Queries(AsyncpgDriver(connection))
    await queries.install()
    for start in range(0, jobs, BATCH):
        count = min(BATCH, jobs - start)
        await queries.enqueue(["noop"] * count, [None] * count, [0] * count)
    await connection.execute("analyze")
    worker = PgQueuer.from_asyncpg_connection(connection)

    @worker.entrypoint("noop")  # type: ignore[untyped-decorator]
    async def noop(_job: object) -> None:
        moments.append(time.perf_counter())

    await worker.run(dequeue_timeout=timedelta(seconds=1), batch_size=1, mode=QueueExecutionMode.drain)
    return moments


def main() -> None:
    name, dsn, jobs = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if name == "pgqueuer":
        import uvloop

        moments = uvloop.run(pgqueuer(dsn, jobs))
    else:
        moments = asyncio.run(procrastinate(dsn, jobs))
    print(json.dumps(moments))


if __name__ == "__main__":
    main()
