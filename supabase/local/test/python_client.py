"""What the worker does with supabase-py, against the embedded Supabase and the scratch project of these tests.

python python_client.py API_URL PUBLISHABLE_KEY SECRET_KEY DB_URL   (exit code 0: everything was as it should be)
"""

import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable
from typing import Any, TypeVar
from uuid import uuid4

import httpx
import psycopg
from realtime import RealtimeSubscribeStates
from storage3.exceptions import StorageApiError
from supabase import AsyncClient, acreate_client

TIMEOUT_SECONDS = 10.0

E = TypeVar("E", bound=Exception)


async def subscribe(channel: Any) -> None:
    """Subscribes, or raises what the server said."""
    outcome: asyncio.Future[tuple[Any, Any]] = asyncio.get_running_loop().create_future()

    def told(state: Any, error: Any) -> None:
        if not outcome.done():
            outcome.set_result((state, error))

    await channel.subscribe(told)
    state, error = await asyncio.wait_for(outcome, TIMEOUT_SECONDS)
    if state != RealtimeSubscribeStates.SUBSCRIBED:
        raise RuntimeError(f"{state}: {error}")


async def next_of(queue: "asyncio.Queue[Any]") -> Any:
    return await asyncio.wait_for(queue.get(), TIMEOUT_SECONDS)


async def refused(kind: type[E], work: Awaitable[Any]) -> E:
    """The error that work must end with."""
    try:
        await work
    except kind as refusal:
        return refusal
    raise AssertionError(f"no {kind.__name__}")


async def auth_and_rest(anyone: AsyncClient, service: AsyncClient) -> str:
    signed_up = await anyone.auth.sign_up({"email": f"{uuid4()}@example.com", "password": "correct horse"})
    assert signed_up.session is not None
    assert signed_up.user is not None
    assert signed_up.user.created_at.tzinfo is not None
    made = await service.auth.admin.create_user(
        {"email": f"{uuid4()}@example.com", "password": "correct horse", "email_confirm": True}
    )
    assert made.user.email_confirmed_at is not None
    await anyone.table("notes").insert({"body": "hers", "data": {"a": [1]}}, returning="minimal").execute()
    rows = (await anyone.table("notes").select("id,user_id,data").execute()).data
    assert [(row["user_id"], row["data"]) for row in rows] == [(signed_up.user.id, {"a": [1]})]
    assert (await service.rpc("add", {"a": 2, "b": 3}).execute()).data == 5
    return str(signed_up.user.id)


async def broadcast(service: AsyncClient, db: psycopg.AsyncConnection[Any]) -> str:
    heard: asyncio.Queue[Any] = asyncio.Queue()
    channel = service.channel("worker:sdxl", {"config": {"private": True, "broadcast": {"ack": True, "self": True}}})
    channel.on_broadcast("wake", heard.put_nowait)
    channel.on_broadcast("hello", heard.put_nowait)
    await subscribe(channel)
    times = []
    for n in range(100):
        begun = time.perf_counter()
        await db.execute("select realtime.send(jsonb_build_object('n', %s::int), 'wake', 'worker:sdxl', true)", (n,))
        message = await next_of(heard)
        times.append((time.perf_counter() - begun) * 1000)
        assert (message["event"], message["payload"]["n"]) == ("wake", n), message
    await channel.send_broadcast("hello", {"from": "python"})
    assert (await next_of(heard))["payload"] == {"from": "python"}
    await service.remove_channel(channel)
    return f"supabase-py: broadcast from the database: median {statistics.median(times):.1f} ms, worst {max(times):.1f} ms"


async def private_is_private(anyone: AsyncClient, user_id: str) -> None:
    await anyone.realtime.set_auth((await anyone.auth.get_session()).access_token)  # type: ignore[union-attr]
    await subscribe(anyone.channel(f"user:{user_id}", {"config": {"private": True}}))
    refusal = await refused(RuntimeError, subscribe(anyone.channel(f"user:{uuid4()}", {"config": {"private": True}})))
    assert "Unauthorized: You do not have permissions to read" in str(refusal), refusal
    await anyone.remove_all_channels()


async def changes(service: AsyncClient, db: psycopg.AsyncConnection[Any], user_id: str) -> None:
    heard: asyncio.Queue[Any] = asyncio.Queue()
    channel = service.channel("changes")
    channel.on_postgres_changes("*", heard.put_nowait, table="notes", schema="public", filter=f"user_id=eq.{user_id}")
    await subscribe(channel)
    await db.execute("insert into public.notes (user_id, body) values (%s, 'told')", (user_id,))
    change = await next_of(heard)
    assert (change["data"]["type"], change["data"]["record"]["body"]) == ("INSERT", "told"), change
    await db.execute("update public.notes set amount = 7 where body = 'told'")
    change = await next_of(heard)
    assert (change["data"]["type"], change["data"]["record"]["amount"]) == ("UPDATE", 7), change
    await db.execute("delete from public.notes where body = 'told'")
    await service.remove_channel(channel)


async def storage(anyone: AsyncClient, service: AsyncClient, user_id: str) -> None:
    papers = service.storage.from_("papers")
    path = f"{user_id}/job/1-0.png"
    await papers.upload(path, b"\x89PNG", {"content-type": "image/png", "upsert": "true"})
    await papers.upload(path, b"\x89PNG2", {"content-type": "image/png", "upsert": "true"})
    refusal = await refused(StorageApiError, papers.upload(path, b"x", {"content-type": "image/png"}))
    assert str(refusal.status) == "409", vars(refusal)
    assert await papers.download(path) == b"\x89PNG2"
    assert await anyone.storage.from_("papers").download(path) == b"\x89PNG2"
    signed = await papers.create_signed_url(path, 60)
    async with httpx.AsyncClient() as http:
        answer = await http.get(signed["signedURL"])
        assert (answer.content, answer.headers["content-type"]) == (b"\x89PNG2", "image/png"), answer
        many = await papers.create_signed_urls([path], 60)
        assert (await http.get(many[0]["signedURL"])).content == b"\x89PNG2"
    assert [entry["name"] for entry in await papers.list(f"{user_id}/job")] == ["1-0.png"]
    copied, moved = f"{user_id}/a (1) + b's.png", f"{user_id}/moved.png"
    assert (await papers.copy(path, copied))["Key"] == f"papers/{copied}"
    assert (await papers.info(copied))["size"] == 5
    await papers.move(copied, moved)
    assert [await papers.exists(one) for one in (copied, moved)] == [False, True]
    place = await anyone.storage.from_("papers").create_signed_upload_url(copied)
    await anyone.storage.from_("papers").upload_to_signed_url(copied, place["token"], b"hi", {"content-type": "text/plain"})
    assert await papers.download(copied) == b"hi"
    refusal = await refused(StorageApiError, papers.upload(f"{user_id}/ü.png", b"x", {"content-type": "image/png"}))
    assert (refusal.code, str(refusal.status)) == ("InvalidKey", "400"), vars(refusal)
    assert len(await papers.remove([path, copied, moved])) == 3


async def main(api_url: str, publishable_key: str, secret_key: str, db_url: str) -> None:
    anyone = await acreate_client(api_url, publishable_key)
    service = await acreate_client(api_url, secret_key)
    async with await psycopg.AsyncConnection.connect(db_url, autocommit=True) as db:
        user_id = await auth_and_rest(anyone, service)
        print(await broadcast(service, db))
        await private_is_private(anyone, user_id)
        await changes(service, db, user_id)
        await storage(anyone, service, user_id)
    await anyone.auth.sign_out()
    await service.remove_all_channels()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
