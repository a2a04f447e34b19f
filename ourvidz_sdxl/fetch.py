"""An https URL from a stranger -> its bytes, without lending the stranger our network, our memory or our time.

The host is resolved here, its addresses are judged, and the connection goes to one that was judged: a name that resolves elsewhere
a moment later (DNS rebinding) gains nothing. Redirects pass the same gate. No `requests.Session` takes part: nothing comes from the
environment (proxies, netrc), no cookie travels on, and nobody reads a redirect's body, which a Session does without a bound.

A URL may be signed: neither it nor its host appears in a message, an exception or a log line.
"""

from __future__ import annotations

import itertools
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from math import inf
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.exceptions import ChunkedEncodingError, RequestException
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_random_exponential
from urllib3.exceptions import HTTPError

from ourvidz_sdxl.errors import ReferenceInvalid, ReferenceUnreachable

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

logging.getLogger("urllib3").setLevel(logging.ERROR)  # its warning about odd headers quotes the whole URL

HEADERS = {
    "User-Agent": "ourvidz-sdxl",
    "Accept": "image/png, image/jpeg, image/webp",
    "Accept-Encoding": "identity",  # these formats are compressed already, and what is never unpacked is no bomb
}
CHUNK_BYTES = 64 * 1024
NOT_A_URL = "The reference URL must be an https:// address on port 443 without a user name."
NOT_PUBLIC = "The reference URL does not lead to a public server."  # said of unknown names too: nobody maps our network with it
PASSING = (requests.ConnectionError, requests.Timeout, ChunkedEncodingError, TimeoutError, socket.gaierror)
CUT_OFF = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)  # TLS errors of the connection below
# Statuses that another attempt may not meet: Request Timeout, Too Early, Too Many Requests; and 5xx but Not Implemented,
# HTTP Version Not Supported, Variant Also Negotiates, Loop Detected, Not Extended (IANA's registry of status codes).
PASSING_STATUSES = {408, 425, 429, *range(500, 600)} - {501, 505, 506, 508, 510}

# Not `ipaddress.is_global`: Python 3.11 takes multicast, NAT64, 6to4 and 3fff::/20 for global, and its patches differ.
# From IANA's registries of special-purpose addresses (RFC 6890), and for IPv6 of global unicast assignments.
GLOBAL_V6 = ip_network("2000::/3")  # all that was ever given out: RFC 4291
RESERVED = tuple(
    ip_network(block)
    for block in (
        *("0.0.0.0/8", "127.0.0.0/8"),  # this network, loopback: RFC 1122
        *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),  # private: RFC 1918
        "100.64.0.0/10",  # carrier-grade NAT: RFC 6598
        "169.254.0.0/16",  # link-local, and with it cloud metadata: RFC 3927
        "192.0.0.0/24",  # protocol assignments: RFC 6890
        *("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24"),  # documentation: RFC 5737
        "192.88.99.0/24",  # 6to4 relays: RFC 7526
        "198.18.0.0/15",  # benchmarks: RFC 2544
        *("224.0.0.0/4", "240.0.0.0/4"),  # multicast: RFC 5771; reserved, broadcast: RFC 1112
        "168.63.129.16/32",  # Azure's platform, as its machines see it: Microsoft, "What is IP address 168.63.129.16?"
        "2001::/23",  # protocol assignments: RFC 2928; Teredo: RFC 4380; ORCHID: RFC 7343
        *("2001:db8::/32", "3fff::/20"),  # documentation: RFC 3849, RFC 9637
        "2002::/16",  # 6to4, which holds any IPv4 address: RFC 3056
    )
)


def is_public(address: str) -> bool:
    """Whether the literal `address` is global unicast; a mapped one (::ffff:0:0/96, RFC 4291) is judged as the IPv4 that it is."""
    ip = ip_address(address)
    if ip.version == 6:
        ip = ip.ipv4_mapped or ip
    return (ip.version == 4 or ip in GLOBAL_V6) and not any(ip in block for block in RESERVED)


def resolve(host: str) -> list[str]:
    """The addresses of a name, or of a literal in any spelling that the system knows (0x7f.1, 2130706433), in RFC 6724 order."""
    return [str(entry[4][0]) for entry in socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM)]


@dataclass(frozen=True, kw_only=True)
class Limits:
    seconds: float = 15.0  # for everything together: names, connections, redirects, repetitions, the body
    retry_seconds: float = 5.0  # no repetition begins later than this after the first request: the queue has the next ones
    connect_seconds: float = 3.0  # for one address, so that a dead one leaves time for the next
    max_bytes: int = 20 * 1024 * 1024  # the reference bucket's limit
    redirects: int = 3
    attempts: int = 3


@dataclass(frozen=True, kw_only=True)
class Internet:
    """What a fetch needs of the world. Tests put in their own names, clock, certificate authority and port."""

    resolve: Callable[[str], Sequence[str]] = resolve
    is_public: Callable[[str], bool] = is_public
    port: int = 443  # where the connection goes; a URL may name no other than 443
    ca_file: str | None = None  # None: certifi's
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


class Unavailable(ReferenceUnreachable):
    """Answer of a server that may answer otherwise later."""

    def __init__(self, message: str = "", *, user_message: str | None = None, retry_after: str = "") -> None:
        """`retry_after` is the header of RFC 9110, 10.2.3; a date is taken as later than any retry here."""
        super().__init__(message, user_message=user_message)
        delay = retry_after.strip()
        self.retry_after_seconds = float(delay) if delay.isdecimal() else (inf if delay else 0.0)


@dataclass(frozen=True, kw_only=True)
class Deadline:
    ends: float
    clock: Callable[[], float]

    @property
    def left(self) -> float:
        return self.ends - self.clock()

    def timeout(self) -> float:
        """How many seconds the next wait may take. Raises TimeoutError when none are left."""
        if (left := self.left) <= 0:
            raise TimeoutError
        return left


def fetch_reference(url: str, *, limits: Limits = Limits(), internet: Internet = Internet()) -> bytes:
    """The body at `url`, at most `limits.max_bytes`; whether it is an image is for `decode_reference` to find out.

    Raises ReferenceInvalid where another attempt cannot end differently, and ReferenceUnreachable where it can.
    """
    now = internet.clock()
    deadline = Deadline(ends=now + limits.seconds, clock=internet.clock)
    retries = Deadline(ends=now + min(limits.seconds, limits.retry_seconds), clock=internet.clock)
    backoff = wait_random_exponential(multiplier=0.25, max=2)

    def wait(state: RetryCallState) -> float:
        error = state.outcome and state.outcome.exception()
        return max(backoff(state), error.retry_after_seconds if isinstance(error, Unavailable) else 0)

    def is_enough(state: RetryCallState) -> bool:
        return state.attempt_number >= limits.attempts or state.upcoming_sleep >= retries.left

    retrying = Retrying(
        retry=retry_if_exception_type(ReferenceUnreachable),
        wait=wait,
        stop=is_enough,
        sleep=internet.sleep,
        reraise=True,
    )
    turns = itertools.count()
    return retrying(lambda: _fetch_once(url, next(turns), deadline, limits, internet))


def _fetch_once(url: str, turn: int, deadline: Deadline, limits: Limits, internet: Internet) -> bytes:
    kind: type[ReferenceInvalid] = ReferenceUnreachable
    try:
        return _follow(url, turn, deadline, limits, internet)
    except PASSING as error:
        reason, message = type(error).__name__, "The reference image could not be reached."
        if deadline.left <= 0:
            message = f"The reference image took longer than {limits.seconds:g} seconds."
        elif tls := _tls_error(error):
            kind, message = ReferenceInvalid, "The reference's server does not speak TLS as it must."
            if isinstance(tls, ssl.SSLCertVerificationError):
                message = "The reference's server has no valid certificate."
    except (RequestException, HTTPError, ValueError) as error:
        kind, reason, message = ReferenceInvalid, type(error).__name__, "The reference image could not be downloaded."
    raise kind(reason, user_message=message)  # out here: in there the library's error, which quotes the URL, would be its context


def _follow(url: str, turn: int, deadline: Deadline, limits: Limits, internet: Internet) -> bytes:
    """Follows redirects to the body. Each `turn` takes the next of a host's addresses, in case the last one was dead."""
    for _ in range(1 + limits.redirects):
        request, host = _prepare(url)
        addresses = _public_addresses(host, deadline, internet)
        adapter = PinnedAdapter(addresses[turn % len(addresses)], internet.port, host, deadline)
        timeout = (min(limits.connect_seconds, deadline.timeout()), deadline.timeout())
        with closing(adapter), adapter.send(request, stream=True, timeout=timeout, verify=internet.ca_file or True) as response:
            if not response.is_redirect:
                return _body(response, deadline, limits)
            url = urljoin(str(request.url), response.headers["Location"])
    raise ReferenceInvalid(user_message=f"The reference URL redirects more than {limits.redirects} times.")


def _prepare(url: str) -> tuple[requests.PreparedRequest, str]:
    """The request, and the host in ASCII (IDNA)."""
    try:
        request = requests.Request("GET", url, headers=HEADERS).prepare()
        parts = urlsplit(str(request.url))
        if parts.scheme == "https" and parts.port in (None, 443) and "@" not in parts.netloc and parts.hostname:
            request.headers["Host"] = parts.netloc
            return request, parts.hostname
    except (RequestException, ValueError):
        pass
    raise ReferenceInvalid(user_message=NOT_A_URL)


def _public_addresses(host: str, deadline: Deadline, internet: Internet) -> Sequence[str]:
    """All addresses of `host`. One that is not public condemns the host: no honest name has both kinds."""
    answer: Future[Sequence[str]] = Future()

    def ask() -> None:
        try:
            answer.set_result(internet.resolve(host))
        except Exception as error:  # noqa: BLE001  raised again by result()
            answer.set_exception(error)

    threading.Thread(target=ask, daemon=True).start()  # getaddrinfo knows no timeout; what it says too late, nobody hears
    try:
        addresses = answer.result(timeout=deadline.timeout())
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            raise
        addresses = ()
    if not addresses or not all(map(internet.is_public, addresses)):
        raise ReferenceInvalid(user_message=NOT_PUBLIC)
    return addresses


class PinnedAdapter(HTTPAdapter):
    """Connects to `address` whatever the URL says, while TLS names, and verifies, `host`."""

    def __init__(self, address: str, port: int, host: str, deadline: Deadline) -> None:
        super().__init__()
        self._target = {"scheme": "https", "host": address, "port": port}
        self._tls = {"server_hostname": host, "ssl_context": tls_until(deadline)}

    def build_connection_pool_key_attributes(self, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The place that requests gives to subclasses for saying where and how to connect."""
        _, tls = super().build_connection_pool_key_attributes(*args, **kwargs)
        return self._target, tls | self._tls


def tls_until(deadline: Deadline) -> ssl.SSLContext:
    """A verifying context whose sockets never wait past the deadline.

    A timeout of requests begins anew with every byte that arrives, in headers as in the body: a byte a second would last for hours.
    """

    class Socket(ssl.SSLSocket):
        def do_handshake(self, block: bool = False) -> None:
            self.settimeout(deadline.timeout())
            super().do_handshake(block)

        def recv_into(self, buffer: WriteableBuffer, nbytes: int | None = None, flags: int = 0) -> int:
            self.settimeout(deadline.timeout())
            return super().recv_into(buffer, nbytes, flags)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # the authorities come with `verify`
    context.sslsocket_class = Socket
    return context


def _body(response: requests.Response, deadline: Deadline, limits: Limits) -> bytes:
    status = response.status_code
    if status != requests.codes.ok:
        message = f"The reference image could not be downloaded ({status})."
        if status in PASSING_STATUSES:
            raise Unavailable(user_message=message, retry_after=response.headers.get("Retry-After", ""))
        raise ReferenceInvalid(user_message=message)
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise ReferenceInvalid(user_message="The reference's server sends it compressed, which is refused.")
    too_large = ReferenceInvalid(user_message=f"The reference image is too large: {limits.max_bytes / 1024**2:g} MiB at most.")
    if int(response.headers.get("Content-Length", 0)) > limits.max_bytes:
        raise too_large
    content = bytearray()
    for chunk in response.iter_content(CHUNK_BYTES):
        deadline.timeout()
        content += chunk
        if len(content) > limits.max_bytes:
            raise too_large
    return bytes(content)


def _tls_error(error: BaseException | None) -> ssl.SSLError | None:
    """The TLS failure behind `error` that every attempt would meet. A connection that was cut off is none."""
    while error is not None and not (isinstance(error, ssl.SSLError) and not isinstance(error, CUT_OFF)):
        error = error.__cause__ or error.__context__
    return error
