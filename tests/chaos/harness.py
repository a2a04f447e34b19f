"""One run: a Supabase, workers, users, a bad network between them, strikes, and a quiet end in which everything must settle."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ourvidz_sdxl.local import embedded_supabase
from tests.chaos import witness
from tests.chaos.checks import OUTPUT_BUCKETS, Findings, check
from tests.chaos.network import USERS, Network
from tests.chaos.pods import Pod, Said
from tests.chaos.schedule import LEASE_SECONDS, Schedule, Strike
from tests.chaos.strikes import Blow, Striker
from tests.chaos.users import Crowd
from tests.chaos.witness import Look, Seen, Uploads
from tests.processes import environ, scratch_folder

SETTLE_SECONDS = 240.0
STEP_SECONDS = 0.08
# A worker that stands still must outlive its stall, so that it comes back too late; the lease ends long before.
STEP_TIMEOUT_SECONDS = 20
SETTINGS = {
    "lease_seconds": LEASE_SECONDS,
    "step_timeout_seconds": STEP_TIMEOUT_SECONDS,
    "stub_step_seconds": STEP_SECONDS,
    "request_timeout_seconds": 5,
}

Say = Callable[[str], object]


@dataclass(frozen=True, kw_only=True)
class Run:
    schedule: Schedule
    seen: Seen
    said: list[Said]
    blows: list[Blow]
    missed: list[tuple[Strike, str]]
    findings: Findings
    seconds: float


def run(schedule: Schedule, logs: Path, say: Say) -> Run:
    """Raises TimeoutError when jobs do not end; otherwise the findings say what went wrong."""
    started = time.monotonic()
    logs.mkdir(parents=True, exist_ok=True)
    (logs / "schedule.json").write_text(json.dumps(schedule.to_json(), indent=1, default=str) + "\n")
    with ExitStack() as stack:
        folder = stack.enter_context(scratch_folder())
        supabase = stack.enter_context(embedded_supabase(data_dir=folder))
        names = [f"pod-{i}" for i in range(schedule.workers)]
        look = Look(supabase)
        stack.callback(look.close)
        witness.install(look)
        network = stack.enter_context(Network(supabase.url, [*names, USERS], seed=schedule.seed))
        through = {way: dataclasses.replace(supabase, url=url) for way, url in network.urls.items()}
        for log in logs.glob("pod-*.log"):
            log.unlink()
        pods = [stack.enter_context(Pod(name, environ(through[name], **SETTINGS), logs / f"{name}.log")) for name in names]
        crowd = Crowd(through[USERS], schedule.users)
        for pod in pods:
            pod.wait_for("worker_ready")
        uploads = stack.enter_context(Uploads(supabase))
        striker = Striker(schedule.strikes, pods, uploads, network, folder / "db" / "postmaster.pid")
        say(f"{schedule.workers} workers are ready after {time.monotonic() - started:.1f} s")
        began = time.monotonic()
        network.start()
        crowd.start(schedule.wishes, began)
        striker.start(began)
        crowd.wait()
        say(f"all jobs are asked for after {time.monotonic() - began:.1f} s")
        striker.wait()
        say(f"the last strike is over after {time.monotonic() - began:.1f} s")
        try:
            wait_until_all_ended(look)
            say(f"all jobs have ended after {time.monotonic() - began:.1f} s")
            wait_until_swept(look, pods)
            say(f"the sweep has been through after {time.monotonic() - began:.1f} s")
        except TimeoutError as error:
            say(f"gave up waiting: {error}")
        network.stop()
        seen = witness.read(look)
        said = sorted((one for pod in pods for one in pod.said), key=lambda one: one.at)
        findings = check(schedule, crowd.ids, crowd.deleted, seen, said, striker.blows, network.verdicts, supabase)
        findings.contradictions["users were served"] = [(None, words) for visitor in crowd.visitors for words in visitor.given_up]
        findings.contradictions["workers said nothing but events"] = [(None, line) for pod in pods for line in pod.noise]
        findings.figures |= network.figures() | {
            "inserts_found_already_there": sum(visitor.already_there for visitor in crowd.visitors),
            "strikes_missed": len(striker.missed),
            "files_without_an_object": files_without_an_object(folder / "files", seen),
        }
    return Run(
        schedule=schedule,
        seen=seen,
        said=said,
        blows=striker.blows,
        missed=striker.missed,
        findings=findings,
        seconds=time.monotonic() - started,
    )


def wait_until_all_ended(look: Look) -> None:
    deadline = time.monotonic() + SETTLE_SECONDS
    while left := look("select count(*) as n from public.jobs where completed_at is null")[0]["n"]:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{left} jobs do not end")
        time.sleep(0.3)


def wait_until_swept(look: Look, pods: Sequence[Pod]) -> None:
    """The workers sweep by themselves; only the pause between two pages is taken away. Two rounds, or until no orphan is left."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while any(pod.stragglers() for pod in pods):
        if time.monotonic() > deadline:
            raise TimeoutError("processes without a supervisor do not end")
        time.sleep(0.3)
    rounds = 0
    while rounds < 2 or count_orphans(look) or look("select from private.removals limit 1"):
        look("update private.sweep set next_at = now()")
        while not (at := look("select bucket, path from private.sweep where next_at > now() + interval '1 s'")):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{count_orphans(look)} orphans are left after {rounds} rounds")
            time.sleep(0.1)
        rounds += at[0]["bucket"] == ""
        time.sleep(0.5)  # it is asked for first and removed afterwards


def count_orphans(look: Look) -> int:
    return int(
        look(
            """select count(*) as n from storage.objects o where o.bucket_id = any (%s) and not exists
                 (select from public.job_images i where i.bucket = o.bucket_id and o.name in (i.path, i.thumbnail_path))""",
            [list(OUTPUT_BUCKETS)],
        )[0]["n"]
    )


def files_without_an_object(folder: Path, seen: Seen) -> int:
    """Of the embedded Supabase's own: bytes on its disk that its table of objects does not know."""
    return len([path for path in folder.glob("*/*") if path.suffix != ".json"]) - len(seen.objects)
