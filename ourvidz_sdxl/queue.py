"""Claim, heartbeat, finish: the only module that names a function of the database.

Every call may be made twice without further effect: the worker chooses the lease token, and the functions know it again.
"""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any
from uuid import UUID, uuid4

import httpx
from postgrest.exceptions import APIError
from supabase import Client

from ourvidz_sdxl import __version__, tracing
from ourvidz_sdxl.connection import is_passing, patiently
from ourvidz_sdxl.errors import JobCancelled, LeaseLost, Released, SupabaseRefused, SupabaseUnavailable
from ourvidz_sdxl.metrics import QUEUE_WAIT, STAGE, Stage
from ourvidz_sdxl.settings import Settings

MIN_PATIENCE_SECONDS = 5.0  # for a last word even when the lease is about to end; a late one is refused as `lost`
LEASE_MARGIN_SECONDS = 1.0  # about a denoising step: nobody should still paint what another may have claimed


class Outcome(StrEnum):
    COMPLETED = "completed"
    FAILED = "failed"
    RETRY = "retry"
    CANCELLED = "cancelled"
    RELEASED = "released"
    CRASHED = "crashed"
    FAULTED = "faulted"  # may be this worker's own fault: another one gets the job first


class Lease:
    """The right to work on one job, held by a token until a deadline. Thread-safe; ends once, for the first reason given."""

    def __init__(self, job_id: UUID, token: UUID, expires_at: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.job_id = job_id
        self.token = token
        self.claimed_at = clock()
        self.expires_at = expires_at  # on the clock of this process, counted from before the call that granted it
        self.painted = False  # its turn on the GPU is over; what is left is delivery
        self._clock = clock
        self._end: type[JobCancelled | LeaseLost | Released] | None = None
        self._lock = threading.Lock()

    def end(self, reason: type[JobCancelled | LeaseLost | Released]) -> None:
        with self._lock:
            self._end = self._end or reason

    def check(self) -> None:
        """Raises JobCancelled, LeaseLost or Released once there is no right to go on; called between denoising steps."""
        if self._end is not None:
            raise self._end
        if self._clock() >= self.expires_at:
            raise LeaseLost("the lease could not be renewed in time")


@dataclass(frozen=True, kw_only=True)
class Claimed:
    row: dict[str, Any] = field(repr=False)
    lease: Lease
    claim_seconds: float = 0.0


class Queue:
    """The queue functions for one worker.

    Each raises SupabaseUnavailable where Supabase does not answer in time, and SupabaseRefused where it answers no.
    """

    def __init__(self, client: Client, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._settings = settings
        self._clock = clock
        self._answered_at = clock()
        self._unanswered: tuple[UUID, float] | None = (
            None  # token and time of a claim that may have been made, though no answer came
        )

    @property
    def silent_seconds(self) -> float:
        """How long ago a call was answered for the last time, or this object made."""
        return self._clock() - self._answered_at

    def claim(self) -> tuple[Claimed | None, float | None]:
        """One job, or None with the seconds until it is worth asking again (None: nothing is known to be coming).

        A claim that was not answered is made again under its token, by the next call too, so that its job comes to light; but not
        after a lease's time, since a token is to name one lease only.
        """
        asked_at = self._clock()
        if self._unanswered is None or asked_at - self._unanswered[1] > self._settings.lease_seconds:
            self._unanswered = (uuid4(), asked_at)
        token = self._unanswered[0]
        answer = self._rpc(
            "claim_jobs",
            {
                "p_worker": self._settings.worker_id,
                "p_target": self._settings.target_worker,
                "p_job_types": list(self._settings.job_types),
                "p_token": str(token),
                "p_limit": 1,
                "p_lease_seconds": self._settings.lease_seconds,
            },
            patience_seconds=self._settings.poll_interval_seconds,  # the loop, which must also hear a SIGTERM, asks again by itself
        )
        self._unanswered = None
        if answer["jobs"]:
            row = answer["jobs"][0]
            lease = Lease(UUID(row["id"]), token, self._ends(asked_at), self._clock)
            claim_seconds = self._clock() - asked_at
            STAGE.labels(Stage.CLAIM).observe(claim_seconds)
            QUEUE_WAIT.labels(row["job_type"]).observe(tracing.waited_seconds(row)[1])
            return Claimed(row=row, lease=lease, claim_seconds=claim_seconds), None
        if answer["more"]:
            return None, 0.05  # somebody holds the row's lock and may roll back
        return None, None if answer["next_run_in_ms"] is None else answer["next_run_in_ms"] / 1000

    def heartbeat(self, lease: Lease) -> None:
        """Renews `lease`, or ends it if its job is cancelled or lost."""
        asked_at = self._clock()
        verdicts = self._rpc(
            "heartbeat_jobs",
            {
                "p_ids": [str(lease.job_id)],
                "p_token": str(lease.token),
                "p_lease_seconds": self._settings.lease_seconds,
            },
            patience_seconds=self._settings.heartbeat_seconds,
        )
        match verdicts[0]["verdict"]:
            case "lost":
                lease.end(LeaseLost)
            case "cancel":
                lease.end(JobCancelled)
        lease.expires_at = self._ends(asked_at)

    def finish(
        self,
        lease: Lease,
        outcome: Outcome,
        *,
        images: Sequence[dict[str, Any]] = (),
        error: dict[str, str] | None = None,
        metrics: dict[str, Any] | None = None,
        warnings: Sequence[dict[str, str]] = (),
        enhanced_prompt: str | None = None,
        patience_seconds: float | None = None,
    ) -> str:
        """`ok`, `already` (an earlier call arrived though its reply did not) or `lost` (nothing was written).

        Unless `patience_seconds` says otherwise tried until the lease ends: no short outage costs a painted job.
        """
        answer = self._rpc(
            "finish_job",
            {
                "p_id": str(lease.job_id),
                "p_token": str(lease.token),
                "p_outcome": outcome,
                "p_images": list(images),
                "p_error": error,
                "p_metrics": metrics,
                "p_warnings": list(warnings),
                "p_enhanced_prompt": enhanced_prompt,
            },
            patience_seconds=patience_seconds or max(MIN_PATIENCE_SECONDS, lease.expires_at - self._clock()),
        )
        return str(answer)

    def report_worker(
        self, state: str, facts: dict[str, Any], *, worker_id: str | None = None, patience_seconds: float | None = None
    ) -> None:
        settings = self._settings
        here = {
            "target_worker": settings.target_worker,
            "host": platform.node(),
            "version": __version__,
            "report_seconds": settings.heartbeat_seconds,
            "max_jobs": settings.max_concurrent_jobs,
            "pod_id": settings.runpod_pod_id,
        }
        arguments = {"p_worker": worker_id or self._settings.worker_id, "p_state": state, "p_facts": here | facts}
        self._rpc("report_worker", arguments, patience_seconds=patience_seconds)

    def sweep_orphans(self) -> dict[str, list[str]]:
        """Objects that no row shows any more: paths by bucket. Empty, too, when another worker has just asked."""
        paths: dict[str, list[str]] = {}
        for row in self._rpc("sweep_orphans", {}):
            paths.setdefault(row["bucket"], []).append(row["path"])
        return paths

    def retire_jobs(self, limit: int = 200) -> int:
        """Deletes up to `limit` jobs that are older than the database keeps them; returns how many."""
        return int(self._rpc("retire_jobs", {"p_limit": limit}))

    def _ends(self, asked_at: float) -> float:
        """When a lease that was asked for then counts as over here: before the database thinks so."""
        return asked_at + self._settings.lease_seconds - LEASE_MARGIN_SECONDS

    def _rpc(self, function: str, arguments: dict[str, Any], *, patience_seconds: float | None = None) -> Any:
        seconds = self._settings.lease_seconds / 2 if patience_seconds is None else patience_seconds
        try:
            data = patiently(lambda: self._client.rpc(function, arguments).execute().data, seconds=seconds, name=function)
            self._answered_at = self._clock()
            return data
        except (APIError, httpx.TransportError) as error:
            kind = SupabaseUnavailable if is_passing(error) else SupabaseRefused
            reason = f"{function}: {type(error).__name__}: {_reason(error)}"
        raise kind(reason)


def _reason(error: APIError | httpx.TransportError) -> str:
    """Code and message only: `details` of a constraint error repeats the row, and with it the prompt."""
    return f"{error.code or ''} {error.message}".strip() if isinstance(error, APIError) else str(error)
