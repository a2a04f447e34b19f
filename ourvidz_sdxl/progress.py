"""Step progress to whoever watches: a broadcast on `job:<id>`, at most four times a second, never a row update.

It is a courtesy. Sending happens in a thread of its own, only the newest state is kept, and a failure is forgotten.
"""

from __future__ import annotations

import threading
import time
from uuid import UUID

import httpx

from ourvidz_sdxl.settings import Settings

MIN_INTERVAL_SECONDS = 0.25


class Progress:
    def __init__(self, settings: Settings) -> None:
        key = settings.supabase_service_role_key.get_secret_value()
        self._http = httpx.Client(base_url=settings.supabase_url, headers={"apikey": key}, timeout=5)
        self._changed = threading.Condition()
        self._newest: tuple[UUID, int, int] | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(timeout=6)
        self._http.close()

    def step(self, job_id: UUID, done: int, total: int) -> None:
        """Takes note of `done` of `total` denoising steps; never blocks on the network."""
        with self._changed:
            self._newest = (job_id, done, total)
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._newest or self._stopping)
                if self._stopping:
                    return
                newest, self._newest = self._newest, None
            if newest:
                self._send(*newest)
                time.sleep(MIN_INTERVAL_SECONDS)

    def _send(self, job_id: UUID, done: int, total: int) -> None:
        message = {
            "topic": f"job:{job_id}",
            "event": "progress",
            "private": True,
            "payload": {"id": str(job_id), "step": done, "steps": total, "progress": round(100 * done / total)},
        }
        try:
            self._http.post("/realtime/v1/api/broadcast", json={"messages": [message]})
        except httpx.HTTPError:
            return
