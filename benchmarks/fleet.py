"""How large a fleet the queue carries: a thousand workers, a million finished rows, a hundred thousand waiting, bursts, deaths.

The Postgres, the SQL and Realtime are real ones, of one embedded Supabase; each call is a transaction with the service role, over
as many connections as PostgREST has. Simulated are the GPUs, which sleep, and HTTP, which is left out. Postgres, Realtime and the
simulator share the machine's cores.

    python -m benchmarks.fleet [--scale S] [--connections N] [--out FOLDER]     # 10 minutes; --scale 0.01 is a try
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.fleet_figures import Done, Scene, scene_figures, series
from benchmarks.fleet_fill import BACKLOG, Order, finished, order, settle, users, waiting, zipf
from benchmarks.fleet_rest import Calls, Refused, Rest, as_user, literal
from benchmarks.fleet_watch import Watch
from benchmarks.fleet_workers import H100, RTX, Fleet, Gpu
from benchmarks.results_file import FOLDER, write_results
from ourvidz_sdxl.local import EmbeddedSupabase
from tests.processes import scratch_supabase

SEED = 20261122
EXPECTED = {"504", "PT429"}  # no connection in time; more than a user's quota
MEAN_COST = 2.25 * (15 + 25) / 2 / 25  # of fleet_fill.order
SINCE = "select extract(epoch from clock_timestamp() - %s)"
JOBS = """
    select j.id::text, j.user_id::text, l.cost, l.worker, extract(epoch from j.created_at - %(zero)s)::float8,
           extract(epoch from j.started_at - %(zero)s)::float8, extract(epoch from j.completed_at - %(zero)s)::float8,
           l.claims > 1 or j.error_code = 'lease_expired' or l.expires_at < now()
      from public.jobs j join private.leases l on l.job_id = j.id
     where j.target_worker = %(target)s and j.created_at < now() + interval '1 s'
     order by j.created_at, l.fair_key
"""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much of everything."""

    finished: int = 1_000_000
    waiting: int = 100_000
    users: int = 2000
    sizes: tuple[int, ...] = (10, 100, 300, 1000)
    warm_up_seconds: float = 20
    seconds: float = 25
    burst: int = 10_000
    burst_seconds: float = 15
    herds: int = 20
    lease_seconds: int = 60
    connections: int = 10

    def scaled(self, scale: float) -> Plan:
        def less(number: float, least: float) -> int:
            return round(max(least, number * scale))

        return Plan(
            finished=less(self.finished, 500),
            waiting=less(self.waiting, 200),
            users=less(self.users, 20),
            sizes=tuple(sorted({less(size, 5) for size in self.sizes})),
            warm_up_seconds=self.warm_up_seconds if scale > 0.1 else 1,
            seconds=self.seconds if scale > 0.1 else 2,
            burst=less(self.burst, 50),
            burst_seconds=self.burst_seconds if scale > 0.1 else 1,
            herds=less(self.herds, 2),
            lease_seconds=self.lease_seconds if scale > 0.1 else 10,
            connections=self.connections,
        )


class Stage:
    """Where the scenes are played, one after the other, each with a queue (a target) of its own."""

    def __init__(
        self, supabase: EmbeddedSupabase, db: psycopg.Connection[Any], rest: Rest, plan: Plan, crowd: Sequence[str]
    ) -> None:
        self.plan = plan
        self.rest = rest
        self.crowd = crowd
        self.chance = random.Random(SEED)
        self._supabase = supabase
        self._db = db
        self._watch = Watch(db)
        self._inserts: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def scene(
        self, name: str, target: str, gpu: Gpu, workers: int, warm_up: Callable[[Fleet], Any] | None = None
    ) -> AsyncIterator[Scene]:
        """The block is what is measured, after `warm_up`."""
        print(f"{name} ...", flush=True)
        fleet = Fleet(
            self._supabase,
            target,
            self.rest,
            [gpu] * workers,
            lease_seconds=self.plan.lease_seconds,
            seed=SEED,
        )
        zero = self._value("select clock_timestamp()")
        async with fleet.at_work():
            if warm_up:
                await warm_up(fleet)
            self.rest.calls.clear()
            async with self._watch.stretch() as watched:
                from_ = float(self._value(SINCE, zero))
                scene = Scene(name=name, fleet=fleet, watched=watched, measured_from=from_)
                yield scene
                scene.painting = fleet.painting
                scene.measured_until = float(self._value(SINCE, zero))
            unexpected = self.rest.calls.refused.keys() - EXPECTED
            assert not unexpected, f"refused: {self.rest.calls.refused}"
            scene.calls, self.rest.calls = self.rest.calls, Calls()
            rows = self._db.execute(JOBS, {"zero": zero, "target": target}).fetchall()
        scene.jobs = [
            Done(
                id=id_,
                user=user,
                cost=cost,
                worker=worker,
                created=created,
                started=started,
                completed=completed,
                again=bool(again),
            )
            for id_, user, cost, worker, created, started, completed, again in rows
        ]
        for task in self._inserts:
            task.cancel()
        await asyncio.gather(*self._inserts, return_exceptions=True)
        self._db.execute("vacuum analyze public.jobs, private.leases")

    def insert(self, one: Order, target: str) -> asyncio.Task[None]:
        task = asyncio.create_task(self._insert(one, target))
        self._inserts.add(task)
        task.add_done_callback(self._inserts.discard)
        return task

    async def arrive(self, target: str, a_second: float, seconds: float) -> None:
        """Jobs at random moments, of the crowd: the n-th user asks for 1/n of what the first does."""
        weights = [1 / (10 + place) for place in range(len(self.crowd))]
        due, end = time.perf_counter(), time.perf_counter() + seconds
        while True:
            due += self.chance.expovariate(a_second)
            if due > end:
                await asyncio.sleep(max(0.0, end - time.perf_counter()))
                return
            if (pause := due - time.perf_counter()) > 0:
                await asyncio.sleep(pause)
            self.insert(order(self.chance.choices(self.crowd, weights)[0], self.chance), target)

    def count(self, condition: str, *values: Any) -> int:
        return int(self._value(f"select count(*) from public.jobs join private.leases on job_id = id where {condition}", *values))

    async def until(self, condition: str, *values: Any, seconds: float) -> None:
        """Looks five times a second until no job fulfils the condition."""
        begun = time.perf_counter()
        while await asyncio.to_thread(self.count, condition, *values) and time.perf_counter() - begun < seconds:
            await asyncio.sleep(0.2)

    def _value(self, query: str, *values: Any) -> Any:
        row = self._db.execute(query.encode(), values).fetchone()
        assert row
        return row[0]

    async def _insert(self, one: Order, target: str) -> None:
        values = ", ".join(map(literal, (one.job_type, one.batch_size, "a lighthouse on a cliff above a stormy sea", target)))
        statement = f"insert into public.jobs (job_type, batch_size, prompt, target_worker) values ({values}) returning id"
        with suppress(Refused):  # counted there
            await self.rest.run("insert", as_user(one.user), statement)


# ---- the scenes


async def steady(stage: Stage, workers: int) -> Scene:
    """Jobs come as fast as four fifths of the GPUs can paint."""
    plan, target = stage.plan, f"steady-{workers}"

    def rate(fleet: Fleet) -> float:
        return 0.8 * fleet.capacity / MEAN_COST

    async with stage.scene(
        f"{workers:,} workers", target, RTX, workers, lambda fleet: stage.arrive(target, rate(fleet), plan.warm_up_seconds)
    ) as scene:
        await stage.arrive(target, rate(scene.fleet), plan.seconds)
    scene.more["jobs asked for"] = rate(scene.fleet), "1/s"
    return scene


async def burst(stage: Stage) -> Scene:
    """All at once, into an idle fleet."""
    plan, target, workers = stage.plan, "burst", max(stage.plan.sizes)
    owners = zipf(stage.crowd, plan.burst, stage.chance)

    async with stage.scene(f"burst of {plan.burst:,}", target, RTX, workers, lambda _: asyncio.sleep(2)) as scene:
        begun, inserts = time.perf_counter(), []
        for number, owner in enumerate(owners):
            inserts.append(stage.insert(order(owner, stage.chance), target))
            await asyncio.sleep(max(0.0, begun + plan.burst_seconds * number / len(owners) - time.perf_counter()))
        await asyncio.gather(*inserts)
        scene.more["until the last insert was answered"] = time.perf_counter() - begun, "s"
        await asyncio.sleep(plan.seconds)
    return scene


async def backlog(stage: Stage, light: Sequence[str]) -> Scene:
    """Everybody has jobs waiting, and now and then comes somebody who asks for one picture; then a tenth of the workers die."""
    plan, workers = stage.plan, max(stage.plan.sizes)
    comers = list(light)

    async def come(seconds: float) -> None:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end and comers:
            stage.insert(Order(user=comers.pop(), job_type="sdxl_image_high", batch_size=1), BACKLOG)
            await asyncio.sleep(seconds / (len(light) / 2))

    async with stage.scene(f"{plan.waiting:,} waiting", BACKLOG, RTX, workers) as scene:
        await come(plan.seconds)
        dead, begun = await scene.fleet.lose(0.1), time.perf_counter()
        held = stage.count("state = 'held' and worker = any (%s)", dead)
        await come(plan.seconds)
        await stage.until("state = 'held' and worker = any (%s)", dead, seconds=3 * plan.lease_seconds)
        reaped = time.perf_counter() - begun
        await stage.until(
            "jobs.target_worker = %s and status = 'queued' and error_code = 'lease_expired'", BACKLOG, seconds=plan.lease_seconds
        )
        scene.more |= {
            "jobs of dead workers": (held, ""),
            "from their death until the last is queued again": (reaped, "s"),
            "from their death until the last is claimed again": (time.perf_counter() - begun, "s"),
        }
    lucky = set(light)
    waits = [job.started - job.created for job in scene.jobs if job.user in lucky and job.started is not None]
    fair = [share for user, share in scene.users().items() if user in lucky]
    scene.more |= {
        "jobs of light users": (len(waits), ""),
        "a light user's wait for a worker, longest": (max(waits, default=0), "s"),
        "a light user beside the fair share, unluckiest": (max(fair, default=0), "times"),
    }
    return scene


async def herd(stage: Stage) -> Scene:
    """Everybody is idle, and one job comes."""
    target, workers = "herd", max(stage.plan.sizes)
    async with stage.scene("herd", target, RTX, workers, lambda _: asyncio.sleep(2)) as scene:
        for _ in range(stage.plan.herds):
            await stage.insert(Order(user=stage.crowd[0], job_type="sdxl_image_fast", batch_size=1), target)
            await asyncio.sleep(1.5)
    return scene


async def saturated(stage: Stage) -> Scene:
    """GPUs so fast that Postgres is what they wait for."""
    async with stage.scene("as fast as it goes", BACKLOG, H100, max(stage.plan.sizes), lambda _: asyncio.sleep(3)) as scene:
        await asyncio.sleep(stage.plan.seconds)
    return scene


async def play(supabase: EmbeddedSupabase, plan: Plan) -> dict[str, Scene]:
    """All scenes, by a short name."""
    with psycopg.connect(supabase.db_url, autocommit=True) as db:
        crowd, light = users(db, "crowd", plan.users), users(db, "light", 100)
        chance = random.Random(SEED)
        print(f"{plan.finished:,} finished rows, {plan.waiting:,} waiting ...", flush=True)
        finished(db, plan.finished)
        waiting(db, [order(user, chance) for user in zipf(crowd, plan.waiting, chance)])
        settle(db)
        scenes = {}
        async with Rest(supabase.db_url, plan.connections) as rest:
            stage = Stage(supabase, db, rest, plan, crowd)
            for size in plan.sizes:
                scenes[f"steady {size}"] = await steady(stage, size)
            scenes["herd"] = await herd(stage)
            scenes["burst"] = await burst(stage)
            scenes["backlog"] = await backlog(stage, light)
            scenes["saturated"] = await saturated(stage)
    return scenes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--connections", type=int, default=Plan.connections)
    parser.add_argument("--out", type=Path, default=FOLDER)
    options = parser.parse_args()
    logging.disable()  # the Realtime client's
    plan = Plan(connections=options.connections)
    with scratch_supabase() as supabase:
        scenes = asyncio.run(play(supabase, plan if options.scale == 1 else plan.scaled(options.scale)))
    write(scenes, options.out)


def write(scenes: dict[str, Scene], folder: Path) -> None:
    """The figures, and behind them what the plots need."""
    figures = [one for key, scene in scenes.items() for one in scene_figures(scene, fair=key != "saturated")]
    write_results("fleet", figures, packages=["psycopg"], folder=folder)
    path = folder / "fleet.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"series": series(scenes)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
