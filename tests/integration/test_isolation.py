"""Another user sees nothing of a job: no row, no image, no object, no history, no message on its topics."""

import asyncio
import base64
from io import BytesIO
from typing import Any

import pytest
from PIL import Image
from realtime import RealtimeSubscribeStates
from storage3.exceptions import StorageApiError
from supabase import AsyncClient, acreate_client

from ourvidz_sdxl.local import EmbeddedSupabase
from tests.integration.conftest import Database, User
from tests.pace import TIMEOUT_SECONDS
from tests.processes import WorkerProcess


async def listener(supabase: EmbeddedSupabase, access_token: str) -> AsyncClient:
    client = await acreate_client(supabase.url, supabase.publishable_key)
    await client.realtime.set_auth(access_token)
    return client


EVENTS = ("INSERT", "UPDATE", "DELETE", "wake", "cancel", "progress")


async def join(client: AsyncClient, topic: str, heard: list[Any]) -> RealtimeSubscribeStates:
    """Joins the private topic with a listener for every event that we send; returns how it ended."""
    channel = client.channel(topic, {"config": {"private": True, "broadcast": None, "presence": None}})
    for event in EVENTS:
        channel.on_broadcast(event, heard.append)
    state: asyncio.Future[RealtimeSubscribeStates] = asyncio.get_running_loop().create_future()

    def on_state(new: RealtimeSubscribeStates, _error: Exception | None) -> None:
        if not state.done():
            state.set_result(new)

    await channel.subscribe(on_state)
    async with asyncio.timeout(TIMEOUT_SECONDS):
        return await state


def test_rows_images_history_and_objects(db: Database, user: User, other: User, session_worker: WorkerProcess) -> None:
    job = user.insert(steps=2)
    session_worker.wait_for("job_completed", job_id=job["id"])
    [shown] = user.images(job["id"])
    for table in ("jobs", "job_images", "job_events"):
        assert user.client.table(table).select("*").execute().data, table
        assert other.client.table(table).select("*").execute().data == [], table
    bucket = other.client.storage.from_(shown["bucket"])
    with pytest.raises(StorageApiError):
        bucket.download(shown["path"])
    with pytest.raises(StorageApiError):
        bucket.create_signed_url(shown["path"], 60)
    assert bucket.list(f"{user.id}/{job['id']}") == []


def test_an_object_is_unseen_until_its_job_publishes_it(db: Database, user: User, supabase: EmbeddedSupabase, service: Any) -> None:
    path = f"{user.id}/22222222-2222-4222-8222-222222222222/1-0.png"
    service.storage.from_("sdxl_image_fast").upload(path, b"unfinished", {"content-type": "image/png"})
    with pytest.raises(StorageApiError):
        user.client.storage.from_("sdxl_image_fast").download(path)


@pytest.mark.parametrize("previews", [True, False])
def test_whoever_watches_a_job_sees_its_steps_and_what_it_looks_like(
    user: User, supabase: EmbeddedSupabase, previews: bool
) -> None:
    job = user.insert(prompt="a red circle", steps=8, target_worker="previews", batch_size=3)

    async def scene() -> list[Any]:
        heard: list[Any] = []
        owner = await listener(supabase, user.access_token)
        assert await join(owner, f"job:{job['id']}", heard) is RealtimeSubscribeStates.SUBSCRIBED

        def paint() -> None:
            with WorkerProcess(supabase, target_worker="previews", previews=previews) as worker:
                worker.wait_for("job_completed", job_id=job["id"])

        await asyncio.to_thread(paint)
        await owner.realtime.close()
        return [message["payload"] for message in heard if message["event"] == "progress"]

    told = asyncio.run(scene())
    assert told
    assert all(one["id"] == job["id"] and 0 < one["step"] <= one["steps"] == 8 for one in told)
    pictures = [one["preview"] for one in told if "preview" in one]
    assert bool(pictures) is previews
    for picture in pictures:
        assert picture["index"] in range(3)
        image = Image.open(BytesIO(base64.b64decode(picture["webp"])))
        assert (image.format, image.size) == ("WEBP", (16, 16))


def test_no_message(db: Database, user: User, other: User, supabase: EmbeddedSupabase, session_worker: WorkerProcess) -> None:
    job = user.insert(status="queued", target_worker="nobody")

    async def scene() -> tuple[list[Any], list[Any]]:
        own: list[Any] = []
        foreign: list[Any] = []
        owner, stranger = await listener(supabase, user.access_token), await listener(supabase, other.access_token)
        assert await join(owner, f"user:{user.id}", own) is RealtimeSubscribeStates.SUBSCRIBED
        assert await join(owner, f"job:{job['id']}", own) is RealtimeSubscribeStates.SUBSCRIBED
        assert await join(stranger, f"user:{other.id}", foreign) is RealtimeSubscribeStates.SUBSCRIBED
        for topic in (f"user:{user.id}", f"job:{job['id']}", "worker:sdxl"):
            assert await join(stranger, topic, foreign) is not RealtimeSubscribeStates.SUBSCRIBED, topic
        await asyncio.to_thread(user.insert, target_worker="nobody")
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while not own:
                await asyncio.sleep(0.01)  # lets the socket's task run
        await owner.realtime.close()
        await stranger.realtime.close()
        return own, foreign

    own, foreign = asyncio.run(scene())
    assert [message["payload"]["operation"] for message in own] == ["INSERT"]
    assert own[0]["payload"]["record"].keys() == user.job(own[0]["payload"]["record"]["id"]).keys()
    assert foreign == []
