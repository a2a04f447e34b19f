"""A proxy between a worker and its Supabase that breaks what it is told to break: one fault at a time, for one test.

(`tests/chaos/network.py` is the other one: everything at random, from a seed.)
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import aiohttp
from aiohttp import WSMsgType, web

HOP_HEADERS = {"connection", "keep-alive", "transfer-encoding", "content-length", "content-encoding", "host", "date", "server"}
RPC = "/rest/v1/rpc/"
OBJECT = "/storage/v1/object/"
Act = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(kw_only=True)
class Fault:
    """For requests whose method and path match; `times` runs out, and None never does."""

    name: str
    pattern: re.Pattern[str]
    act: Act
    times: int | None

    def takes(self, request: web.Request) -> bool:
        if self.times == 0 or not self.pattern.search(f"{request.method} {request.path}"):
            return False
        if self.times is not None:
            self.times -= 1
        return True


@dataclass
class Socket:
    """One websocket of a client, and the same one at the server."""

    client: web.WebSocketResponse
    request: web.Request
    server: aiohttp.ClientWebSocketResponse


@dataclass
class FaultProxy:
    """`with FaultProxy(supabase.url) as proxy:` a worker gets `proxy.url` as its SUPABASE_URL. Faults can be added at any time."""

    upstream: str
    url: str = ""
    counts: Counter[str] = field(default_factory=Counter)  # of faults
    sockets_asked_for: int = 0
    _faults: list[Fault] = field(default_factory=list)
    _sockets: list[Socket] = field(default_factory=list)
    _silent: bool = False
    _refusing: bool = False
    _refusing_joins: bool = False
    _swallowed: set[str] = field(default_factory=set)

    def __enter__(self) -> FaultProxy:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)
        self._thread.start()
        self._wait_for(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self._wait_for(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    # What it can be told. Patterns are regular expressions on "METHOD /path".

    def lose_replies(self, pattern: str, *, times: int | None = 1) -> None:
        """The server does what it is asked, and nobody hears of it."""

        async def act(request: web.Request) -> web.StreamResponse:
            await self._forward(request)
            return self._cut(request)

        self._add("reply lost", pattern, act, times)

    def answer(self, pattern: str, status: int, body: dict[str, object] | None = None, *, times: int | None = None) -> None:
        """Answers itself, in the words of PostgREST and Storage, and does not ask the server."""
        words = body or {"code": str(status), "message": "planted", "statusCode": str(status), "error": "planted"}

        async def act(_: web.Request) -> web.StreamResponse:
            return web.json_response(words, status=status, headers={"Retry-After": "1"} if status == 429 else None)

        self._add(f"answered {status}", pattern, act, times)

    def delay(self, pattern: str, seconds: float, *, times: int | None = 1) -> None:
        async def act(request: web.Request) -> web.StreamResponse:
            answer = await self._forward(request)
            await asyncio.sleep(seconds)
            return answer

        self._add("delayed", pattern, act, times)

    def cut_off(self, pattern: str = "") -> None:
        """Every request that matches ends before it reaches the server."""

        async def act(request: web.Request) -> web.StreamResponse:
            return self._cut(request)

        self._add("cut off", pattern, act, None)

    def heal(self) -> None:
        self._faults.clear()
        self._swallowed.clear()
        self._silent = self._refusing = self._refusing_joins = False

    def close_sockets(self, code: int) -> None:
        """1006 is an end without a close frame."""
        self._wait_for(self._close_sockets(code))

    def silence_sockets(self) -> None:
        """Connections stay open, those that come too; nothing passes in either direction, and no ping is answered."""
        self._silent = True

    def refuse_sockets(self) -> None:
        """Ends those that there are, and lets no new one in."""
        self._refusing = True
        self.close_sockets(1006)

    def refuse_joins(self) -> None:
        """Sockets open, and no topic is to be had on them."""
        self._refusing_joins = True

    def swallow(self, event: str) -> None:
        """Broadcasts of this event never arrive."""
        self._swallowed.add(event)

    # How it does it.

    def _add(self, name: str, pattern: str, act: Act, times: int | None) -> None:
        self._faults.append(Fault(name=name, pattern=re.compile(pattern), act=act, times=times))

    def _wait_for(self, work: Awaitable[None]) -> None:
        async def awaited() -> None:
            await work

        asyncio.run_coroutine_threadsafe(awaited(), self._loop).result(20)

    async def _start(self) -> None:
        self._session = aiohttp.ClientSession(
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=120),
            connector=aiohttp.TCPConnector(force_close=True),  # the server may just have closed one kept alive
        )
        app = web.Application(client_max_size=1 << 28)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _stop(self) -> None:
        self._silent = False
        await self._close_sockets(1001)
        await self._runner.cleanup()
        await self._session.close()  # last: a request that came meanwhile would be answered with an error of the proxy's own

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return await self._tunnel(request)
        for fault in self._faults:
            if fault.takes(request):
                self.counts[fault.name] += 1
                return await fault.act(request)
        return await self._forward(request)

    def _cut(self, request: web.Request) -> web.StreamResponse:
        if request.transport:
            request.transport.abort()
        return web.Response()

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_HEADERS}
        url = f"{self.upstream}{request.raw_path}"
        try:
            async with self._session.request(
                request.method, url, headers=headers, data=await request.read(), allow_redirects=False
            ) as answer:
                kept = {
                    name: value for name, value in answer.headers.items() if name.lower() not in HOP_HEADERS - {"content-encoding"}
                }
                return web.Response(status=answer.status, body=await answer.read(), headers=kept)
        except (aiohttp.ClientError, TimeoutError) as error:
            return self._away(error)

    def _away(self, error: Exception) -> web.StreamResponse:
        self.counts[f"away: {error!r}"] += 1
        return web.json_response({"code": "502", "message": "the server is away"}, status=502)

    async def _tunnel(self, request: web.Request) -> web.StreamResponse:
        self.sockets_asked_for += 1
        if self._refusing:
            self.counts["socket refused"] += 1
            return self._cut(request)
        try:
            server = await self._session.ws_connect(f"{self.upstream}{request.raw_path}", max_msg_size=0)
        except aiohttp.WSServerHandshakeError as refusal:
            return web.Response(status=refusal.status)
        except (aiohttp.ClientError, TimeoutError) as error:
            return self._away(error)
        async with server:
            client = web.WebSocketResponse(autoping=False, autoclose=False, max_msg_size=0)
            await client.prepare(request)
            socket = Socket(client, request, server)
            self._sockets.append(socket)
            try:
                to_server = asyncio.create_task(self._from_client(client, server))
                to_client = asyncio.create_task(self._from_server(server, client))
                await asyncio.wait([to_server, to_client], return_when=asyncio.FIRST_COMPLETED)
                to_server.cancel()
                to_client.cancel()
            finally:
                self._sockets.remove(socket)
            if not client.closed:
                await client.close(code=server.close_code or 1000)
            return client

    async def _from_client(self, client: web.WebSocketResponse, server: aiohttp.ClientWebSocketResponse) -> None:
        async for message in client:
            if self._silent:
                continue
            if message.type is WSMsgType.PING:
                await client.pong(message.data)
            elif message.type is WSMsgType.TEXT:
                await server.send_str(message.data)
            elif message.type is WSMsgType.BINARY:
                await server.send_bytes(message.data)

    async def _from_server(self, server: aiohttp.ClientWebSocketResponse, client: web.WebSocketResponse) -> None:
        async for message in server:
            if self._silent:
                continue
            if message.type is WSMsgType.BINARY:  # as protocol 2.0 sends broadcasts, which supabase-js speaks
                await client.send_bytes(message.data)
            elif message.type is WSMsgType.TEXT and not self._swallows(message.data):
                await client.send_str(self._refusal(message.data) if self._refusing_joins else message.data)

    def _refusal(self, text: str) -> str:
        """In place of any reply on a topic; only heartbeats are answered as ever."""
        message = json.loads(text)
        if message["event"] == "phx_reply" and message["topic"] != "phoenix":
            message["payload"] = {"status": "error", "response": {"reason": "planted"}}
            self.counts["join refused"] += 1
        return json.dumps(message)

    def _swallows(self, text: str) -> bool:
        if not self._swallowed:
            return False
        message = json.loads(text)
        payload = message["payload"] if isinstance(message, dict) else message[-1]
        swallowed = payload.get("event") in self._swallowed
        self.counts["broadcast swallowed"] += swallowed
        return swallowed

    async def _close_sockets(self, code: int) -> None:
        for socket in list(self._sockets):
            self.counts[f"closed {code}"] += 1
            if code == 1006 and socket.request.transport:
                socket.request.transport.abort()
            else:
                await socket.client.close(code=code, message=b"planted")
