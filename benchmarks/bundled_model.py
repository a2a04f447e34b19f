"""Seconds for one picture of the bundled model on this machine's CPU, through the worker's engine.

python -m benchmarks.bundled_model
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from uuid import UUID

from benchmarks.results_file import write_results
from ourvidz_sdxl.engine import load_engine
from ourvidz_sdxl.job import Job
from ourvidz_sdxl.plan import make_plan

ROUNDS = 7


def main() -> None:
    engine = load_engine(Path(__file__).parents[1] / "models" / "tiny-sdxl")
    row = {"id": UUID(int=0), "user_id": UUID(int=0), "attempts": 1, "prompt": "a red circle on a blue background", "seed": 1}
    figures = []
    for job_type in ("sdxl_image_fast", "sdxl_image_high"):
        plan = make_plan(Job.from_row(row | {"job_type": job_type}), native_size=engine.native_size, random_seed=0)
        seconds = []
        for _ in range(ROUNDS + 1):  # the first is a warm-up
            started = time.perf_counter()
            engine.paint(plan, None, lambda _done, _total: None)
            seconds.append(time.perf_counter() - started)
        figures.append(
            {
                "name": f"{job_type}, {plan.steps} steps",
                "unit": "s",
                "ours": round(statistics.median(seconds[1:]), 2),
                "peer": None,
                "peer_name": None,
                "bar": 3,
                "better": "lower",
            }
        )
    write_results("bundled_model", figures, packages=["torch", "diffusers", "transformers"])


if __name__ == "__main__":
    main()
