"""Hostile servers, real ones: TLS on loopback, which only the injected policy lets through."""

from __future__ import annotations

import gzip
import itertools
import logging
import socket
import socketserver
import ssl
import struct
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import trustme
from PIL import Image

from ourvidz_sdxl.errors import ReferenceInvalid, ReferenceUnreachable
from ourvidz_sdxl.fetch import Deadline, Internet, Limits, fetch_reference, tls_until
from ourvidz_sdxl.reference import DAMAGED, INCOMPLETE, NOT_AN_IMAGE, TOO_LARGE, decode_reference

HOST = "pictures.test"  # exists in no DNS (RFC 6761), so that only a pinned connection can get anywhere
URL = f"https://{HOST}/a.png?token=secret"
IMAGE = b"\x89PNG and so on"
OK = b"HTTP/1.1 200 OK\r\n"
KILOBYTE = b"x" * 1024

Answer = Callable[[ssl.SSLSocket], None]


class Server(socketserver.ThreadingTCPServer):
    """`hello` sees the bare connection; `answer` is called after the handshake, when the request has been read."""

    daemon_threads = True

    def __init__(self, tls: ssl.SSLContext, answer: Answer | None = None, *, hello: Callable[[Any], object] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), socketserver.BaseRequestHandler)
        self.tls, self.answer, self.hello = tls, answer, hello
        self.end = threading.Event()
        self.connections = 0
        self.requests: list[bytes] = []
        self.bytes_sent = 0

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def finish_request(self, request: Any, client_address: Any) -> None:
        self.connections += 1
        with suppress(OSError):  # the client leaves when it has had enough: that is what the tests are about
            if self.hello is not None:
                self.hello(request)
            if self.answer is not None:
                with self.tls.wrap_socket(request, server_side=True) as connection:
                    received = b""
                    while not received.endswith(b"\r\n\r\n"):
                        received += connection.recv(4096)
                    self.requests.append(received)
                    self.answer(connection)

    def drip(self, send: Callable[[bytes], Any], content: bytes, then: bytes) -> None:
        """`content` at once, then `then` a byte at a time, over and over."""
        send(content)
        for position in itertools.count():
            if self.end.wait(0.02):
                return
            send(then[position % len(then)].to_bytes())

    def pour(self, connection: ssl.SSLSocket, content: bytes, then: bytes) -> None:
        """`content`, then `then` without end."""
        connection.sendall(content)
        while not self.end.is_set():
            connection.sendall(then)
            self.bytes_sent += len(then)


@contextmanager
def running(server: Server) -> Iterator[Server]:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.end.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


def server_tls(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


@pytest.fixture(scope="module")
def tls(authority: trustme.CA) -> ssl.SSLContext:
    return server_tls(authority.issue_cert(HOST))


class Fetch:
    def __init__(self, ca_file: Path) -> None:
        self.ca_file = ca_file
        self.asked: list[str] = []
        self.answers: Iterator[list[str]] = itertools.repeat(["127.0.0.1"])

    def resolve(self, host: str) -> list[str]:
        self.asked.append(host)
        return next(self.answers)

    def __call__(self, server: Server, **limits: Any) -> bytes:
        internet = Internet(
            resolve=self.resolve,
            is_public=lambda address: address.startswith("127."),
            port=server.port,
            ca_file=str(self.ca_file),
            sleep=lambda _: None,
        )
        return fetch_reference(URL, limits=Limits(**{"seconds": 5.0, **limits}), internet=internet)


@pytest.fixture
def fetch(ca_file: Path) -> Fetch:
    return Fetch(ca_file)


def saying(content: bytes) -> Answer:
    return lambda connection: connection.sendall(content)


def with_length(content: bytes) -> bytes:
    return b"Content-Length: %d\r\n\r\n%b" % (len(content), content)


# The connection


def test_the_connection_goes_to_the_judged_address_and_tls_to_the_name(
    fetch: Fetch, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere")
    names: list[str] = []
    tls = server_tls(authority.issue_cert(HOST))
    tls.sni_callback = lambda _socket, name, _context: names.append(name)
    with running(Server(tls, saying(OK + with_length(IMAGE)))) as server:
        assert fetch(server) == IMAGE
    assert (names, fetch.asked) == ([HOST], [HOST])
    [request] = server.requests
    assert request.startswith(b"GET /a.png?token=secret HTTP/1.1\r\n")
    assert request.count(b"\r\nHost: pictures.test\r\n") == 1
    assert b"Cookie" not in request
    assert b"Authorization" not in request


def test_a_name_that_turns_bad_later_is_not_asked_again(fetch: Fetch, tls: ssl.SSLContext) -> None:
    fetch.answers = iter([["127.0.0.1"], ["10.0.0.1"]])
    with running(Server(tls, saying(OK + with_length(IMAGE)))) as server:
        assert fetch(server) == IMAGE
    assert fetch.asked == [HOST]


def test_a_name_that_turns_bad_between_redirects_is_refused(fetch: Fetch, tls: ssl.SSLContext) -> None:
    fetch.answers = iter([["127.0.0.1"], ["10.0.0.1"]])
    with (
        running(Server(tls, saying(b"HTTP/1.1 302 Found\r\nLocation: /b.png\r\nContent-Length: 0\r\n\r\n"))) as server,
        pytest.raises(ReferenceInvalid, match="public server"),
    ):
        fetch(server)
    assert server.connections == 1


def test_after_a_dead_address_comes_the_next(fetch: Fetch, tls: ssl.SSLContext) -> None:
    fetch.answers = itertools.repeat(["127.0.0.2", "127.0.0.1"])  # nobody listens on the first
    with running(Server(tls, saying(OK + with_length(IMAGE)))) as server:
        assert fetch(server, connect_seconds=0.2) == IMAGE


@pytest.mark.parametrize("fault", ["other name", "unknown authority", "expired"])
def test_a_wrong_certificate_is_refused_at_once(fault: str, fetch: Fetch, authority: trustme.CA) -> None:
    certificate = {
        "other name": lambda: authority.issue_cert("other.test", "127.0.0.1"),
        "unknown authority": lambda: trustme.CA().issue_cert(HOST),
        "expired": lambda: authority.issue_cert(HOST, not_after=datetime(2020, 1, 1, tzinfo=UTC)),
    }[fault]()
    with (
        running(Server(server_tls(certificate), saying(OK + with_length(IMAGE)))) as server,
        pytest.raises(ReferenceInvalid) as caught,
    ):
        fetch(server)
    assert caught.value.user_message == "The reference's server has no valid certificate."
    assert (caught.value.retryable, server.connections, server.requests) == (False, 1, [])


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x15\x03\x03\x00\x02\x02\x28", b"\x15\x03\x01\x00\x02\x02\x46"],
    ids=["plain HTTP", "handshake failure", "protocol version"],
)
def test_a_server_without_the_tls_that_we_speak_is_refused_at_once(answer: bytes, fetch: Fetch, tls: ssl.SSLContext) -> None:
    with running(Server(tls, hello=lambda bare: (bare.recv(4096), bare.sendall(answer)))) as server:
        with pytest.raises(ReferenceInvalid) as caught:
            fetch(server)
        assert caught.value.user_message == "The reference's server does not speak TLS as it must."
        assert (caught.value.retryable, server.connections) == (False, 1)


# Time


@pytest.mark.parametrize(
    ("content", "then"),
    [
        (b"", OK + b"X: y\r\n"),
        (OK + b"X: ", b"y"),
        (OK, b"X: y\r\n"),
        (OK + b"\r\n", b"x"),
        (OK + b"Content-Length: 1000000\r\n\r\n", b"x"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"0"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n"),
        (b"HTTP/1.1 302 Found\r\nLocation: /b.png\r\n", b"X: y\r\n"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
    ids=["status", "header", "headers", "body", "sized body", "chunks", "chunk size", "trailer", "redirect", "continue"],
)
def test_a_slow_drip_ends_with_the_deadline(content: bytes, then: bytes, fetch: Fetch, tls: ssl.SSLContext) -> None:
    server = Server(tls)
    server.answer = lambda connection: server.drip(connection.sendall, content, then)
    with running(server):
        assert_ends_in_time(fetch, server)


@pytest.mark.parametrize("content", [b"", b"\x16\x03\x03\x40\x00"], ids=["nothing", "a record of 16 KiB"])
def test_a_slow_handshake_ends_with_the_deadline(content: bytes, fetch: Fetch, tls: ssl.SSLContext) -> None:
    server = Server(tls)
    server.hello = lambda bare: server.drip(bare.sendall, content, b"\x02") if content else server.end.wait()
    with running(server):
        assert_ends_in_time(fetch, server)


def test_a_handshake_gets_only_what_the_connection_left_over() -> None:
    here, there = socket.socketpair()
    there.sendall(b"an answer is there already, and is not even read")
    with here, there, pytest.raises(TimeoutError):
        tls_until(Deadline(ends=1.0, clock=lambda: 1.0)).wrap_socket(here, server_hostname=HOST)


def test_a_slow_tls_record_ends_with_the_deadline(fetch: Fetch, tls: ssl.SSLContext) -> None:
    server = Server(tls)

    def half_a_record(connection: ssl.SSLSocket) -> None:
        connection.sendall(OK)
        bare = connection.detach()  # from here on past TLS: the head of an application data record, and never the whole of it
        with socket.socket(fileno=bare) as below:
            server.drip(below.sendall, b"\x17\x03\x03\x40\x00", b"\x00")

    server.answer = half_a_record
    with running(server):
        assert_ends_in_time(fetch, server)


def assert_ends_in_time(fetch: Fetch, server: Server) -> None:
    started = time.monotonic()
    with pytest.raises(ReferenceUnreachable) as caught:
        fetch(server, seconds=0.3)
    assert 0.3 <= time.monotonic() - started < 3.0
    assert caught.value.user_message == "The reference image took longer than 0.3 seconds."
    assert server.connections == 1


# Size

CAP = 256 * 1024
BUFFERS = 16 * 1024 * 1024  # what the kernel may hold on both sides of a loopback connection


@pytest.mark.parametrize(
    ("content", "then"),
    [
        (OK + b"\r\n", KILOBYTE),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"400\r\n" + KILOBYTE + b"\r\n"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n7fffffffffffffff\r\n", KILOBYTE),
        (OK + b"Content-Length: 1000000000000\r\n\r\n", KILOBYTE),
    ],
    ids=["until close", "chunks", "one chunk", "declared"],
)
def test_an_endless_body_is_cut_at_the_cap(content: bytes, then: bytes, fetch: Fetch, tls: ssl.SSLContext) -> None:
    server = Server(tls)
    server.answer = lambda connection: server.pour(connection, content, then)
    with running(server), pytest.raises(ReferenceInvalid) as caught:
        fetch(server, max_bytes=CAP)
    assert caught.value.user_message == "The reference image is too large: 0.25 MiB at most."
    assert (caught.value.retryable, server.connections) == (False, 1)
    assert server.bytes_sent < CAP + BUFFERS


def test_the_endless_body_of_a_redirect_is_not_read(fetch: Fetch, tls: ssl.SSLContext) -> None:
    server = Server(tls)
    server.answer = lambda connection: server.pour(connection, b"HTTP/1.1 302 Found\r\nLocation: /b.png\r\n\r\n", KILOBYTE)
    with running(server), pytest.raises(ReferenceInvalid, match="redirects more than 3 times"):
        fetch(server)
    assert server.connections == 4
    assert server.bytes_sent < 4 * BUFFERS


@pytest.mark.parametrize("then", [b"X: y\r\n", KILOBYTE], ids=["many headers", "one long header"])
def test_endless_headers_end(then: bytes, fetch: Fetch, tls: ssl.SSLContext) -> None:
    server = Server(tls)
    server.answer = lambda connection: server.pour(connection, OK + b"X: ", then)
    with running(server), pytest.raises(ReferenceInvalid):
        fetch(server)


@pytest.mark.parametrize("declared", [True, False])
def test_a_gzip_bomb_stays_packed(declared: bool, fetch: Fetch, tls: ssl.SSLContext) -> None:
    bomb = gzip.compress(b"\0" * 64 * CAP)
    head = OK + (b"Content-Encoding: gzip\r\n" if declared else b"")
    with running(Server(tls, saying(head + with_length(bomb)))) as server:
        if declared:
            with pytest.raises(ReferenceInvalid, match="compressed"):
                fetch(server, max_bytes=CAP)
        else:
            assert fetch(server, max_bytes=CAP) == bomb


# Broken answers


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"HTTP/1.1 20",
        OK + b"Content-Length: 100\r\n\r\nhalf",
        OK + b"Transfer-Encoding: chunked\r\n\r\n64\r\nhalf",
        OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\nnothing\r\n",
    ],
    ids=["nothing", "status", "length", "chunk", "chunks", "chunk size"],
)
def test_a_truncated_answer_is_asked_for_again(content: bytes, fetch: Fetch, tls: ssl.SSLContext) -> None:
    with running(Server(tls, saying(content))) as server, pytest.raises(ReferenceUnreachable) as caught:
        fetch(server)
    assert caught.value.user_message == "The reference image could not be reached."
    assert server.connections == 3


def test_a_handshake_that_is_cut_off_is_tried_again(fetch: Fetch, tls: ssl.SSLContext) -> None:
    with running(Server(tls, hello=lambda bare: bare.recv(1))) as server, pytest.raises(ReferenceUnreachable):
        fetch(server)
    assert server.connections == 3


def test_a_truncated_answer_may_be_whole_the_next_time(fetch: Fetch, tls: ssl.SSLContext) -> None:
    contents = iter([OK + b"Content-Length: 100\r\n\r\nhalf", OK + with_length(IMAGE)])
    with running(Server(tls, lambda connection: connection.sendall(next(contents)))) as server:
        assert fetch(server) == IMAGE


@pytest.mark.parametrize("length", [b"-1", b"1, 2", b"x", b"9" * 5000], ids=["negative", "two", "letter", "huge"])
def test_a_length_that_is_no_length_is_survived(length: bytes, fetch: Fetch, tls: ssl.SSLContext) -> None:
    with (
        running(Server(tls, saying(OK + b"Content-Length: " + length + b"\r\n\r\n" + IMAGE))) as server,
        suppress(ReferenceInvalid),
    ):
        assert fetch(server) == IMAGE


def test_a_redirect_loop_ends(fetch: Fetch, tls: ssl.SSLContext) -> None:
    with running(Server(tls, saying(b"HTTP/1.1 301 Moved\r\nLocation: " + URL.encode() + b"\r\n\r\n"))) as server:
        with pytest.raises(ReferenceInvalid, match="redirects more than 3 times") as caught:
            fetch(server)
        assert not caught.value.retryable
    assert server.connections == 4


def test_a_server_that_speaks_something_else_is_asked_again(fetch: Fetch, tls: ssl.SSLContext) -> None:
    with running(Server(tls, saying(b"220 mail.pictures.test ESMTP\r\n"))) as server, pytest.raises(ReferenceUnreachable):
        fetch(server)
    assert server.connections == 3


# What is served: the type in the header is never asked, the bytes are


def png(width: int, height: int, *, more: bytes = b"") -> bytes:
    """A PNG that claims to be of that size, with chunks of a stranger's behind the head and hardly a pixel."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(more)) if more else b""
    return b"\x89PNG\r\n\x1a\n" + head + text + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def encoded(kind: str, size: tuple[int, int] = (64, 64), **options: Any) -> bytes:
    content = BytesIO()
    noise = Image.effect_noise(size, 50).convert("RGB")
    noise.save(content, kind, **options)
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>Sign in first</html>", NOT_AN_IMAGE),
        (b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>', NOT_AN_IMAGE),
        (b"%PDF-1.7", NOT_AN_IMAGE),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", NOT_AN_IMAGE),  # Pillow would call Ghostscript
        (encoded("GIF"), NOT_AN_IMAGE),
        (encoded("TIFF"), NOT_AN_IMAGE),
        (encoded("BMP"), NOT_AN_IMAGE),
        (gzip.compress(encoded("PNG")), NOT_AN_IMAGE),
        (b"", NOT_AN_IMAGE),
        (encoded("PNG")[:-2000], INCOMPLETE),
        (encoded("JPEG")[:500], INCOMPLETE),
        (encoded("WEBP")[:500], INCOMPLETE),
        (png(64, 64), DAMAGED),
        (png(8_000, 8_000), TOO_LARGE),
        (png(30_000, 30_000), TOO_LARGE),  # beyond Pillow's own limit, which comes first
        (png(2**31 - 1, 1), TOO_LARGE),
        (png(64, 64, more=b"\0" * 2**27), DAMAGED),
    ],
    ids=[
        *("html", "svg", "pdf", "postscript", "gif", "tiff", "bmp", "gzip", "empty", "half a png", "half a jpeg", "half a webp"),
        *("no pixels", "bomb", "large bomb", "long bomb", "text bomb"),
    ],
)
def test_what_is_no_picture_is_refused_in_words(content: bytes, message: str, fetch: Fetch, tls: ssl.SSLContext) -> None:
    answer = OK + b"Content-Type: image/png\r\n" + with_length(content)
    tracemalloc.start()
    try:
        with running(Server(tls, saying(answer))) as server, pytest.raises(ReferenceInvalid) as caught:
            decode_reference(fetch(server))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (caught.value.user_message, caught.value.retryable, server.connections) == (message, False, 1)
    assert peak_bytes < 20 * 1024 * 1024


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("declared", [b"image/png", b"text/html", b"application/octet-stream"])
def test_a_picture_is_a_picture_whatever_it_is_called(kind: str, declared: bytes, fetch: Fetch, tls: ssl.SSLContext) -> None:
    with running(Server(tls, saying(OK + b"Content-Type: " + declared + b"\r\n" + with_length(encoded(kind))))) as server:
        assert decode_reference(fetch(server)).size == (64, 64)


def test_of_a_moving_picture_the_first_frame_is_taken(fetch: Fetch, tls: ssl.SSLContext) -> None:
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")] * 50
    content = BytesIO()
    frames[0].save(content, "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    with running(Server(tls, saying(OK + with_length(content.getvalue())))) as server:
        assert decode_reference(fetch(server)).getpixel((9, 9)) == (255, 0, 0)


def test_an_odd_header_does_not_bring_the_url_into_the_log(
    fetch: Fetch, tls: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    """urllib3 warns about it with the whole URL, and a URL may be signed."""
    caplog.set_level(logging.DEBUG)
    with running(Server(tls, saying(OK + b"no header at all\r\n" + with_length(IMAGE)))) as server, suppress(ReferenceInvalid):
        fetch(server)
    assert server.requests
    assert "secret" not in caplog.text
