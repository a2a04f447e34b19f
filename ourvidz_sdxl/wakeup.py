"""When to look for work: at once on a hint from Realtime, else by a timer.

The hint is never the truth. A worker that hears nothing claims every `poll_interval_seconds`; while its subscription stands it
relaxes to `poll_interval_connected_seconds`, and it claims once on every (re)subscription, for what it missed while it was deaf.

The client of supabase-py gives up for good after some failures, and does not notice when nobody answers its heartbeats. So it is
watched from here and not asked to reconnect: whatever is lost or silent is thrown away, and a new one is made.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import UUID

import structlog
from realtime import AsyncRealtimeChannel, AsyncRealtimeClient, Message, RealtimeChannelOptions, RealtimeSubscribeStates

from ourvidz_sdxl.metrics import REALTIME_RECONNECTS, WAKES, Wake
from ourvidz_sdxl.settings import Settings

FIRST_PAUSE_SECONDS = 0.5
MAX_PAUSE_SECONDS = 8.0  # after a join that nobody answered: both together let wake be back within 15 s of the longest outage
HEARTBEAT_SECONDS = 10.0  # a silent connection is found within two of them; Realtime itself closes after 60 s without one
JOIN_SECONDS = 6.0
FAREWELL_SECONDS = 1.0  # for a close frame when the worker ends
HEARTBEAT_TOPIC = "phoenix"
PRIVATE: RealtimeChannelOptions = {
    "config": {"private": True, "broadcast": {"ack": False, "self": False}, "presence": {"key": "", "enabled": False}}
}
SHARDS = 32  # of a target's topic; private.wake tells only some of them in a large fleet

# After a wake, and on subscribing, the queue is looked at twice. Realtime reads the write-ahead log, and a commit is in there a
# moment before Postgres shows it to others: the first look can come too early.
SECOND_LOOK_SECONDS = 0.2

log = structlog.get_logger()


class HeartbeatReplies(AsyncRealtimeChannel):
    """What the server answers to heartbeats: the client gives a message to the channel of its topic, and has none for this one."""

    heard: Callable[[], None]

    def _handle_message(self, _message: Any) -> None:
        self.heard()


class Wakeup:
    """Runs the subscription in a thread of its own; `wait` and `wake` may be called from any other."""

    def __init__(
        self, settings: Settings, on_cancel: Callable[[UUID], None], *, heartbeat_seconds: float = HEARTBEAT_SECONDS
    ) -> None:
        self._settings = settings
        self._on_cancel = on_cancel
        self._heartbeat_seconds = heartbeat_seconds
        topic = f"worker:{settings.target_worker}"
        self._topics = topic, f"{topic}:{random.randrange(SHARDS)}"  # noqa: S311  which one does not matter
        self._farewells: set[asyncio.Task[None]] = set()
        self._hint = threading.Event()
        self._woken = self._look_again = False
        self.heard = 0  # wakes that came through Realtime
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

    def wake(self, source: Wake) -> None:
        WAKES.labels(source).inc()
        if source in (Wake.REALTIME, Wake.SUBSCRIBED):
            self._woken = True
        self._hint.set()

    def wait(self, at_most_seconds: float | None = None) -> None:
        """Returns on a hint, or when the timer (or `at_most_seconds`, if that is sooner) is over. One thread's alone."""
        timer = self._settings.poll_interval_connected_seconds if self.connected else self._settings.poll_interval_seconds
        source = Wake.TIMER
        if self._look_again:
            timer, source = SECOND_LOOK_SECONDS, Wake.SECOND_LOOK
        if not self._hint.wait(timer if at_most_seconds is None else min(timer, at_most_seconds)):
            WAKES.labels(source).inc()
        self._hint.clear()
        self._look_again, self._woken = self._woken, False

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._task = self._loop.create_task(self._listen_for_ever())
        try:
            self._loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            pass
        finally:
            self._loop.run_until_complete(self._end_farewells())
            for task in asyncio.all_tasks(self._loop):
                task.cancel()
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    async def _end_farewells(self) -> None:
        if self._farewells:
            await asyncio.wait(self._farewells, timeout=FAREWELL_SECONDS)

    async def _listen_for_ever(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                reason = await self._listen()
            except Exception as error:  # noqa: BLE001  whatever the socket does, the timer goes on and we try again
                reason = f"{type(error).__name__}: {error}"
            if self.connected:
                pause = FIRST_PAUSE_SECONDS
                self._connected.clear()
                self.wake(Wake.LOST)  # so that the relaxed timer is replaced by the strict one
            else:
                pause = min(pause * 2, MAX_PAUSE_SECONDS)
            jittered = pause * random.uniform(0.5, 1)  # noqa: S311  so that a fleet does not return as one
            log.warning("realtime_lost", reason=reason, retry_in_seconds=round(jittered, 1))
            await asyncio.sleep(jittered)
            REALTIME_RECONNECTS.inc()

    async def _listen(self) -> str:
        """One connection, from join to loss; returns why it was lost."""
        lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        joined: set[str] = set()

        def on_state(topic: str, state: RealtimeSubscribeStates, error: Exception | None) -> None:
            if lost.done():
                return  # a client that was given up already may still be told what it asked for
            if state is not RealtimeSubscribeStates.SUBSCRIBED:
                lost.set_result(f"{state.value}: {error}")
                return
            joined.add(topic)
            if len(joined) == len(self._topics):
                log.info("realtime_subscribed")
                self._connected.set()
                self.wake(Wake.SUBSCRIBED)

        client = AsyncRealtimeClient(
            f"{self._settings.supabase_url}/realtime/v1",
            token=self._settings.supabase_service_role_key.get_secret_value(),
            auto_reconnect=False,
            max_retries=1,
        )
        beats: asyncio.Task[str] | None = None
        try:
            async with asyncio.timeout(JOIN_SECONDS):
                for topic in self._topics:
                    channel = client.channel(topic, PRIVATE)
                    channel.on_broadcast("wake", lambda _: self._hear())
                    channel.on_broadcast("cancel", self._cancel)
                    await channel.subscribe(partial(on_state, topic))
            beats = asyncio.create_task(self._beat(client))
            await asyncio.wait({lost, beats}, return_when=asyncio.FIRST_COMPLETED)
            return lost.result() if lost.done() else beats.result()
        finally:
            lost.cancel()
            if beats:
                beats.cancel()
            # aside: a server that is silent does not answer the farewell either
            farewell = asyncio.create_task(client.close())
            self._farewells.add(farewell)
            farewell.add_done_callback(self._farewells.discard)

    async def _beat(self, client: AsyncRealtimeClient) -> str:
        """Asks the server for a sign of life now and then, and returns when there was none in time."""
        answered = asyncio.Event()
        replies = HeartbeatReplies(client, HEARTBEAT_TOPIC)
        replies.heard = answered.set
        client.channels[HEARTBEAT_TOPIC] = replies
        while True:
            answered.clear()
            try:
                async with asyncio.timeout(self._heartbeat_seconds):
                    await client.send(Message(topic=HEARTBEAT_TOPIC, event="heartbeat", payload={}, ref="heartbeat"))
                    await answered.wait()
            except TimeoutError:
                return "silent"
            await asyncio.sleep(self._heartbeat_seconds)

    def _hear(self) -> None:
        self.heard += 1
        self.wake(Wake.REALTIME)

    def _cancel(self, message: Any) -> None:
        try:
            self._on_cancel(UUID(str(message["payload"]["id"])))
        except (KeyError, TypeError, ValueError):
            log.warning("cancel_not_understood")
