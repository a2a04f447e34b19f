"""People at their browsers: each has a client and a session of their own, asks for what the schedule says, and tries again when the
network or the database fails them. No insert of theirs may ever count twice."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any, TypeVar, cast
from uuid import uuid4

import httpx
from PIL import Image
from postgrest.exceptions import APIError
from storage3.exceptions import StorageApiError
from supabase import Client, ClientOptions, create_client

from ourvidz_sdxl.connection import is_passing
from ourvidz_sdxl.local import EmbeddedSupabase
from tests.chaos.schedule import PROMPTS, Kind, Wish

T = TypeVar("T")

UNIQUE_VIOLATION = "23505"
PATIENCE_SECONDS = 90.0
PAUSE_SECONDS = 0.5
REFERENCE_NAME = "reference.png"


class Visitor:
    """One user. `ids` tells which row each wish became."""

    def __init__(self, supabase: EmbeddedSupabase) -> None:
        http = httpx.Client(timeout=5)
        self.client: Client = create_client(
            supabase.url, supabase.publishable_key, ClientOptions(auto_refresh_token=False, httpx_client=http)
        )
        answer = self.client.auth.sign_up({"email": f"{uuid4().hex}@example.com", "password": uuid4().hex})
        assert answer.user
        self.id = answer.user.id
        self.ids: dict[int, str] = {}
        self.deleted: set[str] = set()
        self.given_up: list[str] = []
        self.tries = 0
        self.already_there = 0

    def upload_reference(self) -> None:
        content = BytesIO()
        Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 50).convert("RGB").save(content, "PNG")
        bucket = self.client.storage.from_("reference_images")
        try:
            self._persist(lambda: bucket.upload(f"{self.id}/{REFERENCE_NAME}", content.getvalue(), {"content-type": "image/png"}))
        except StorageApiError as error:
            if str(error.status) not in {"409", "400"}:  # there already: the reply was lost
                raise

    def insert(self, wish: Wish) -> str:
        """Returns the row's id. A browser cannot tell a lost reply from a lost request, so it asks again in the same words."""
        row: dict[str, Any] = {"job_type": wish.job_type, "batch_size": wish.batch_size, "steps": wish.steps}
        row["prompt"] = PROMPTS.get(wish.kind, "a red circle on a blue background")
        if wish.kind in (Kind.REFERENCE, Kind.MISSING_REFERENCE):
            name = REFERENCE_NAME if wish.kind is Kind.REFERENCE else "never-uploaded.png"
            row |= {"reference_image_path": f"{self.id}/{name}", "reference_strength": 0.5, "steps": max(4, wish.steps)}
        row |= {"idempotency_key": wish.key} if wish.key else {"id": str(wish.id)}
        table = self.client.table("jobs")
        try:
            answer = self._persist(lambda: table.insert(row).execute())
        except APIError as error:
            if error.code != UNIQUE_VIOLATION:
                raise
            self.already_there += 1
            column, value = ("idempotency_key", wish.key) if wish.key else ("id", str(wish.id))
            answer = self._persist(lambda: table.select("id").eq(column, value).execute())
        return str(cast("list[dict[str, Any]]", answer.data)[0]["id"])

    def cancel(self, job_id: str) -> None:
        """Says so; whether the job had ended before is the database's to decide."""
        query = self.client.table("jobs").update({"cancel_requested_at": "now"}).eq("id", job_id)
        try:
            self._persist(query.execute)
        except APIError as error:
            if error.code not in {"PT409", "409"}:
                raise

    def delete(self, job_id: str) -> None:
        self._persist(self.client.rpc("delete_jobs", {"p_jobs": [job_id]}).execute)
        self.deleted.add(job_id)

    def live(self, wishes: Sequence[Wish], began: float) -> None:
        """Does what the schedule says of this user; `began` is the monotonic clock's at its second 0."""
        acts: list[tuple[float, int, Wish]] = []
        for wish in wishes:
            acts.append((wish.at_seconds, 0, wish))
            if wish.end_after_seconds is not None:
                acts.append((wish.at_seconds + wish.end_after_seconds, 1, wish))
        for at, what, wish in sorted(acts, key=lambda act: act[:2]):
            time.sleep(max(0.0, began + at - time.monotonic()))
            try:
                if what == 0:
                    self.ids[wish.number] = self.insert(wish)
                elif wish.number in self.ids:
                    (self.delete if wish.kind is Kind.DELETED else self.cancel)(self.ids[wish.number])
            except Exception as error:  # noqa: BLE001  whatever it is, the report shall say it and the other wishes shall be made
                self.given_up.append(f"{'end' if what else 'insert'} {wish.number} ({wish.kind}): {type(error).__name__}: {error}")

    def _persist(self, call: Callable[[], T]) -> T:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            self.tries += 1
            try:
                return call()
            except (APIError, StorageApiError, httpx.TransportError) as error:
                over_quota = isinstance(error, APIError) and error.code == "PT429"
                if time.monotonic() > deadline or not (over_quota or is_passing(error)):
                    raise
            time.sleep(PAUSE_SECONDS)


class Crowd:
    """All users, each in a thread."""

    def __init__(self, supabase: EmbeddedSupabase, users: int) -> None:
        self.visitors = [Visitor(supabase) for _ in range(users)]
        for visitor in self.visitors:
            visitor.upload_reference()

    def start(self, wishes: Sequence[Wish], began: float) -> None:
        self._threads = [
            threading.Thread(target=visitor.live, args=([wish for wish in wishes if wish.user == i], began), daemon=True)
            for i, visitor in enumerate(self.visitors)
        ]
        for thread in self._threads:
            thread.start()

    def wait(self) -> None:
        for thread in self._threads:
            thread.join()

    @property
    def ids(self) -> dict[int, str]:
        """The row's id of each wish's number."""
        return {number: job_id for visitor in self.visitors for number, job_id in visitor.ids.items()}

    @property
    def deleted(self) -> set[str]:
        return {job_id for visitor in self.visitors for job_id in visitor.deleted}
