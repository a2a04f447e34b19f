"""Step progress to whoever watches: a broadcast on `job:<id>`, at most four times a second, never a row update.

It is a courtesy. Sending happens in a thread of its own, only the newest state is kept, and a failure is forgotten.
"""

from __future__ import annotations

import base64
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any
from uuid import UUID

import httpx
from PIL import Image

from ourvidz_sdxl.settings import Settings

MIN_INTERVAL_SECONDS = 0.25
PREVIEW_EDGE = 128  # pixels, of the longer edge
PREVIEW_BYTES = 8192
QUALITIES = (75, 50, 25, 5)  # of WebP, from the best that may fit; noise takes most
Preview = tuple[int, Image.Image | None] | None
"""The number of an image in its batch, and what it looks like so far."""


@dataclass(frozen=True, kw_only=True)
class State:
    job_id: UUID
    done: int
    total: int
    preview: Preview


class Progress:
    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last_preview = -math.inf
        key = settings.supabase_service_role_key.get_secret_value()
        self._http = httpx.Client(base_url=settings.supabase_url, headers={"apikey": key}, timeout=5)
        self._changed = threading.Condition()
        self._newest: State | None = None
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

    def step(self, job_id: UUID, done: int, total: int, preview: Callable[[], Preview]) -> None:
        """Takes note of `done` of `total` denoising steps; never blocks on the network. Previews are made as often as sent."""
        now = self._clock()
        made = None
        if now - self._last_preview >= MIN_INTERVAL_SECONDS:
            self._last_preview, made = now, preview()
        with self._changed:
            if made is None and self._newest and self._newest.job_id == job_id:
                made = self._newest.preview  # was not sent yet
            self._newest = State(job_id=job_id, done=done, total=total, preview=made)
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._newest or self._stopping)
                if self._stopping:
                    return
                newest, self._newest = self._newest, None
            if newest:
                self._send(newest)
                time.sleep(MIN_INTERVAL_SECONDS)

    def _send(self, state: State) -> None:
        message = {"topic": f"job:{state.job_id}", "event": "progress", "private": True, "payload": payload(state)}
        try:
            self._http.post("/realtime/v1/api/broadcast", json={"messages": [message]})
        except httpx.HTTPError:
            return


def payload(state: State) -> dict[str, Any]:
    """`preview`, where there is one: the image's `index` in its batch, and the picture as WebP in base64."""
    told = {"id": str(state.job_id), "step": state.done, "steps": state.total, "progress": round(100 * state.done / state.total)}
    index, image = state.preview or (0, None)
    return told if image is None else told | {"preview": {"index": index, "webp": base64.b64encode(webp(image)).decode()}}


def webp(image: Image.Image) -> bytes:
    """At most PREVIEW_BYTES, and PREVIEW_EDGE pixels along the longer edge."""
    small = image.copy()
    small.thumbnail((PREVIEW_EDGE, PREVIEW_EDGE))
    for quality in QUALITIES:
        buffer = BytesIO()
        small.save(buffer, "WEBP", quality=quality)
        if buffer.tell() <= PREVIEW_BYTES:
            break
    return buffer.getvalue()
