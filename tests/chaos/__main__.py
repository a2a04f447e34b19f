"""`make chaos`: strikes real workers for as long as the jobs last, and tells what became of every one of them.

    python -m tests.chaos --jobs 1500 --seed 1 [--workers 5] [--write-results]

Ends with 1 if anything that must hold does not; the history of each job in question is printed, and the same seed strikes again.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.results_file import write_results
from ourvidz_sdxl.local import ROOT
from tests.chaos.checks import history, recoveries
from tests.chaos.harness import Run, run
from tests.chaos.schedule import draw

HISTORIES = 5
LONG_RUN = 1500  # jobs; a shorter run need not strike as often


def say(line: str) -> None:
    print(line, flush=True)  # noqa: T201  a command's own words


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--jobs", type=int, default=LONG_RUN)
    parser.add_argument("--seed", type=int, default=random.randrange(10_000))
    parser.add_argument("--workers", type=int, default=5)
    parser.add_argument("--logs", type=Path, help="default: .local/chaos/seed-<seed>")
    parser.add_argument("--write-results", action="store_true", help="write benchmarks/results/chaos.json")
    options = parser.parse_args(arguments)
    schedule = draw(options.seed, options.jobs, options.workers)
    logs = options.logs or ROOT / ".local" / "chaos" / f"seed-{options.seed}"
    again = f"python -m tests.chaos --jobs {options.jobs} --seed {options.seed} --workers {options.workers}"
    say(f"seed {options.seed}: {options.jobs} jobs, {len(schedule.strikes)} strikes, {options.workers} workers; logs in {logs}")
    done = run(schedule, logs, say)
    report = report_of(done)
    (logs / "report.json").write_text(json.dumps(report, indent=1, default=str) + "\n")
    for name, value in done.findings.figures.items():
        say(f"  {name:28} {json.dumps(value, default=str)}")
    for words in done.findings.used_up:
        say(f"  no attempt left: {words}")
    for strike, why in done.missed:
        say(f"  missed: {strike.fault} of worker {strike.victim} at {strike.at_seconds} s: {why}")
    for name, contradictions in done.findings.contradictions.items():
        say(f"{'FAILED' if contradictions else 'ok':6} {name}" + (f": {len(contradictions)}" if contradictions else ""))
        for _, words in contradictions[:20]:
            say(f"       {words.strip()}")
    told: set[str] = set()
    for contradictions in done.findings.contradictions.values():
        for job_id, _ in contradictions:
            if job_id and job_id not in told and len(told) < HISTORIES:
                told.add(job_id)
                say(f"\njob {job_id}\n{history(job_id, done.seen, done.said)}")
    say(f"{done.seconds:.0f} s in all; the same again: {again}")
    if options.write_results:
        write_results("chaos", results_of(done), packages=["supabase", "realtime", "httpx"])
    return 0 if done.findings.is_clean else 1


def report_of(done: Run) -> dict[str, Any]:
    """The schedule is beside it; this is what became of it."""
    return {
        "seed": done.schedule.seed,
        "jobs": len(done.schedule.wishes),
        "workers": done.schedule.workers,
        "seconds": round(done.seconds, 1),
        "figures": done.findings.figures,
        "contradictions": done.findings.contradictions,
        "no_attempt_left": done.findings.used_up,
        "blows": [
            {
                "strike": blow.strike.number,
                "fault": blow.strike.fault,
                "victim": blow.strike.victim,
                "at": blow.at,
                "until": blow.until,
            }
            for blow in done.blows
        ],
        "recoveries": [
            {
                "strike": blow.strike.number,
                "fault": blow.strike.fault,
                "job": lease.job_id,
                "claims": lease.claims,
                "seconds": seconds,
            }
            for blow, lease, seconds in recoveries(done.seen, done.blows)
        ],
        "missed": [{"strike": strike.number, "why": why} for strike, why in done.missed],
    }


def results_of(done: Run) -> list[dict[str, Any]]:
    found, contradictions = done.findings.figures, done.findings.contradictions
    recovery = found["recovery_seconds"]

    def figure(name: str, unit: str, ours: float, bar: float | None, better: str) -> dict[str, Any]:
        return {"name": name, "unit": unit, "ours": ours, "peer": None, "peer_name": None, "bar": bar, "better": better}

    stale = found["finish_verdicts"].get("lost", 0) + found["finish_verdicts"].get("lost, unheard", 0)
    stale += found["heartbeat_verdicts"].get("lost", 0)
    return [
        figure("jobs", "jobs", len(done.schedule.wishes), LONG_RUN, "higher"),
        figure("kills", "kills", found["kills"], 40, "higher"),
        figure("stalls past the lease", "stalls", found["stalls"], 10, "higher"),
        figure("workers cut off past the lease", "cuts", found["cuts"], None, "higher"),
        figure("Postgres restarts", "restarts", found["restarts"], 3, "higher"),
        figure("replies dropped after commit", "%", found["replies_dropped_percent"], 5, "higher"),
        figure("jobs that did not end exactly once", "jobs", len(contradictions["every job ended exactly once"]), 0, "lower"),
        figure("finishes accepted twice", "finishes", len(contradictions["no finish accepted twice"]), 0, "lower"),
        figure("objects that disagree with their rows", "objects", len(contradictions["images and objects agree"]), 0, "lower"),
        figure("jobs deleted by their users", "jobs", sum(found["deleted"].values()), None, "higher"),
        figure(
            "remains of deleted jobs", "rows and objects", len(contradictions["deleted jobs are gone, others are not"]), 0, "lower"
        ),
        figure("orphaned objects left", "objects", len(contradictions["no object without a row"]), 0, "lower"),
        figure("recovery, p50", "s", recovery["p50"], None, "lower"),
        figure("recovery, p99", "s", recovery["p99"], None, "lower"),
        figure("stale writes refused", "writes", stale, None, "higher"),
        figure("jobs painted more than once", "paintings", found["painted_more_than_once"], None, "lower"),
        figure("ordinary jobs that lost every attempt", "jobs", len(done.findings.used_up), None, "lower"),
        figure("seed", "", done.schedule.seed, None, "lower"),
    ]


if __name__ == "__main__":
    sys.exit(main())
