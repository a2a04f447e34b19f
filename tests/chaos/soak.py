"""`make soak`: workers at the full rate that the stack allows, for ten minutes, and nothing of them may grow.

    python -m tests.chaos.soak [--minutes 10] [--workers 2] [--write-results]

The engine is the stub without step time, so that everything around the painting turns as often as it can. Ends with 1 where memory,
connections, open files or threads grow, or where an object is left that no row names.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from benchmarks.results_file import write_results
from ourvidz_sdxl.local import ROOT, EmbeddedSupabase, embedded_supabase
from tests.chaos.harness import count_orphans
from tests.chaos.pods import Pod
from tests.chaos.users import Visitor
from tests.chaos.witness import Look
from tests.processes import environ, scratch_folder

SAMPLE_SECONDS = 2.0
WARM_SECONDS = 60.0  # memory counts from here on; in a short run from two fifths of it
WINDOW = 15  # samples whose median is compared
MAX_GROWTH = 0.05
QUEUE_LENGTH = 120  # waiting jobs, so that no worker ever waits
USERS = 10
SETTLE_SECONDS = 60.0
SQL_CONNECTIONS = "select count(*) as n from pg_stat_activity where backend_type = 'client backend'"


@dataclass(frozen=True, kw_only=True)
class Sample:
    at_seconds: float
    rss_kib: int
    files: int
    sockets: int
    threads: int


@dataclass(frozen=True, kw_only=True)
class Trend:
    """One figure of one process: the medians of the first and the last window after the warm-up, and the most ever seen then."""

    who: str
    what: str
    begin: float
    end: float
    most: float
    may_grow_by: float

    @property
    def is_flat(self) -> bool:
        return self.end - self.begin <= self.may_grow_by


def sample(pid: int, at_seconds: float) -> Sample:
    """As Linux counts it. Raises OSError when the process is gone."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    links = [link_of(file) for file in Path(f"/proc/{pid}/fd").iterdir()]
    return Sample(
        at_seconds=at_seconds,
        rss_kib=int(status["VmRSS"].split()[0]),
        files=len(links),
        sockets=sum(link.startswith("socket:") for link in links),
        threads=int(status["Threads"]),
    )


def link_of(file: Path) -> str:
    try:
        return str(file.readlink())
    except FileNotFoundError:
        return "closed meanwhile"


def trends(who: str, samples: Sequence[Sample], warm_seconds: float) -> Iterator[Trend]:
    warm = [one for one in samples if one.at_seconds >= warm_seconds]
    window = max(1, min(WINDOW, len(warm) // 3))
    # a job's threads and connections come and go: as many as two jobs more is no leak
    allowed: dict[str, Callable[[float], float]] = {
        "rss_kib": lambda begin: MAX_GROWTH * begin,
        "files": lambda _: 4,
        "sockets": lambda _: 4,
        "threads": lambda _: 4,
    }
    for what, may_grow in allowed.items():
        values = [float(getattr(one, what)) for one in warm]
        begin, end = statistics.median(values[:window]), statistics.median(values[-window:])
        yield Trend(who=who, what=what, begin=begin, end=end, most=max(values), may_grow_by=may_grow(begin))


def feed(supabase: EmbeddedSupabase, look: Look, over: threading.Event) -> None:
    """Users who see to it that there is always work."""
    visitors = cycle([Visitor(supabase) for _ in range(USERS)])
    number = 0
    while not over.is_set():
        waiting = look("select count(*) as n from public.jobs where status = 'queued'")[0]["n"]
        if waiting >= QUEUE_LENGTH:
            over.wait(0.1)
            continue
        rows = [
            {"job_type": ("sdxl_image_fast", "sdxl_image_high")[(number + i) % 2], "prompt": "x", "batch_size": (1, 1, 1, 3)[i % 4]}
            for i in range(20)
        ]
        number += 1
        next(visitors).client.table("jobs").insert(rows).execute()


def soak(seconds: float, workers: int, say: Callable[[str], None]) -> tuple[list[Trend], dict[str, float]]:
    """The trends of each process and of Postgres, and figures of the whole run."""
    logs = ROOT / ".local" / "soak"
    logs.mkdir(parents=True, exist_ok=True)
    warm_seconds = min(WARM_SECONDS, seconds * 0.4)
    with ExitStack() as stack:
        supabase = stack.enter_context(embedded_supabase(data_dir=stack.enter_context(scratch_folder())))
        look = Look(supabase)
        stack.callback(look.close)
        pods = [stack.enter_context(Pod(f"pod-{i}", environ(supabase), logs / f"pod-{i}.log")) for i in range(workers)]
        for pod in pods:
            pod.wait_for("worker_ready")
        over = threading.Event()
        stack.callback(over.set)
        feeder = threading.Thread(target=feed, args=(supabase, Look(supabase), over), daemon=True)
        feeder.start()
        pids = {f"worker {i}": pod.child or 0 for i, pod in enumerate(pods)}
        pids |= {f"supervisor {i}": pod.process.pid for i, pod in enumerate(pods)}
        samples: dict[str, list[Sample]] = {who: [] for who in pids}
        connections: list[tuple[float, float]] = []
        began = time.monotonic()
        told = 0
        while (at := time.monotonic() - began) < seconds:
            assert feeder.is_alive(), "nobody asks for jobs any more"
            for who, pid in pids.items():
                samples[who].append(sample(pid, at))
            connections.append((at, look(SQL_CONNECTIONS)[0]["n"]))
            if at >= told:
                done = look("select count(*) as n from public.jobs where completed_at is not null")[0]["n"]
                memory = ", ".join(f"{who} {samples[who][-1].rss_kib / 1024:.1f} MiB" for who in pids)
                say(f"{at:5.0f} s  {done:6} jobs  {memory}  {connections[-1][1]} connections to Postgres")
                told += 30
            time.sleep(SAMPLE_SECONDS)
        done = look("select count(*) as n from public.jobs where completed_at is not null")[0]["n"]
        over.set()
        feeder.join()
        deadline = time.monotonic() + SETTLE_SECONDS
        while look("select count(*) as n from public.jobs where completed_at is null")[0]["n"] and time.monotonic() < deadline:
            time.sleep(0.3)
        figures: dict[str, float] = {
            "jobs": done,
            "jobs_per_second": round(done / seconds, 1),
            "jobs_not_completed": look("select count(*) as n from public.jobs where status <> 'completed'")[0]["n"],
            "orphaned_objects": count_orphans(look),
            "workers_died": sum(one.event["event"] == "worker_died" for pod in pods for one in pod.said),
        }
    found = [trend for who in pids for trend in trends(who, samples[who], warm_seconds)]
    values = [n for at, n in connections if at >= warm_seconds]
    window = max(1, min(WINDOW, len(values) // 3))
    begin, end = statistics.median(values[:window]), statistics.median(values[-window:])
    found.append(Trend(who="Postgres", what="connections", begin=begin, end=end, most=max(values), may_grow_by=4))
    return found, figures


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--write-results", action="store_true", help="write benchmarks/results/soak.json")
    options = parser.parse_args()
    found, figures = soak(options.minutes * 60, options.workers, lambda line: print(line, flush=True))  # noqa: T201
    lines = [f"{'':14}{'':13}{'after warm-up':>14}{'at the end':>12}{'most':>10}{'growth':>9}"]
    for trend in found:
        growth = (trend.end - trend.begin) / trend.begin if trend.begin else 0.0
        numbers = f"{trend.begin:14.0f}{trend.end:12.0f}{trend.most:10.0f}{growth:9.1%}"
        lines.append(f"{trend.who:14}{trend.what:13}{numbers}  {'ok' if trend.is_flat else 'GROWS'}")
    lines += [f"{name:27}{value:>14}" for name, value in figures.items()]
    print("\n".join(lines))  # noqa: T201
    if options.write_results:
        memory = [trend for trend in found if trend.what == "rss_kib" and trend.who.startswith("worker")]
        growth = max(100 * (trend.end - trend.begin) / trend.begin for trend in memory)
        entries = [
            ("memory of a worker, growth", "%", round(growth, 2), 100 * MAX_GROWTH, "lower"),
            ("figures that grow", "figures", sum(not trend.is_flat for trend in found), 0, "lower"),
            ("orphaned objects", "objects", figures["orphaned_objects"], 0, "lower"),
            ("jobs", "jobs", figures["jobs"], None, "higher"),
            ("rate", "jobs/s", figures["jobs_per_second"], None, "higher"),
        ]
        write_results(
            "soak",
            [
                {"name": name, "unit": unit, "ours": ours, "peer": None, "peer_name": None, "bar": bar, "better": better}
                for name, unit, ours, bar, better in entries
            ],
            packages=["supabase", "realtime", "httpx"],
        )
    clean = all(trend.is_flat for trend in found)
    return 0 if clean and not (figures["jobs_not_completed"] or figures["orphaned_objects"] or figures["workers_died"]) else 1


if __name__ == "__main__":
    sys.exit(main())
