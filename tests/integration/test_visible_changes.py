"""Realtime sends an event for each visible change of a job and for nothing else: a heartbeat is none.

Heard by supabase-py as the user's frontend would, over `postgres_changes` and over the broadcasts of `user:<id>`.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest
from realtime import RealtimePostgresChangesListenEvent, RealtimeSubscribeStates
from supabase import AsyncClient, Client

from ourvidz_sdxl.local import EmbeddedSupabase
from tests.integration.conftest import Database, User, sign_up
from tests.integration.test_isolation import join, listener
from tests.integration.test_queue_functions import TARGET, Caller, image
from tests.pace import TIMEOUT_SECONDS

HEARTBEATS = 10
OF_THE_QUEUE = {
    "lease_token",
    "leased_by",
    "lease_expires_at",
    "token",
    "worker",
    "expires_at",
    "claims",
    "crashes",
    "fair_key",
    "cost",
}


@pytest.fixture
def user(supabase: EmbeddedSupabase) -> User:
    return replace(sign_up(supabase), target=TARGET)


async def watch_changes(client: AsyncClient, heard: asyncio.Queue[dict[str, Any]]) -> None:
    """Joins a channel with every change of public.jobs; returns when the database's side is ready, too."""
    ready = asyncio.Event()
    channel = client.channel("changes").on_system(lambda _: ready.set())
    every = RealtimePostgresChangesListenEvent.All
    channel.on_postgres_changes(every, lambda told: heard.put_nowait(dict(told["data"])), table="jobs", schema="public")
    await channel.subscribe()
    async with asyncio.timeout(TIMEOUT_SECONDS):
        await ready.wait()


def work(caller: Caller, job_id: str) -> str:
    """One job as its worker does it. Returns the token of its lease."""
    token = str(uuid4())
    caller.claim(token)
    for _ in range(HEARTBEATS):
        assert caller.heartbeat(job_id, token) == "ok"
    assert caller.finish(job_id, token, "completed", p_images=[image()]) == "ok"
    return token


def test_postgres_changes_tells_each_change_of_state_once_and_no_heartbeat(
    db: Database, user: User, service: Client, supabase: EmbeddedSupabase
) -> None:
    async def scene() -> tuple[str, list[dict[str, Any]]]:
        heard: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        client = await listener(supabase, user.access_token)
        await watch_changes(client, heard)
        job = await asyncio.to_thread(user.insert)
        token = await asyncio.to_thread(work, Caller(service), job["id"])
        events: list[dict[str, Any]] = []
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while not events or events[-1]["record"]["status"] != "completed":  # in the order of their commits
                events.append(await heard.get())
        await client.realtime.close()
        return token, events

    token, events = asyncio.run(scene())
    assert [(event["type"], event["record"]["status"], event["record"]["progress"]) for event in events] == [
        ("INSERT", "queued", 0),
        ("UPDATE", "processing", 0),
        ("UPDATE", "completed", 100),
    ]
    for event in events:
        assert not OF_THE_QUEUE & event["record"].keys()
        assert token not in str(event)


def test_the_users_topic_tells_the_same(db: Database, user: User, service: Client, supabase: EmbeddedSupabase) -> None:
    async def scene() -> list[dict[str, Any]]:
        heard: list[Any] = []
        client = await listener(supabase, user.access_token)
        assert await join(client, f"user:{user.id}", heard) is RealtimeSubscribeStates.SUBSCRIBED
        job = await asyncio.to_thread(user.insert)
        await asyncio.to_thread(work, Caller(service), job["id"])
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while not heard or heard[-1]["payload"]["record"]["status"] != "completed":
                await asyncio.sleep(0.01)  # lets the socket's task run
        await client.realtime.close()
        return [message["payload"]["record"] for message in heard]

    records = asyncio.run(scene())
    assert [record["status"] for record in records] == ["queued", "processing", "completed"]
    assert records[-1] == user.job(records[-1]["id"]), "no more and no less than its row"
