"""What must hold of what was seen. Each check yields what contradicts it: the job's id, where it is about one, and words."""

from __future__ import annotations

import hashlib
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import httpx
from psycopg.rows import DictRow

from ourvidz_sdxl.local import EmbeddedSupabase
from tests.chaos.network import Verdict
from tests.chaos.pods import Said
from tests.chaos.schedule import Fault, Kind, Schedule, Wish
from tests.chaos.strikes import Blow
from tests.chaos.witness import TERMINAL, LeaseSeen, Seen

Contradiction = tuple[str | None, str]
OUTPUT_BUCKETS = ("sdxl_image_fast", "sdxl_image_high")

# How a job of each kind ends where nothing strikes it: (status, error code).
ENDS: Mapping[Kind, set[tuple[str, str | None]]] = {
    Kind.PLAIN: {("completed", None)},
    Kind.REFERENCE: {("completed", None)},
    Kind.LARGE: {("completed", None)},
    Kind.CANCELLED: {("completed", None), ("cancelled", None)},
    Kind.DELETED: set(),
    Kind.MISSING_REFERENCE: {("failed", "invalid_reference")},
    Kind.INVALID: {("failed", "invalid_job")},
    Kind.UNFORESEEN: {("failed", "unknown_error")},
    Kind.GPU: {("failed", "poison_job")},
    Kind.DIE: {("failed", "poison_job")},
    Kind.HANG: {("failed", "poison_job")},
}
POISON = {Kind.GPU, Kind.DIE, Kind.HANG}
# What an attempt may fail of while things are struck; a job fails so only when it has no attempt left.
STRUCK_CODES = {"lease_expired", "upload_failed", "supabase_unavailable", "unknown_error"}


@dataclass
class Findings:
    contradictions: dict[str, list[Contradiction]] = field(default_factory=dict)
    used_up: list[str] = field(default_factory=list)  # ordinary jobs that chaos took every attempt of
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def is_clean(self) -> bool:
        return not any(self.contradictions.values())


def check(
    schedule: Schedule,
    ids: Mapping[int, str],
    deleted: Set[str],
    seen: Seen,
    said: Sequence[Said],
    blows: Sequence[Blow],
    verdicts: Sequence[Verdict],
    supabase: EmbeddedSupabase,
) -> Findings:
    findings = Findings()
    wish_of = {ids[wish.number]: wish for wish in schedule.wishes if wish.number in ids}
    missing = [f"wish {wish.number} never became a row" for wish in schedule.wishes if wish.number not in ids]
    findings.contradictions = {
        "each wish is one job": [(None, words) for words in missing] + list(one_row_each(wish_of, deleted, seen)),
        "deleted jobs are gone, others are not": list(gone(deleted, seen)),
        "every job ended exactly once": list(ended_once(seen)),
        "every end is one that was asked for or planted": list(allowed_ends(wish_of, seen, blows, findings.used_up)),
        "every job has its lease, and it agrees": list(leases_agree(seen)),
        "no two leases at once": list(leases_in_turn(seen)),
        "no finish accepted twice": list(finished_once(deleted, seen, said, verdicts)),
        "completed jobs have their images, others none": list(images_of_completed(seen)),
        "images and objects agree": list(objects_agree(seen, supabase)),
        "no object without a row": [(name.split("/")[1], f"{bucket}/{name} is an orphan") for bucket, name in orphans(seen)],
    }
    findings.figures = figures(seen, said, blows)
    findings.figures["deleted"] = dict(Counter(str(last_status(seen.changes[job_id])) for job_id in sorted(deleted)))
    findings.figures["claims_of_poison"] = sorted(
        f"{wish.kind} {seen.jobs[job_id]['claims']}" for job_id, wish in wish_of.items() if wish.kind in POISON
    )
    return findings


def one_row_each(wish_of: Mapping[str, Wish], deleted: Set[str], seen: Seen) -> Iterator[Contradiction]:
    for job_id in seen.jobs.keys() - wish_of.keys():
        yield job_id, "nobody asked for this row, or somebody asked once and got two"
    for job_id in wish_of.keys() - seen.jobs.keys() - deleted:
        yield job_id, "the row is gone"


def last_status(changes: Sequence[DictRow]) -> str | None:
    """Of a deleted job: what it was before."""
    return changes[-1]["old_status"] if changes else None


def gone(deleted: Set[str], seen: Seen) -> Iterator[Contradiction]:
    """Nothing of a deleted job is left that anybody could read, and nothing else was deleted."""
    for job_id in deleted:
        for what, left in (("row", job_id in seen.jobs), ("images", job_id in seen.images), ("history", job_id in seen.events)):
            if left:
                yield job_id, f"deleted, and its {what} is there"
    for bucket, name in seen.objects:
        if name.split("/")[1] in deleted:
            yield name.split("/")[1], f"deleted, and {bucket}/{name} is there"
    for job_id, changes in seen.changes.items():
        if any(change["operation"] == "DELETE" for change in changes) and job_id not in deleted:
            yield job_id, "the row was deleted, and nobody had asked for it"


def ended_once(seen: Seen) -> Iterator[Contradiction]:
    for job_id, job in seen.jobs.items():
        statuses = [event["status"] for event in seen.events.get(job_id, [])]
        ends = [status for status in statuses if status in TERMINAL]
        if ends != [job["status"]] or statuses[-1] not in TERMINAL:
            yield job_id, f"its row is {job['status']} and its history {statuses}"
        changes = seen.changes[job_id]
        if sum(change["new_status"] in TERMINAL for change in changes) != 1 or changes[-1]["new_status"] not in TERMINAL:
            yield job_id, f"the witness saw {[change['new_status'] for change in changes]}"
        if [change["new_status"] for change in changes] != statuses:
            yield job_id, f"the history says {statuses}, and the witness {[change['new_status'] for change in changes]}"


def allowed_ends(wish_of: Mapping[str, Wish], seen: Seen, blows: Sequence[Blow], used_up: list[str]) -> Iterator[Contradiction]:
    """Fills `used_up`, too: ordinary jobs whose every attempt was struck. A worker's death is charged to no other."""
    struck = Counter(lease.job_id for _, lease, _ in recoveries(seen, blows))
    for job_id, job in seen.jobs.items():
        wish = wish_of.get(job_id)
        if wish is None:
            continue
        end = (job["status"], job["error_code"])
        if job["status"] == "cancelled":
            if job["cancel_requested_at"] is None or wish.kind is not Kind.CANCELLED:
                yield job_id, "cancelled, and nobody had asked for it"
            continue
        if end in ENDS[wish.kind]:
            if wish.kind is Kind.LARGE and [warning["code"] for warning in job["warnings"]] != ["low_memory"]:
                yield job_id, f"painted in small pieces, and the warnings are {job['warnings']}"
            continue
        attempts_gone = job["attempts"] >= job["max_attempts"] and job["error_code"] in STRUCK_CODES
        poison = job["error_code"] == "poison_job" and struck[job_id] >= 2
        words = f"a job of the kind {wish.kind} ended as {end} at attempt {job['attempts']}, struck {struck[job_id]} times"
        if job["status"] != "failed" or not (attempts_gone or poison):
            yield job_id, words
        elif ("completed", None) in ENDS[wish.kind]:
            used_up.append(f"{job_id}: {words}")


def leases_agree(seen: Seen) -> Iterator[Contradiction]:
    """A job is processing exactly while its lease is held, and has an end only then."""
    for job_id, job in seen.jobs.items():
        expected = {"queued": "waiting", "processing": "held"}.get(job["status"], "ended")
        if job["lease"] != expected or (job["expires_at"] is not None) != (expected == "held"):
            yield job_id, f"{job['status']}, and its lease is {job['lease']} until {job['expires_at']}"


def leases_in_turn(seen: Seen) -> Iterator[Contradiction]:
    painted = claims_painted(seen)
    for job_id, changes in seen.changes.items():
        for change in changes:
            if change["new_status"] == "processing" and change["old_status"] != "queued":
                yield job_id, f"claimed while it was {change['old_status']}"
            if change["error_code"] == "lease_expired" and change["old_status"] == "processing":
                early = change["lease_until"] - change["at"]
                if early.total_seconds() > 0:
                    yield job_id, f"a lease was reaped {early} before its end"
        leases = seen.leases[job_id]
        if [lease.claims for lease in leases] != list(range(1, len(leases) + 1)):
            yield job_id, f"its leases are numbered {[lease.claims for lease in leases]}"
        for lease, following in pairwise(leases):
            # a claim whose answer was lost is made again under its token: nobody knew of the first lease, and nothing was written
            unknown = lease.reaped and lease.worker == following.worker and lease.claims not in painted[job_id]
            if lease.token == following.token and not unknown:
                yield job_id, f"its leases {lease.claims} and {following.claims} had the same token"


def finished_once(deleted: Set[str], seen: Seen, said: Sequence[Said], verdicts: Sequence[Verdict]) -> Iterator[Contradiction]:
    """What workers believe to have completed is what the database took, once and from them."""
    completed: dict[str, list[Said]] = defaultdict(list)
    for one in said:
        if one.event["event"] == "job_completed":
            completed[str(one.event["job_id"])].append(one)
    for job_id, claims in completed.items():
        job = seen.jobs.get(job_id)
        if len(claims) > 1:
            yield job_id, f"completed {len(claims)} times, by {[one.pod for one in claims]}"
        elif job_id in deleted:
            continue
        elif job is None or job["status"] != "completed":
            yield job_id, f"{claims[0].pod} completed it, and its row is {job and job['status']}"
        elif job["worker"] != claims[0].pod:
            yield job_id, f"{claims[0].pod} completed it, and the lease says {job['worker']}"
    taken = Counter((one.job_id, one.token) for one in verdicts if one.function == "finish_job" and one.verdict == "ok")
    for (job_id, token), times in taken.items():
        if times > 1:
            yield job_id, f"{times} finishes under the lease {token} were answered with ok"
        if not any(lease.token == token and lease.end and not lease.reaped for lease in seen.leases.get(job_id, [])):
            yield job_id, f"a finish under {token} was answered with ok, and no lease of that token was ended by its holder"
    for job_id, leases in seen.leases.items():
        accepted = [lease for lease in leases if lease.ended_as in TERMINAL]
        if len(accepted) > 1:
            yield job_id, f"{len(accepted)} finishes were accepted"


def images_of_completed(seen: Seen) -> Iterator[Contradiction]:
    for job_id, job in seen.jobs.items():
        images = seen.images.get(job_id, [])
        expected = list(range(job["batch_size"])) if job["status"] == "completed" else []
        if [image["index"] for image in images] != expected:
            yield job_id, f"{job['status']} with images {[image['index'] for image in images]} of {job['batch_size']}"
        for image in images:
            prefix = f"{job['user_id']}/{job_id}/{job['claims']}-{image['index']}."
            if not (image["path"].startswith(prefix) and image["thumbnail_path"].startswith(prefix)):
                yield job_id, f"{image['path']} is not from its last lease, number {job['claims']}"


def objects_agree(seen: Seen, supabase: EmbeddedSupabase) -> Iterator[Contradiction]:
    """Downloads everything that a row names."""
    wanted: list[tuple[str, str, DictRow | None]] = [
        (image["bucket"], image["path"], image) for images in seen.images.values() for image in images
    ]
    wanted += [(image["bucket"], image["thumbnail_path"], None) for images in seen.images.values() for image in images]
    headers = {"apikey": supabase.secret_key, "authorization": f"Bearer {supabase.secret_key}"}
    with httpx.Client(base_url=f"{supabase.url}/storage/v1/object/", headers=headers, timeout=30) as http:

        def look(item: tuple[str, str, DictRow | None]) -> Contradiction | None:
            bucket, path, image = item
            job_id = path.split("/")[1]
            if (bucket, path) not in seen.objects:
                return job_id, f"{bucket}/{path} has a row and no object"
            answer = http.get(f"{bucket}/{path}")
            if answer.status_code != 200:
                return job_id, f"{bucket}/{path}: {answer.status_code}"
            if image and (len(answer.content), hashlib.sha256(answer.content).hexdigest()) != (image["bytes"], image["sha256"]):
                return job_id, f"{bucket}/{path}: other bytes than the row says"
            if not image and answer.content[8:12] != b"WEBP":
                return job_id, f"{bucket}/{path} is no thumbnail"
            return None

        with ThreadPoolExecutor(4) as threads:
            yield from filter(None, threads.map(look, wanted))


def orphans(seen: Seen) -> list[tuple[str, str]]:
    named = {(i["bucket"], path) for images in seen.images.values() for i in images for path in (i["path"], i["thumbnail_path"])}
    return [place for place in seen.objects if place[0] in OUTPUT_BUCKETS and place not in named]


def recoveries(seen: Seen, blows: Sequence[Blow]) -> list[tuple[Blow, LeaseSeen, float]]:
    """For each blow and each job that the victim held then: seconds until its next claim, or until its end."""
    found = []
    for blow in blows:
        victim = None if blow.strike.victim is None else f"pod-{blow.strike.victim}"
        for leases in seen.leases.values():
            for lease, following in zip(leases, [*leases[1:], None], strict=False):
                held = lease.start <= blow.at and (lease.end is None or lease.end > blow.at)
                if held and victim in (None, lease.worker) and lease.end is not None:
                    over = lease.end if lease.ended_as in TERMINAL or following is None else following.start
                    found.append((blow, lease, over - blow.at))
    return found


def figures(seen: Seen, said: Sequence[Said], blows: Sequence[Blow]) -> dict[str, Any]:
    painted = claims_painted(seen)
    lost = [one.event for one in said if one.event["event"] == "job_lost"]
    given_back = [one.event for one in said if one.event["event"] == "job_given_back"]
    recovered = recoveries(seen, blows)
    by_fault: dict[str, list[float]] = defaultdict(list)
    for blow, _, seconds in recovered:
        by_fault[blow.strike.fault].append(seconds)
    return {
        "kills": sum(blow.strike.fault.kills for blow in blows),
        "stalls": sum(blow.strike.fault.stalls for blow in blows),
        "restarts": sum(blow.strike.victim is None for blow in blows),
        "cuts": sum(blow.strike.fault is Fault.CUT_OFF for blow in blows),
        "blows": dict(Counter(blow.strike.fault for blow in blows)),
        "ends": dict(Counter(f"{job['status']} {job['error_code'] or ''}".strip() for job in seen.jobs.values())),
        "claims": dict(sorted(Counter(job["claims"] for job in seen.jobs.values()).items())),
        "attempts": dict(sorted(Counter(job["attempts"] for job in seen.jobs.values()).items())),
        "leases_reaped": sum(lease.reaped for leases in seen.leases.values() for lease in leases),
        "given_back_by_supervisors": dict(Counter(event["verdict"] for event in given_back)),
        "finishes_refused": sum("outcome" in event for event in lost),
        "lost_by_heartbeat": sum("Another worker" in event.get("reason", "") for event in lost),
        "lost_by_own_clock": sum("could not be renewed" in event.get("reason", "") for event in lost),
        "painted_more_than_once": sum(len(claims) - 1 for claims in painted.values()),
        "jobs_in_hand_when_struck": len(recovered),
        "recovery_seconds": spread([seconds for _, _, seconds in recovered]),
        "recovery_by_fault": {fault: spread(seconds) for fault, seconds in sorted(by_fault.items())},
    }


def claims_painted(seen: Seen) -> dict[str, set[int]]:
    """Under which of its claims each job came as far as an upload."""
    painted: dict[str, set[int]] = defaultdict(set)
    for upload in seen.uploads:
        if upload["bucket"] in OUTPUT_BUCKETS:
            _, job_id, name = upload["name"].split("/")
            painted[job_id].add(int(name.split("-")[0]))
    return painted


def spread(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {"n": 0}
    cuts = statistics.quantiles(values, n=100, method="inclusive") if len(values) > 1 else list(values) * 99
    return {"n": len(values), "p50": round(cuts[49], 2), "p99": round(cuts[98], 2), "max": round(max(values), 2)}


def history(job_id: str, seen: Seen, said: Sequence[Said]) -> str:
    """Everything that is known of one job, in the order of time."""
    lines: list[tuple[float, str]] = []
    for change in seen.changes.get(job_id, []):
        keys = ("operation", "old_status", "new_status", "token", "worker", "claims", "attempts", "crashes", "error_code")
        words = " ".join(f"{key}={change[key]}" for key in keys if change[key] is not None)
        lines.append((change["at"].timestamp(), f"row    {words}"))
    for event in seen.events.get(job_id, []):
        words = " ".join(f"{key}={event[key]}" for key in ("status", "attempt", "worker", "error_code") if event[key] is not None)
        lines.append((event["created_at"].timestamp(), f"event  {words}"))
    for upload in seen.uploads:
        if job_id in upload["name"]:
            lines.append((upload["at"].timestamp(), f"object {upload['operation']} {upload['bucket']}/{upload['name']}"))
    for one in said:
        if one.event.get("job_id") == job_id:
            words = " ".join(
                f"{key}={value}" for key, value in one.event.items() if key not in {"job_id", "timestamp", "exception"}
            )
            lines.append((one.at, f"{one.pod}  {words}"))
    lines.sort()
    begin = lines[0][0] if lines else 0.0
    return "\n".join(f"  {at - begin:9.3f}  {words}" for at, words in lines)
