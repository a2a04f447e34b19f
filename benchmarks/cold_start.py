"""From the start of a process to a model that is ready, and to the first image: the first start ever, a later one, and diffusers.

    python -m benchmarks.cold_start --checkpoint X.safetensors [--out DIR]

Each start is a new process; the weights come from the disk, since the system is asked to forget them before. The first start
compiles every kernel and converts the weights; it runs on a link to the checkpoint in an empty folder. The peer does not compile:
with torch.compile it would first take another 190 s (an H100, torch 2.11, diffusers 0.42.1).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.results_file import FOLDER, write_results

PEER = "diffusers, eager"
ROUNDS = 3


def child(checkpoint: Path, kind: str, started: float) -> None:
    """What a worker does before its first claim, and one job of the default kind. Prints seconds since `started`."""
    from ourvidz_sdxl.engine import FastOptions, load_engine

    engine = load_engine(checkpoint, "fast" if kind == "fast" else "reference", options=FastOptions(keep_weights=True))
    ready = time.time() - started

    from benchmarks.gpu import plan  # imports what only a benchmark needs

    beginning = time.time()
    engine.paint(plan(), None, lambda _done, _total: None)
    painted = time.time() - beginning
    print(json.dumps({"ready": ready, "first image": ready + painted, "gpu": engine.gpu}), flush=True)
    deadline = time.monotonic() + 120
    while kind == "fast" and not kept(checkpoint) and time.monotonic() < deadline:
        time.sleep(0.1)


def kept(checkpoint: Path) -> list[Path]:
    return [*checkpoint.parent.glob("*.runtime")]


def start(checkpoint: Path, kind: str) -> dict[str, Any]:
    forget([checkpoint.resolve(), *kept(checkpoint)])
    command = [sys.executable, "-m", "benchmarks.cold_start", "--checkpoint", str(checkpoint), "--child", kind]
    environ = {name: value for name, value in os.environ.items() if name != "TRITON_CACHE_DIR"}
    output = subprocess.run(
        [*command, "--started", str(time.time())], env=environ, stdout=subprocess.PIPE, check=True, text=True
    ).stdout
    answer: dict[str, Any] = json.loads(next(line for line in output.splitlines() if line.startswith("{")))  # the rest is its log
    print(kind, answer, flush=True)
    return answer


def forget(files: list[Path]) -> None:
    """Has the system drop its copies in memory."""
    for file in files:
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--child", choices=["fast", "reference"], help=argparse.SUPPRESS)
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.checkpoint, options.child, options.started)
        return
    with tempfile.TemporaryDirectory(dir=options.checkpoint.parent, prefix="cold-start-") as folder:
        link = Path(folder) / options.checkpoint.name
        link.symlink_to(options.checkpoint.resolve())
        first = start(link, "fast")
        later = [start(link, "fast") for _ in range(ROUNDS)]
        peer = [start(link, "reference") for _ in range(ROUNDS)]
    figures = []
    for point, bar in (("ready", None), ("first image", 20)):
        eager = round(statistics.median(one[point] for one in peer), 2)
        for name, ours in (("the first ever", first[point]), ("a later one", statistics.median(one[point] for one in later))):
            figures.append(
                {"name": f"start, {name}: {point}", "unit": "s", "ours": round(ours, 2), "peer": eager, "peer_name": PEER}
                | {"bar": bar, "better": "lower"}
            )
    packages = ["torch", "diffusers", "transformers"]
    write_results("cold_start", figures, packages=packages, gpu=str(first["gpu"]), folder=options.out)


if __name__ == "__main__":
    main()
