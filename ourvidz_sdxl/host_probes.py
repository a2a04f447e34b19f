"""What the supervisor answers for its host: it asks each worker, and adds what only it can know."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from ourvidz_sdxl.probes import Answers
from ourvidz_sdxl.queue_figures import QueueFigures

DEATHS = ("died", "silent", "gpu_hung")
ASK_SECONDS = 2.0  # a worker that takes longer counts as one that does not answer
STILL_SECONDS = 10.0  # the supervisor's loop comes round once a second
NO_ANSWER: dict[str, Any] = {"ok": False, "problems": ["does not answer: it is starting, or dead and about to be started again"]}


@dataclass(kw_only=True)
class Place:
    """One GPU of this host, numbered from 0. Its worker answers at `listener`, which outlives the worker."""

    gpu: str
    listener: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)), repr=False)
    alive: bool = False

    def fetch(self, path: str) -> str | None:
        """What the worker answers, whatever the status; None where nobody does."""
        if not self.alive:
            return None
        try:
            return httpx.get(f"http://127.0.0.1:{self.listener.getsockname()[1]}{path}", timeout=ASK_SECONDS, trust_env=False).text
        except httpx.HTTPError:
            return None


class HostProbes:
    """`beat` is called from the supervisor's loop; the rest from the probe server's threads."""

    def __init__(
        self, places: Sequence[Place], queue: QueueFigures | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._places = places
        self._clock = clock
        self._beat_at = clock()
        self._registry = CollectorRegistry()
        if queue:
            self._registry.register(queue)
        self._alive = Gauge("sdxl_worker_up", "1 while the GPU has a worker process, else 0.", ["gpu"], registry=self._registry)
        self._deaths = Counter(
            "sdxl_worker_deaths",
            "Worker processes that died, or were killed since they hung.",
            ["gpu", "reason"],
            registry=self._registry,
        )
        for place in places:
            for reason in DEATHS:  # a counter that begins at 1 does not look like one that grew
                self._deaths.labels(place.gpu, reason)
        self.answers = Answers(health=self._health, ready=self._ready, metrics=self._metrics)

    def beat(self) -> None:
        self._beat_at = self._clock()

    def died(self, gpu: str, reason: str) -> None:
        self._deaths.labels(gpu, reason).inc()

    def _health(self) -> tuple[list[str], dict[str, Any]]:
        """A worker that is loading, or dead and about to be started again, is the supervisor's affair. What nobody mends counts."""
        still = self._clock() - self._beat_at
        problems = [f"the supervisor's loop has stood still for {still:.0f} s"] if still > STILL_SECONDS else []
        workers = self._ask_all("/health")
        problems += [f"GPU {gpu}: {problem}" for gpu, told in workers.items() if told for problem in told.get("problems", ())]
        return problems, {"workers": {gpu: told or NO_ANSWER for gpu, told in workers.items()}}

    def _ready(self) -> tuple[list[str], dict[str, Any]]:
        """Ready is a host on which any GPU takes jobs."""
        workers = {gpu: told or NO_ANSWER for gpu, told in self._ask_all("/ready").items()}
        problems = [f"GPU {gpu}: {problem}" for gpu, told in workers.items() for problem in told["problems"]]
        takes_jobs = any(told["ok"] for told in workers.values())
        return [] if takes_jobs else problems or ["no worker is left"], {"workers": workers}

    def _metrics(self) -> str:
        for place in self._places:
            self._alive.labels(place.gpu).set(place.alive)
        registry = CollectorRegistry()
        registry.register(Merged({gpu: text for gpu, text in self._fetch_all("/metrics").items() if text}))
        return (generate_latest(self._registry) + generate_latest(registry)).decode()

    def _ask_all(self, path: str) -> dict[str, Any]:
        return {gpu: json.loads(text) if text else None for gpu, text in self._fetch_all(path).items()}

    def _fetch_all(self, path: str) -> dict[str, str | None]:
        with ThreadPoolExecutor(max(1, len(self._places))) as pool:
            texts = pool.map(lambda place: place.fetch(path), self._places)
            return dict(zip((place.gpu for place in self._places), texts, strict=True))


class Merged:
    """The figures of all workers as those of one host: each sample with the number of its GPU."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for gpu, text in self._texts.items():
            for family in text_string_to_metric_families(text):
                merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                merged.samples += [sample._replace(labels={"gpu": gpu, **sample.labels}) for sample in family.samples]
        yield from families.values()
