"""How much of the time the GPU paints while jobs wait: the whole worker, with a real engine, before a Supabase that takes its time.

    python -m benchmarks.overlap [--checkpoint X.safetensors] [--jobs 50] [--upload-ms 200] [--out DIR]

Busy is what the same paintings take back to back, with their prompts encoded (the median, times the jobs), as a share of the time
from the first painting's begin to the last one's end. The peer is the same worker, doing one job after the other. Without a
checkpoint the bundled model paints; without a GPU one core of the CPU does.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen
from uuid import uuid4

import structlog
import torch

from benchmarks.results_file import FOLDER, write_results
from ourvidz_sdxl.engine import load_engine
from ourvidz_sdxl.exit_code import ExitCode
from ourvidz_sdxl.job import Job
from ourvidz_sdxl.loop import Worker
from ourvidz_sdxl.process import prepare, process
from ourvidz_sdxl.settings import Settings

ROOT = Path(__file__).parents[1]
ALONE = 10  # paintings back to back, and jobs one after the other
PEER = "one job after the other"
JOB_TYPES = {"sdxl_image_high": "25 steps", "sdxl_image_fast": "15 steps"}
LOOK_SECONDS = 0.05


class Supabase:
    """The fake one, in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout
        self._lines = process.stdout
        self.url = self._lines.readline().strip()

    def hand_out(self, rows: list[dict[str, Any]]) -> None:
        urlopen(Request(f"{self.url}/jobs", json.dumps(rows).encode())).close()

    def next_end(self) -> str:
        return self._lines.readline().strip()


@contextmanager
def fake_supabase(upload_ms: float) -> Iterator[Supabase]:
    command = [sys.executable, "-m", "benchmarks.fake_supabase", "--upload-ms", str(upload_ms)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        try:
            yield Supabase(process)
        finally:
            process.stdin.close()  # first of all: it ends then, and with it whoever still reads


class Paintings:
    """When the engine painted: (begin, end) on the performance counter, from when `engine` was given."""

    def __init__(self, engine: Any) -> None:
        self.times: list[tuple[float, float]] = []
        paint = engine.paint

        def timed(*arguments: Any, **options: Any) -> Any:
            begin = time.perf_counter()
            images = paint(*arguments, **options)
            self.times.append((begin, time.perf_counter()))
            return images

        engine.paint = timed

    def taken(self) -> list[tuple[float, float]]:
        taken, self.times = self.times, []
        return taken


@contextmanager
def utilisation(gpu: str | None) -> Iterator[list[tuple[float, int]]]:
    """(time, percent) as the driver counts it: the share of its last period in which a kernel ran. Empty without a GPU."""
    samples: list[tuple[float, int]] = []
    if gpu is None:
        yield samples
        return
    import pynvml  # type: ignore[import-untyped]

    pynvml.nvmlInit()
    handle, over = pynvml.nvmlDeviceGetHandleByIndex(0), threading.Event()

    def look() -> None:
        while not over.wait(LOOK_SECONDS):
            samples.append((time.perf_counter(), pynvml.nvmlDeviceGetUtilizationRates(handle).gpu))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()


def rows(job_type: str, count: int) -> list[dict[str, Any]]:
    """Jobs whose prompts no job had before."""
    words = "a photograph of a red fox that crosses a frozen river at dawn, soft light, number"
    return [
        {"id": str(uuid4()), "user_id": str(uuid4()), "claims": 1, "attempts": 1, "job_type": job_type, "seed": seed}
        | {"prompt": f"{words} {uuid4().hex[:6]}"}
        for seed in range(count)
    ]


def back_to_back(worker: Worker, job_type: str) -> None:
    """Paints alone, with everything ready. The first is a warm-up."""
    engine = worker._tools.engine
    plans = [prepare(Job.from_row(row), worker._tools).plan for row in rows(job_type, ALONE + 1)]
    for plan in plans:
        engine.encode_prompts(plan)
    for plan in plans:
        engine.paint(plan, None, lambda _done, _total: None)


def overlapped(worker: Worker, supabase: Supabase, jobs: list[dict[str, Any]]) -> None:
    supabase.hand_out(jobs)
    ends: list[str] = []

    def follow() -> None:
        ends.extend(supabase.next_end() for _ in jobs)
        worker.stop()

    threading.Thread(target=follow, daemon=True).start()
    assert worker.run() is ExitCode.DRAINED
    assert ends == ["completed"] * len(jobs), ends


def one_by_one(worker: Worker, supabase: Supabase, jobs: list[dict[str, Any]]) -> None:
    supabase.hand_out(jobs)
    for _ in jobs:
        claimed, _ = worker._queue.claim()
        assert claimed
        process(claimed, worker._tools)
        assert supabase.next_end() == "completed"


def summary(times: list[tuple[float, float]], alone_seconds: float) -> dict[str, float]:
    wall = times[-1][1] - times[0][0]
    gaps = [later[0] - earlier[1] for earlier, later in pairwise(times)]
    return {
        "busy": 100 * alone_seconds * len(times) / wall,
        "gap": 1000 * statistics.median(gaps),
        "painting": statistics.median(end - begin for begin, end in times),
        "jobs an hour": 3600 * len(times) / wall,
    }


def measure(engine: Any, paintings: Paintings, settings: Settings, supabase: Supabase, job_type: str, jobs: int) -> dict[str, Any]:
    back_to_back(Worker(settings, engine, None, None), job_type)
    alone_seconds = statistics.median(end - begin for begin, end in paintings.taken()[1:])
    with utilisation(engine.gpu) as samples:
        overlapped(Worker(settings, engine, None, None), supabase, rows(job_type, jobs))
    times = paintings.taken()
    counted = [percent for at, percent in samples if times[0][0] <= at <= times[-1][1]]
    one_by_one(Worker(settings, engine, None, None), supabase, rows(job_type, min(jobs, ALONE)))
    return {
        "alone": alone_seconds,
        "ours": summary(times, alone_seconds),
        "peer": summary(paintings.taken(), alone_seconds),
        "driver": statistics.mean(counted) if counted else None,
    }


def figures(found: dict[str, Any], steps: str, jobs: int, upload_ms: float) -> Iterator[dict[str, Any]]:
    ours, peer = found["ours"], found["peer"]
    lines: list[tuple[str, str, float | None, float | None, float | None, str]] = [
        (f"GPU busy with {jobs} waiting jobs and {upload_ms:g} ms uploads", "%", ours["busy"], peer["busy"], 95, "higher"),
        ("GPU busy as the driver counts it", "%", found["driver"], None, None, "higher"),
        ("between two paintings", "ms", ours["gap"], peer["gap"], None, "lower"),
        ("a painting, alone", "s", found["alone"], None, None, "lower"),
        ("a painting, among other jobs", "s", ours["painting"], peer["painting"], None, "lower"),
        ("jobs an hour", "1/h", ours["jobs an hour"], peer["jobs an hour"], None, "higher"),
    ]
    for name, unit, value, other, bar, better in lines:
        if value is not None:
            yield {"name": f"{name}, {steps}", "unit": unit, "ours": round(value, 3)} | {
                "peer": None if other is None else round(other, 3),
                "peer_name": None if other is None else PEER,
                "bar": bar,
                "better": better,
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "models" / "tiny-sdxl")
    parser.add_argument("--jobs", type=int, default=50)
    parser.add_argument("--upload-ms", type=float, default=200)
    parser.add_argument("--out", type=Path, default=FOLDER)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    if not torch.cuda.is_available():
        torch.set_num_threads(1)  # OpenMP's threads spin for every core, and the other lanes need one
    engine: Any = load_engine(options.checkpoint)
    paintings = Paintings(engine)
    results: list[dict[str, Any]] = []
    with fake_supabase(options.upload_ms) as supabase:
        settings = Settings.from_env({"SUPABASE_URL": supabase.url, "SUPABASE_SERVICE_ROLE_KEY": "sb_secret_none"})
        for job_type, steps in JOB_TYPES.items():
            found = measure(engine, paintings, settings, supabase, job_type, options.jobs)
            results += figures(found, steps, options.jobs, options.upload_ms)
    write_results("overlap", results, packages=["torch", "diffusers", "supabase"], gpu=engine.gpu, folder=options.out)


if __name__ == "__main__":
    main()
