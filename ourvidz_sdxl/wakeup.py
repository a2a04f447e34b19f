"""When to look for work: at once on a hint from Realtime, else by a timer.

The hint is never the truth. A worker that hears nothing claims every `poll_interval_seconds`; while its subscription stands it
relaxes to `poll_interval_connected_seconds`, and it claims once on every (re)subscription, for what it missed while it was deaf.

The client of supabase-py gives up for good after some failures, so it is not asked to reconnect: after each loss it is thrown away
and a new one is made. Connections that are dead without a close are found by the websocket's own ping (20 s, twice).
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from typing import Any
from uuid import UUID

import structlog
from realtime import AsyncRealtimeClient, RealtimeSubscribeStates

from ourvidz_sdxl.settings import Settings

MAX_PAUSE_SECONDS = 15.0

# After a hint the queue is looked at twice. Realtime reads the write-ahead log, and a commit is in there a moment before Postgres
# shows it to others: the first look can come too early.
SECOND_LOOK_SECONDS = 0.2

log = structlog.get_logger()


class Wakeup:
    """Runs the subscription in a thread of its own; `wait` and `wake` may be called from any other."""

    def __init__(self, settings: Settings, on_cancel: Callable[[UUID], None]) -> None:
        self._settings = settings
        self._on_cancel = on_cancel
        self._hint = threading.Event()
        self._hinted = False
        self._connected = threading.Event()
        self._loop: asyncio.AbstractEventLoop
        self._task: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, name="wakeup", daemon=True)

    def __enter__(self) -> Wakeup:
        self._loop = asyncio.new_event_loop()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(lambda: self._task and self._task.cancel())
        self._thread.join(timeout=5)

    @property
    def connected(self) -> bool:
        return self._connected.is_set()

    def wait_connected(self, timeout_seconds: float) -> bool:
        return self._connected.wait(timeout_seconds)

    def wake(self) -> None:
        self._hint.set()

    def wait(self, at_most_seconds: float | None = None) -> None:
        """Returns on a hint, or when the timer (or `at_most_seconds`, if that is sooner) is over. One thread's alone."""
        timer = self._settings.poll_interval_connected_seconds if self.connected else self._settings.poll_interval_seconds
        if self._hinted:
            timer = SECOND_LOOK_SECONDS
        self._hinted = self._hint.wait(timer if at_most_seconds is None else min(timer, at_most_seconds))
        self._hint.clear()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._task = self._loop.create_task(self._listen_for_ever())
        try:
            self._loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            pass
        finally:
            for task in asyncio.all_tasks(self._loop):
                task.cancel()
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    async def _listen_for_ever(self) -> None:
        pause = 0.5
        while True:
            try:
                await self._listen()
                pause = 0.5
            except Exception as error:  # noqa: BLE001  whatever the socket does, the timer goes on and we try again
                log.warning("realtime_lost", reason=f"{type(error).__name__}: {error}", retry_in_seconds=round(pause, 1))
            self._connected.clear()
            self.wake()  # so that a relaxed timer is replaced by the strict one
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311  jitter, so that a fleet does not return as one
            pause = min(pause * 2, MAX_PAUSE_SECONDS)

    async def _listen(self) -> None:
        """One connection, from join to loss."""
        lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def on_state(state: RealtimeSubscribeStates, error: Exception | None) -> None:
            if state is RealtimeSubscribeStates.SUBSCRIBED:
                log.info("realtime_subscribed")
                self._connected.set()
                self.wake()
            elif not lost.done():
                lost.set_result(f"{state.value}: {error}")

        client = AsyncRealtimeClient(
            f"{self._settings.supabase_url}/realtime/v1",
            token=self._settings.supabase_service_role_key.get_secret_value(),
            auto_reconnect=False,
            max_retries=1,
        )
        channel = client.channel(
            f"worker:{self._settings.target_worker}",
            {
                "config": {
                    "private": True,
                    "broadcast": {"ack": False, "self": False},
                    "presence": {"key": "", "enabled": False},
                }
            },
        )
        channel.on_broadcast("wake", lambda _: self.wake())
        channel.on_broadcast("cancel", self._cancel)
        try:
            await channel.subscribe(on_state)
            reason = await lost
        finally:
            await client.close()
        log.warning("realtime_lost", reason=reason)

    def _cancel(self, message: Any) -> None:
        try:
            self._on_cancel(UUID(str(message["payload"]["id"])))
        except (KeyError, TypeError, ValueError):
            log.warning("cancel_not_understood")
