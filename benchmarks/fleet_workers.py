"""A fleet without GPUs: its workers claim, renew, report and finish as ourvidz_sdxl.loop does, and sleep where that would paint."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID, uuid4

from realtime import AsyncRealtimeClient
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay

from benchmarks.fleet_fill import Order
from benchmarks.fleet_rest import Refused, Rest
from ourvidz_sdxl.connection import PAUSE
from ourvidz_sdxl.local import EmbeddedSupabase
from ourvidz_sdxl.settings import Settings
from ourvidz_sdxl.wakeup import PRIVATE, SECOND_LOOK_SECONDS, SHARDS

TIMER_SECONDS = 30.0  # POLL_INTERVAL_CONNECTED_SECONDS
PREFETCH_SECONDS = float(Settings.model_fields["prefetch_seconds"].default)
LANES = 2  # MAX_CONCURRENT_JOBS: one is painted, one is ready
UPLOAD_SECONDS = 0.2  # as benchmarks/overlap.py has it
JOB_TYPES = ["sdxl_image_fast", "sdxl_image_high"]


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """How long a unit of cost takes: an image of 1024 x 1024 in 25 steps."""

    name: str
    fastest_seconds: float
    slowest_seconds: float

    def draw(self, chance: random.Random) -> float:
        return chance.uniform(self.fastest_seconds, self.slowest_seconds)


H100 = Gpu(name="H100", fastest_seconds=0.67, slowest_seconds=0.75)  # measured: benchmarks/results/gpu.json
RTX = Gpu(name="RTX", fastest_seconds=3.0, slowest_seconds=8.0)  # not measured: what such cards take with the plain engine


class Worker:
    """One process with its GPU. `run` claims until it is cancelled; what it holds is then left to its lease."""

    def __init__(
        self, name: str, target: str, rest: Rest, seconds_per_unit: float, lease_seconds: int, chance: random.Random
    ) -> None:
        self.seconds_per_unit = seconds_per_unit
        self.name = name
        self._target = target
        self._rest = rest
        self._lease_seconds = lease_seconds
        self.shard = chance.randrange(SHARDS)
        self._beat_seconds = lease_seconds / 4  # reports come as often
        self._chance = chance
        self._gpu = asyncio.Lock()
        self._hint = asyncio.Event()
        self._woken = False
        self._in_lanes = 0
        self._painted_at = 0.0
        self._idle_at = time.perf_counter()
        self._jobs: set[asyncio.Task[None]] = set()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def busy(self) -> bool:
        return self._in_lanes > 0

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._run()), asyncio.create_task(self._keep_house())]

    def stop(self) -> list[asyncio.Task[None]]:
        """As SIGKILL: at once, and without a word."""
        tasks = [*self._tasks, *self._jobs]
        for task in tasks:
            task.cancel()
        return tasks

    def wake(self) -> None:
        """A worker without room has no use for it."""
        if self._has_room():
            self._woken = True
            self._hint.set()

    def _has_room(self) -> bool:
        return not self._in_lanes or (self._in_lanes < LANES and self._painted_at - time.perf_counter() <= PREFETCH_SECONDS)

    async def _run(self) -> None:
        look_again = False
        while True:
            at_the_latest = await self._claim_what_fits()
            timer = SECOND_LOOK_SECONDS if look_again else TIMER_SECONDS * self._chance.uniform(0.97, 1)
            try:
                async with asyncio.timeout(timer if at_the_latest is None else min(timer, at_the_latest)):
                    await self._hint.wait()
            except TimeoutError:
                pass
            self._hint.clear()
            look_again, self._woken = self._woken, False

    async def _claim_what_fits(self) -> float | None:
        while self._has_room():
            token = uuid4()
            try:
                answer = await self._rest.rpc("claim_jobs", self.name, self._target, JOB_TYPES, token, 1, self._lease_seconds)
            except Refused:
                return 2.0
            if not answer["jobs"]:
                if answer["more"]:
                    return 0.05
                return None if answer["next_run_in_ms"] is None else answer["next_run_in_ms"] / 1000
            row = answer["jobs"][0]
            cost = Order(user=row["user_id"], job_type=row["job_type"], batch_size=row["batch_size"]).cost
            seconds = cost * self.seconds_per_unit * self._chance.gauss(1, 0.03)
            if self._in_lanes == 0:
                self._painted_at = time.perf_counter() + seconds
            self._in_lanes += 1
            task = asyncio.create_task(self._do(row, token, seconds))
            self._jobs.add(task)
            task.add_done_callback(self._jobs.discard)
        return None

    async def _do(self, row: dict[str, Any], token: object, seconds: float) -> None:
        beats = asyncio.create_task(self._renew(row["id"], token))
        try:
            async with self._gpu:
                self._painted_at = time.perf_counter() + seconds
                await asyncio.sleep(max(0.0, seconds - PREFETCH_SECONDS))
                self._hint.set()
                await asyncio.sleep(min(seconds, PREFETCH_SECONDS))
            self._in_lanes -= 1
            self._hint.set()
            await asyncio.sleep(UPLOAD_SECONDS)
            images = [image(row, index) for index in range(row["batch_size"])]
            metrics = {"generation_time": 1.0, "vram_usage": 9000, "i2i_mode": "text", "steps": 25}
            retrying = AsyncRetrying(
                retry=retry_if_exception_type(Refused), wait=PAUSE, stop=stop_after_delay(self._lease_seconds), reraise=True
            )
            await retrying(self._rest.rpc, "finish_job", row["id"], token, "completed", images, None, metrics)
        except Refused:
            pass  # counted there; the lease ends
        finally:
            beats.cancel()
            self._idle_at = time.perf_counter()

    async def _renew(self, job: str, token: object) -> None:
        while True:
            await asyncio.sleep(self._beat_seconds)
            try:
                await self._rest.rpc("heartbeat_jobs", [UUID(job)], token, self._lease_seconds)
            except Refused:
                continue

    async def _keep_house(self) -> None:
        pause = self._chance.uniform(0, self._beat_seconds)  # a fleet did not start in one moment
        facts = {
            "target_worker": self._target,
            "host": "h",
            "gpu": "simulated",
            "version": "1",
            "report_seconds": self._beat_seconds,
            "max_jobs": LANES,
        }
        while True:
            try:
                idle = 0.0 if self._jobs else time.perf_counter() - self._idle_at
                await self._rest.rpc("report_worker", self.name, "ready", facts | {"idle_seconds": idle})
                await self._rest.rpc("sweep_orphans")
                await self._rest.rpc("retire_jobs")
            except Refused:
                pass
            await asyncio.sleep(pause)
            pause = self._beat_seconds


def image(row: dict[str, Any], index: int) -> dict[str, Any]:
    path = f"{row['user_id']}/{row['id']}/{row['claims']}-{index}"
    names = {"path": f"{path}.png", "thumbnail_path": f"{path}.thumb.webp", "mime_type": "image/png", "sha256": "0" * 64}
    return {"index": index, "bucket": row["job_type"], "seed": 7, "width": 1024, "height": 1024, "bytes": 1_400_000} | names


class Fleet:
    """Workers that hear one subscription to Realtime, which stands for one each."""

    def __init__(
        self,
        supabase: EmbeddedSupabase,
        target: str,
        rest: Rest,
        gpus: Iterable[Gpu],
        *,
        lease_seconds: int,
        seed: int,
    ) -> None:
        chance = random.Random(seed)
        self.target = target
        self.workers = [
            Worker(f"{target}-{number}", target, rest, gpu.draw(chance), lease_seconds, random.Random(seed + number))
            for number, gpu in enumerate(gpus)
        ]
        self._supabase = supabase
        self.wakes = 0
        self.everybody = tuple(self.workers)  # the dead ones, too

    @property
    def capacity(self) -> float:
        """Units of cost a second, with every GPU busy."""
        return sum(1 / worker.seconds_per_unit for worker in self.workers)

    @property
    def painting(self) -> int:
        return sum(worker.busy for worker in self.workers)

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[Fleet]:
        client = AsyncRealtimeClient(
            f"{self._supabase.url}/realtime/v1", token=self._supabase.secret_key, auto_reconnect=False, max_retries=1
        )
        for topic, listeners in self.listeners().items():
            channel = client.channel(topic, PRIVATE)
            channel.on_broadcast("wake", partial(self._woken, listeners))
            await channel.subscribe()
        for worker in self.workers:
            worker.start()
        try:
            yield self
        finally:
            await ended(self.workers)
            await client.close()

    def listeners(self) -> dict[str, list[Worker]]:
        """Who hears what is said on each topic."""
        topics = {f"worker:{self.target}": list(self.workers)}
        for worker in self.workers:
            topics.setdefault(f"worker:{self.target}:{worker.shard}", []).append(worker)
        return topics

    def _woken(self, listeners: Iterable[Worker], _message: object) -> None:
        self.wakes += 1
        for worker in listeners:
            worker.wake()

    async def lose(self, share: float) -> list[str]:
        """Kills so many of the workers; returns their names."""
        dying = self.workers[: round(share * len(self.workers))]
        await ended(dying)
        self.workers = self.workers[len(dying) :]
        return [worker.name for worker in dying]


async def ended(workers: Iterable[Worker]) -> None:
    await asyncio.gather(*(task for worker in workers for task in worker.stop()), return_exceptions=True)
