"""Is Supabase there, and has it all that the worker asks of it?"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
from postgrest.exceptions import APIError
from storage3.exceptions import StorageApiError

from ourvidz_sdxl.connection import connect, is_passing
from ourvidz_sdxl.doctor.finding import Finding, fail, note, ok
from ourvidz_sdxl.errors import SupabaseRefused, SupabaseUnavailable
from ourvidz_sdxl.queue import Lease, Outcome, Queue
from ourvidz_sdxl.settings import Settings
from ourvidz_sdxl.wakeup import Wakeup

PATIENCE_SECONDS = 3.0
REALTIME_SECONDS = 10.0
WAKE_SECONDS = 5.0
MAX_CLOCK_SKEW_SECONDS = 10.0
MIGRATIONS = Path(__file__).parents[2] / "supabase" / "migrations"
NOBODY = "doctor"  # a target_worker whose jobs nobody inserts
PUSH = (
    "Run `supabase db push`, which brings the database to this version. If it finds nothing to push, the REST server may "
    "not have looked since: run `notify pgrst, 'reload schema'` in the SQL editor."
)
# Of PostgREST (https://docs.postgrest.org/en/stable/references/errors.html), of a function's own statements, and of a policy's.
MISSING = ("PGRST202", "PGRST205", "42883", "42P01", "42703", "42704", "3F000")
DENIED = re.compile(r"permission denied for (?P<kind>[a-z ]+) (?P<name>\w+)")


def check_address(settings: Settings) -> Finding:
    """One request for nothing, with the key: is there a server, is it a Supabase, and does it take the key?"""
    host = urlsplit(settings.supabase_url).netloc
    key = settings.supabase_service_role_key.get_secret_value()
    url = f"{settings.supabase_url}/rest/v1/jobs?limit=0"
    headers = {"apikey": key} | ({} if key.startswith("sb_") else {"authorization": f"Bearer {key}"})
    try:
        answer = httpx.get(url, headers=headers, timeout=settings.request_timeout_seconds)
    except httpx.TimeoutException:
        return fail(f"{host} does not answer.", "Check this machine's network and its firewall's outgoing rules.", passing=True)
    except httpx.TransportError as error:
        mend = "Check SUPABASE_URL, this machine's network, and its name server."
        return fail(f"{host} cannot be reached ({error}).", mend, passing=True)
    told = _json(answer)
    code = told.get("code")
    if answer.status_code == httpx.codes.OK and answer.headers.get("content-type", "").startswith("application/json"):
        return ok(f"{host} answers in {answer.elapsed.total_seconds() * 1000:.0f} ms")
    if code in ("PGRST205", "42P01"):
        return fail(f"{host} is a Supabase without the table jobs.", PUSH)
    if code == "PGRST106":
        return fail(
            f"{host} does not serve the schema public.", "Add it to the exposed schemas in the project's settings, under Data API."
        )
    if code == "42501":
        return _refusal("the table jobs", f"{code} {told.get('message')}")
    if answer.status_code in (401, 403):
        return fail(f"{host} does not take this key.", "Check that SUPABASE_URL and SUPABASE_SERVICE_ROLE_KEY are of one project.")
    if answer.status_code == 540:
        return fail("The project is paused.", "Restore it in the Supabase dashboard.", passing=True)
    if answer.status_code >= 500 or answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
        mend = "See https://status.supabase.com, and the project's logs."
        return fail(f"{host} answers {answer.status_code}.", mend, passing=True)
    return fail(
        f"What answers at {host} is no Supabase (status {answer.status_code}).",
        "Check SUPABASE_URL: it is the project's URL, such as https://PROJECT.supabase.co, without a path.",
    )


def check_migrations(settings: Settings) -> Finding:
    """Has the database all migrations of this version? Those of the project's own, and newer ones, are passed over."""
    ours = sorted(file.name.partition("_")[0] for file in MIGRATIONS.glob("*.sql"))
    try:
        applied = connect(settings).rpc("applied_migrations", {}).execute().data
    except APIError as error:
        return _refusal("applied_migrations", f"{error.code} {error.message}", passing=is_passing(error))
    except httpx.TransportError as error:
        return fail(
            f"applied_migrations does not answer: {error}.", "See the project's logs in the Supabase dashboard.", passing=True
        )
    if applied is None:
        return note("The database has no list of its migrations, as `supabase db push` keeps it.")
    if missing := [version for version in ours if version not in cast("list[str]", applied)]:
        return fail(f"The database is older than this worker: it lacks {', '.join(missing)}.", PUSH)
    return ok(f"up to {ours[-1]}" if ours else "")


def check_functions(settings: Settings) -> Finding:
    """Calls each function as the worker does, so that its name, arguments, grants and statements are all tried; reads each view."""
    ours = settings.model_copy(update={"target_worker": NOBODY, "lease_seconds": 10})
    client = connect(ours)
    queue = Queue(client, ours)
    lease = Lease(uuid4(), uuid4(), 0)  # of a job that does not exist

    def claim() -> None:
        claimed, _ = queue.claim()
        if claimed:
            queue.finish(claimed.lease, Outcome.RELEASED)

    calls: dict[str, Callable[[], object]] = {
        "claim_jobs": claim,
        "heartbeat_jobs": lambda: queue.heartbeat(lease),
        "finish_job": lambda: queue.finish(lease, Outcome.RELEASED, patience_seconds=PATIENCE_SECONDS),
        "sweep_orphans": queue.sweep_orphans,
        "retire_jobs": lambda: queue.retire_jobs(limit=0),
        "fleet": lambda: client.table("fleet").select("*").limit(1).execute(),
        "queue_health": lambda: client.table("queue_health").select("*").limit(1).execute(),
    }
    for name, call in calls.items():
        try:
            call()
        except (SupabaseUnavailable, httpx.TransportError) as error:
            return fail(f"{name} does not answer: {error}.", "See the project's logs in the Supabase dashboard.")
        except SupabaseRefused as error:
            return _refusal(name, str(error))
        except APIError as error:
            return _refusal(name, f"{error.code} {error.message}")
    return ok(", ".join(calls))


def _refusal(name: str, reason: str, *, passing: bool = False) -> Finding:
    """Finding for a refusal by the database; `reason` holds its code and its message."""
    denied = DENIED.search(reason)
    if any(code in reason for code in MISSING):
        found = f"The database has no {name} with the arguments and columns that this version uses ({reason})."
        return fail(found, PUSH)
    if "requires a WHERE clause" in reason:
        return fail(
            f"{name} runs an UPDATE or DELETE without WHERE, which Supabase refuses ({reason}).",
            "Give it one: it stands in a function or a trigger that the project has beside ours; "
            "`python -m tools.check_database postgresql://…` names it.",
        )
    if denied and denied["kind"] == "function" and denied["name"] == name:
        return fail(
            f"This key may not call {name}.",
            f"Run `grant execute on function public.{name} to service_role` in the SQL editor, if the key is the secret one.",
        )
    if denied:
        return fail(
            f"This key may not use the {denied['kind']} {denied['name']}, which {name} needs.",
            f"Run the `grant … to service_role` that supabase/migrations has for {denied['name']} in the SQL editor.",
        )
    return fail(f"{name} was refused: {reason}.", "See the project's Postgres logs in the Supabase dashboard.", passing=passing)


def check_buckets(settings: Settings) -> Finding:
    wanted = {*map(str, settings.job_types), "reference_images"}
    try:
        public = {bucket.id: bucket.public for bucket in connect(settings).storage.list_buckets()}
    except (StorageApiError, httpx.TransportError) as error:
        mend = "Check that Storage is on for the project."
        return fail(f"Storage does not list its buckets ({type(error).__name__}).", mend, passing=is_passing(error))
    if missing := sorted(wanted - public.keys()):
        return fail(f"Missing: {', '.join(missing)}.", PUSH)
    if open_to_all := sorted(name for name in wanted if public[name]):
        return fail(
            f"Public, so that anybody can read their images: {', '.join(open_to_all)}.",
            "Turn `Public bucket` off in the Supabase dashboard, under Storage.",
        )
    return ok(", ".join(sorted(wanted)))


def check_realtime(settings: Settings) -> Finding:
    """There and back: joins the workers' topic, sends a wake on it and hears it. Other workers look at the queue once."""
    topic = f"worker:{settings.target_worker}"
    with Wakeup(settings, on_cancel=lambda _: None) as wakeup:
        if not wakeup.wait_connected(REALTIME_SECONDS):
            return fail(
                f"No subscription to {topic} within {REALTIME_SECONDS:g} s.",
                "Check that Realtime is on for the project, and that no firewall holds back web sockets; until then workers ask "
                f"every {settings.poll_interval_seconds:g} s.",
            )
        message = {"topic": topic, "event": "wake", "payload": {}, "private": True}
        sent_at = time.monotonic()
        answer = httpx.post(
            f"{settings.supabase_url}/realtime/v1/api/broadcast",
            json={"messages": [message]},
            headers={"apikey": settings.supabase_service_role_key.get_secret_value()},
            timeout=settings.request_timeout_seconds,
        )
        while not wakeup.heard and time.monotonic() - sent_at < WAKE_SECONDS:
            wakeup.wait(0.01)
        if not wakeup.heard:
            return fail(
                f"Joined {topic}, but a wake that was sent on it (status {answer.status_code}) did not come back.",
                "See Realtime's logs and limits in the Supabase dashboard: too many messages or connections are dropped.",
            )
        return ok(f"a wake came back in {(time.monotonic() - sent_at) * 1000:.0f} ms")


def check_clock(settings: Settings) -> Finding:
    """Compares with the database's clock: a row of our own in `workers` gets its time there."""
    client, worker_id = connect(settings), f"{NOBODY}-{uuid4()}"
    asked_at = time.time()
    try:
        Queue(client, settings).report_worker("stopped", {}, worker_id=worker_id, patience_seconds=PATIENCE_SECONDS)
        round_trip_seconds = time.time() - asked_at
        rows = cast("list[dict[str, Any]]", client.table("workers").delete().eq("id", worker_id).execute().data)
        database = datetime.fromisoformat(rows[0]["last_seen_at"]).timestamp()
    except SupabaseRefused as error:
        return _refusal("report_worker", str(error))
    except (SupabaseUnavailable, APIError, httpx.TransportError) as error:
        return fail(f"The table workers cannot be written ({type(error).__name__}).", PUSH)
    skew = asked_at + round_trip_seconds / 2 - database
    if abs(skew) > MAX_CLOCK_SKEW_SECONDS + round_trip_seconds:
        return fail(
            f"This machine's clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the database's.",
            "Let the host set its clock by NTP (`timedatectl set-ntp true`): certificates and signed URLs go by it, and logs of "
            "several machines are read side by side.",
        )
    return ok(f"{abs(skew):.1f} s from the database's")


def _json(answer: httpx.Response) -> dict[str, Any]:
    try:
        told = answer.json()
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}
