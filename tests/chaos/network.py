"""The network between everybody and Supabase, as bad as networks are.

It loses replies after the commit, loses requests, answers for a server that it does not ask, delays, breaks websockets, and cuts a
worker off, whose words then arrive when their time is over.

What happens to the n-th request of a route is a throw of the seed's dice for that route and n.
"""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import h11

HOST = "127.0.0.1"
USERS = "users"  # the way of all users; each worker has one of its own name
CHUNK = 1 << 16
DELAY_SECONDS = 0.8
WEBSOCKET_SECONDS = (5.0, 90.0)
HOP_HEADERS = {b"connection", b"keep-alive", b"transfer-encoding", b"content-length"}

Headers = list[tuple[bytes, bytes]]


class Throw(StrEnum):
    PASS = "pass"
    DROP_REPLY = "drop_reply"  # it is done, and nobody hears of it
    GATEWAY_TIMEOUT = "504_after_commit"  # the same, with an answer
    DROP_REQUEST = "drop_request"
    DELAY = "delay"
    STATUS_429 = "429"
    STATUS_500 = "500"
    STATUS_503 = "503"


# out of 1,000 requests of REST and Storage; the rest passes
SHARES = {
    Throw.DROP_REPLY: 60,
    Throw.GATEWAY_TIMEOUT: 10,
    Throw.DROP_REQUEST: 10,
    Throw.DELAY: 30,
    Throw.STATUS_429: 5,
    Throw.STATUS_500: 5,
    Throw.STATUS_503: 15,
}
OWN_STATUS = {Throw.STATUS_429: 429, Throw.STATUS_500: 500, Throw.STATUS_503: 503}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the database answered to a finish or a heartbeat, whether or not anybody heard it."""

    way: str
    function: str
    job_id: str
    token: str
    outcome: str | None
    verdict: str
    heard: bool


@dataclass(frozen=True, kw_only=True)
class Message:
    """A whole request or response."""

    start: h11.Request | h11.Response
    body: bytes

    @property
    def headers(self) -> Headers:
        return [(name, value) for name, value in self.start.headers if name not in HOP_HEADERS]


def throw(seed: int, route: str, n: int) -> Throw:
    dice = random.Random(f"network {seed} {route} {n}")
    return dice.choices([Throw.PASS, *SHARES], [1000 - sum(SHARES.values()), *SHARES.values()])[0]


def route_of(method: str, path: str) -> str:
    """The path without what is one request's own: ids and queries."""
    return (
        " ".join([method, *urlsplit(path).path.split("/")[1:5]]) if "/rpc/" in path else " ".join([method, *path.split("/")[1:4]])
    )


class Network:
    """`with Network(url, ways, seed=…)`: one port for each way. It behaves until `start` and after `stop`."""

    def __init__(self, url: str, ways: Sequence[str], *, seed: int) -> None:
        self._port = urlsplit(url).port or 80
        self._ways = ways
        self._seed = seed
        self._bad = False
        self._cut_until: dict[str, float] = {}
        self._counts: dict[str, Counter[Throw]] = defaultdict(Counter)
        self._websockets: Counter[str] = Counter()
        self._held = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.urls: dict[str, str] = {}
        self.verdicts: list[Verdict] = []

    def __enter__(self) -> Network:
        self._thread.start()
        self._in_loop(self._listen()).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._in_loop(self._end()).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def start(self) -> None:
        self._bad = True

    def stop(self) -> None:
        self._bad = False

    def cut(self, way: str, seconds: float) -> None:
        """Nothing passes for so long. What was sent meanwhile arrives afterwards, and its answers go nowhere."""
        self._cut_until[way] = time.monotonic() + seconds

    def figures(self) -> dict[str, Any]:
        total: Counter[Throw] = sum(self._counts.values(), Counter())
        lost = total[Throw.DROP_REPLY] + total[Throw.GATEWAY_TIMEOUT]
        finishes = [verdict for verdict in self.verdicts if verdict.function == "finish_job"]
        return {
            "requests": total.total(),
            "replies_dropped_percent": round(100 * lost / max(1, total.total()), 2),
            "faults": {str(name): n for name, n in sorted(total.items())},
            "held_back_by_cuts": self._held,
            "websockets": dict(self._websockets),
            "finish_verdicts": dict(Counter(f"{one.verdict}{'' if one.heard else ', unheard'}" for one in finishes)),
            "heartbeat_verdicts": dict(Counter(one.verdict for one in self.verdicts if one.function == "heartbeat_jobs")),
        }

    def _in_loop(self, work: Any) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _listen(self) -> None:
        self._servers = []
        for way in self._ways:
            server = await asyncio.start_server(partial(self._serve, way), HOST, 0)
            self.urls[way] = f"http://{HOST}:{server.sockets[0].getsockname()[1]}"
            self._servers.append(server)

    async def _end(self) -> None:
        for server in self._servers:
            server.close()
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in others:
                task.cancel()
            await asyncio.wait(others)

    async def _serve(self, way: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of a client, request by request."""
        if task := asyncio.current_task():
            self._tasks.add(task)  # asyncio itself holds tasks weakly
            task.add_done_callback(self._tasks.discard)
        client = h11.Connection(h11.SERVER)
        with suppress(OSError, h11.RemoteProtocolError, asyncio.CancelledError):
            while request := await read_message(client, reader):
                assert isinstance(request.start, h11.Request)
                if any(name == b"upgrade" for name, _ in request.start.headers):
                    await self._tunnel(way, request.start, client.trailing_data[0], reader, writer)
                    break
                answer = await self._exchange(way, request)
                if answer is None:
                    break
                await send_message(client, writer, answer.start, answer.body)
                if client.our_state is not h11.DONE or client.their_state is not h11.DONE:
                    break
                client.start_next_cycle()
        writer.transport.abort()

    async def _exchange(self, way: str, request: Message) -> Message | None:
        """The answer to be given; None where there is to be none."""
        assert isinstance(request.start, h11.Request)
        path = request.start.target.decode()
        thrown = Throw.PASS
        if self._bad and path.startswith(("/rest/", "/storage/")):
            route = route_of(request.start.method.decode(), path)
            thrown = throw(self._seed, route, self._counts[route].total())
            self._counts[route][thrown] += 1
        if (cut := await self._wait_while_cut(way)) and request.start.method == b"GET":
            return None
        if thrown is Throw.DROP_REQUEST:
            return None
        if thrown in OWN_STATUS:
            return own_answer(OWN_STATUS[thrown])
        if thrown is Throw.DELAY:
            await asyncio.sleep(DELAY_SECONDS * random.Random(path).random())
        reader, writer = await asyncio.open_connection(HOST, self._port)
        try:
            server = h11.Connection(h11.CLIENT)
            headers = [*request.headers, (b"connection", b"close")]
            if request.body:
                headers.append((b"content-length", str(len(request.body)).encode()))
            start = h11.Request(method=request.start.method, target=request.start.target, headers=headers)
            await send_message(server, writer, start, request.body)
            answer = await read_message(server, reader)
        finally:
            writer.transport.abort()
        if answer is None:
            return None
        dropped = bool(cut) or thrown in (Throw.DROP_REPLY, Throw.GATEWAY_TIMEOUT)
        self._note(way, path, request.body, answer, heard=not dropped)
        if cut or thrown is Throw.DROP_REPLY:
            return None
        return own_answer(504) if thrown is Throw.GATEWAY_TIMEOUT else answer

    async def _wait_while_cut(self, way: str) -> bool:
        was_cut = False
        while (left := self._cut_until.get(way, 0.0) - time.monotonic()) > 0:
            self._held += not was_cut
            was_cut = True
            await asyncio.sleep(left)
        return was_cut

    async def _tunnel(
        self, way: str, start: h11.Request, sent_already: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """A websocket, until one side closes it or its time is over."""
        self._websockets["opened"] += 1
        await self._wait_while_cut(way)
        dice = random.Random(f"websocket {self._seed} {way} {self._websockets['opened']}")
        server_reader, server_writer = await asyncio.open_connection(HOST, self._port)
        lines = [b"%s %s HTTP/1.1" % (start.method, start.target), *(b"%s: %s" % header for header in start.headers)]
        server_writer.write(b"\r\n".join(lines) + b"\r\n\r\n" + sent_already)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with suppress(OSError):
                while data := await source.read(CHUNK):
                    await self._wait_while_cut(way)
                    sink.write(data)
                    await sink.drain()

        pumps = [asyncio.create_task(pump(reader, server_writer)), asyncio.create_task(pump(server_reader, writer))]
        lifetime = dice.uniform(*WEBSOCKET_SECONDS)
        try:
            ended, _ = await asyncio.wait(pumps, timeout=lifetime, return_when=asyncio.FIRST_COMPLETED)
            self._websockets["ended by a side" if ended else "broken"] += 1
        finally:
            for task in pumps:
                task.cancel()
            server_writer.transport.abort()

    def _note(self, way: str, path: str, body: bytes, answer: Message, *, heard: bool) -> None:
        """Keeps the verdicts that are part of the proof."""
        function = path.rpartition("/")[2]
        assert isinstance(answer.start, h11.Response)
        if answer.start.status_code != 200 or function not in {"finish_job", "heartbeat_jobs"}:
            return
        asked, said = json.loads(body), json.loads(answer.body)
        token, outcome = asked["p_token"], asked.get("p_outcome")
        answers = [(asked["p_id"], said)] if function == "finish_job" else [(row["id"], row["verdict"]) for row in said]
        for job_id, verdict in answers:
            self.verdicts.append(
                Verdict(way=way, function=function, job_id=job_id, token=token, outcome=outcome, verdict=verdict, heard=heard)
            )


def own_answer(status: int) -> Message:
    """What a gateway says for a server that it does not reach."""
    body = json.dumps({"code": str(status), "message": "no luck", "details": None, "hint": None}).encode()
    start = h11.Response(status_code=status, headers=[(b"content-type", b"application/json")])
    return Message(start=start, body=body)


async def read_message(connection: h11.Connection, reader: asyncio.StreamReader) -> Message | None:
    """A whole message of the other side; None where it has closed instead."""
    start: h11.Request | h11.Response | None = None
    body = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(CHUNK))
        elif isinstance(event, h11.Request | h11.Response):
            start = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage) and start:
            return Message(start=start, body=bytes(body))
        elif isinstance(event, h11.ConnectionClosed) or event is h11.PAUSED:
            return None


async def send_message(
    connection: h11.Connection, writer: asyncio.StreamWriter, start: h11.Request | h11.Response, body: bytes
) -> None:
    if isinstance(start, h11.Response):
        headers = [(name, value) for name, value in start.headers if name not in HOP_HEADERS]
        if start.status_code not in (204, 304):
            headers.append((b"content-length", str(len(body)).encode()))
        start = h11.Response(status_code=start.status_code, reason=start.reason, headers=headers)
    data = [connection.send(start), connection.send(h11.Data(data=body)) if body else b"", connection.send(h11.EndOfMessage())]
    writer.write(b"".join(part for part in data if part))
    await writer.drain()
