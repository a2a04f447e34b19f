"""Whose server we talk to, how often, how long, and what the user reads when we do not."""

from __future__ import annotations

import logging
import re
import socket
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest
import requests
import responses

from ourvidz_sdxl.errors import ReferenceInvalid, ReferenceUnreachable
from ourvidz_sdxl.fetch import NOT_A_URL, NOT_PUBLIC, Internet, Limits, fetch_reference, is_public, resolve

URL = "https://pictures.test/a.png?token=secret"
IMAGE = b"\x89PNG and so on"
PUBLIC = "93.184.216.34"


@dataclass
class World:
    """An internet in which every name is `PUBLIC` unless `names` says otherwise, and time passes in sleep only."""

    names: dict[str, Sequence[str]] = field(default_factory=dict)
    now: float = 1000.0
    asked: list[str] = field(default_factory=list)
    slept: list[float] = field(default_factory=list)
    slow_names_seconds: float = 0.0

    def resolve(self, host: str) -> Sequence[str]:
        self.asked.append(host)
        self.now += self.slow_names_seconds
        return self.names.get(host, [PUBLIC])

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    @property
    def internet(self) -> Internet:
        return Internet(resolve=self.resolve, clock=lambda: self.now, sleep=self.sleep)


@pytest.fixture(autouse=True)
def web() -> Iterator[responses.RequestsMock]:
    """Nothing here ever connects."""
    with responses.RequestsMock() as mock:
        yield mock


@pytest.fixture
def world() -> World:
    return World()


def refusal(fetch: Callable[[], object]) -> ReferenceInvalid:
    """The error that `fetch` ends with, after a look for what must never be in one."""
    with pytest.raises(ReferenceInvalid) as caught:
        fetch()
    shown = "".join(traceback.format_exception(caught.value)) + caught.value.user_message
    assert "secret" not in shown
    assert "pictures.test" not in shown
    assert caught.value.code == "invalid_reference"
    assert caught.value.__context__ is None  # requests' own errors quote the URL
    return caught.value


# Addresses


@pytest.mark.parametrize("address", [PUBLIC, "8.8.8.8", "100.128.0.1", "172.32.0.1", "2606:2800:220:1::1", "::ffff:8.8.8.8"])
def test_global_unicast_is_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "100.64.0.1",
        "100.100.100.200",  # Alibaba's metadata
        "127.0.0.1",
        "127.255.255.254",
        "168.63.129.16",  # Azure's platform
        "169.254.169.254",  # the others' metadata
        "169.254.170.2",  # Amazon's for containers
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.8",
        "192.0.0.170",  # tells a network's NAT64 prefix
        "192.0.0.192",  # Oracle's metadata, the older
        "192.0.2.1",
        "192.88.99.1",
        "192.168.1.1",
        "198.18.0.1",
        "198.19.255.255",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::7f00:1",  # IPv4-compatible 127.0.0.1
        "::ffff:127.0.0.1",
        "::ffff:a9fe:a9fe",
        "::ffff:100.100.100.200",
        "::ffff:0:127.0.0.1",  # IPv4-translated, RFC 2765
        "64:ff9b::a9fe:a9fe",  # NAT64 of the metadata address
        "64:ff9b::7f00:1",
        "64:ff9b::808:808",  # of a public one, too: who needs it has the public one
        "64:ff9b:1::1",
        "100::1",
        "2001::1",  # Teredo
        "2001:2::1",
        "2001:10::1",
        "2001:20::1",
        "2001:db8::1",
        "2002:7f00:1::",  # 6to4 of 127.0.0.1
        "2002:a9fe:a9fe::",
        "3fff::1",
        "4000::1",
        "5f00::1",
        "fc00::1",
        "fd00:ec2::254",  # Amazon's metadata
        "fd20:ce::254",  # Google's
        "fe80::1",
        "fe80::1%1",
        "fec0::1",
        "ff02::1",
        "ff0e::1",
    ],
)
def test_everything_else_is_not(address: str, world: World) -> None:
    assert not is_public(address)
    world.names["pictures.test"] = [address]
    error = refusal(lambda: fetch_reference(URL, internet=world.internet))
    assert (error.user_message, error.retryable, world.slept) == (NOT_PUBLIC, False, [])


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0177.0.0.1",
        "127.1",
        "0",
        "0251.0376.0251.0376",  # 169.254.169.254
        "2852039166",
        "１２７.０.０.１",  # full-width digits
        "①②⑦.0.0.1",
        "127。0。0。1",
        "localhost",
        "localhost.",
        "127.0.0.1.",
        "%31%32%37.0.0.1",
        "127.0.0.1%00.pictures.test",
        "0x7f.0x0.0x0.0x1",
        "0x00000000000007f.1",
        "017700000001",
        "10.1",
        "169.254.43518",
        "[::1]",
        "[::]",
        "[::127.0.0.1]",
        "[::ffff:0x7f.1]",
        "[fe80::1%25lo]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[0:0:0:0:0:ffff:a9fe:a9fe]",
        "[64:ff9b::a9fe:a9fe]",
        "[2002:7f00:1::]",
        "[fe80::1]",
        "[fd00:ec2::254]",
    ],
)
def test_no_spelling_of_a_bad_address_gets_through_the_real_resolver(host: str) -> None:
    assert not refusal(lambda: fetch_reference(f"https://{host}/")).retryable


@pytest.mark.parametrize("spelling", ["127.0.0.1", "2130706433", "0x7f.1", "0177.0.0.1", "127.1"])
def test_literals_are_resolved_like_names(spelling: str) -> None:
    assert resolve(spelling) == ["127.0.0.1"]


def test_one_bad_address_among_good_ones_condemns_the_host(world: World) -> None:
    world.names["pictures.test"] = [PUBLIC, "10.0.0.1", "8.8.8.8"]
    assert refusal(lambda: fetch_reference(URL, internet=world.internet)).user_message == NOT_PUBLIC


def test_an_unknown_name_reads_like_a_private_one(world: World) -> None:
    def unknown(host: str) -> Sequence[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    error = refusal(lambda: fetch_reference(URL, internet=Internet(resolve=unknown, sleep=world.sleep)))
    assert (error.user_message, error.retryable, world.slept) == (NOT_PUBLIC, False, [])


def test_a_name_server_without_an_answer_is_asked_again(world: World, web: responses.RequestsMock) -> None:
    web.get(URL, body=IMAGE)
    answers: list[Sequence[str]] = [[PUBLIC]]

    def moody(host: str) -> Sequence[str]:
        if not world.slept:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return answers.pop()

    assert fetch_reference(URL, internet=Internet(resolve=moody, sleep=world.sleep)) == IMAGE


# URLs


@pytest.mark.parametrize(
    "url",
    [
        "",
        "pictures.test/a.png",
        "http://pictures.test/a.png",
        "ftp://pictures.test/a.png",
        "file:///etc/passwd",
        "data:image/png;base64,AAAA",
        "javascript:alert(1)",
        "https:",
        "https://",
        "https:///a.png",
        "https://.pictures.test/",
        "https://*.test/",
        "https://pictures.test:80/",
        "https://pictures.test:8443/",
        "https://pictures.test:-1/",
        "https://pictures.test:99999/",
        "https://pictures.test:x/",
        "https://user@pictures.test/",
        "https://user:secret@pictures.test/",
        "https://pictures.test@10.0.0.1/",
        "https://[::1/",
        "https://[v1.x]/",
        "https://" + "ü" * 70 + ".test/",
    ],
)
def test_only_plain_https_urls_are_taken(url: str, world: World) -> None:
    error = refusal(lambda: fetch_reference(url, internet=world.internet))
    assert (error.user_message, error.retryable, world.asked) == (NOT_A_URL, False, [])


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://PICTURES.test:443/a.png", "pictures.test"),
        ("https://bücher.test/a.png", "xn--bcher-kva.test"),
        ("https://faß.test/", "xn--fa-hia.test"),
        ("https://pictures.test\\@10.0.0.1/", "pictures.test"),
        ("https://pictures.test#@10.0.0.1/", "pictures.test"),
        ("https://pictures.test?@10.0.0.1/", "pictures.test"),
    ],
)
def test_the_host_that_is_judged_is_the_host_that_is_asked(url: str, host: str, world: World, web: responses.RequestsMock) -> None:
    web.add_callback(responses.GET, re.compile("https://.*"), callback=lambda _: (200, {}, IMAGE))
    assert fetch_reference(url, internet=world.internet) == IMAGE
    assert world.asked == [host]
    assert web.calls[0].request.headers["Host"] in (host, f"{host}:443")


def test_what_is_sent_is_fixed(world: World, web: responses.RequestsMock, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://10.0.0.1:3128")
    web.get(URL, body=IMAGE)
    fetch_reference(URL, internet=world.internet)
    call = web.calls[0].request
    assert dict(call.headers) == {
        "User-Agent": "ourvidz-sdxl",
        "Accept": "image/png, image/jpeg, image/webp",
        "Accept-Encoding": "identity",
        "Host": "pictures.test",
    }
    assert vars(call)["req_kwargs"] == {"stream": True, "timeout": (3.0, 15.0), "verify": True}


# Redirects


def moved(web: responses.RequestsMock, url: str, location: str, status: int = 302) -> None:
    web.get(url, status=status, headers={"Location": location, "Set-Cookie": "a=b"})


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_followed_without_cookies(status: int, world: World, web: responses.RequestsMock) -> None:
    moved(web, URL, "//cdn.test/b.png", status)
    moved(web, "https://cdn.test/b.png", "c.png")
    web.get("https://cdn.test/c.png", body=IMAGE)
    assert fetch_reference(URL, internet=world.internet) == IMAGE
    assert world.asked == ["pictures.test", "cdn.test", "cdn.test"]
    assert all("Cookie" not in call.request.headers for call in web.calls)


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("http://pictures.test/a.png", NOT_A_URL),
        ("file:///etc/passwd", NOT_A_URL),
        ("https://user@cdn.test/", NOT_A_URL),
        ("https://cdn.test:8443/", NOT_A_URL),
        ("https://[::1/", "The reference image could not be downloaded."),
        ("https://metadata.test/", NOT_PUBLIC),
    ],
)
def test_a_redirect_passes_the_same_gate(location: str, message: str, world: World, web: responses.RequestsMock) -> None:
    world.names["metadata.test"] = ["169.254.169.254"]
    moved(web, URL, location)
    error = refusal(lambda: fetch_reference(URL, internet=world.internet))
    assert (error.user_message, error.retryable, len(web.calls)) == (message, False, 1)


@pytest.mark.parametrize(
    "location",
    [
        "//169.254.169.254/latest/meta-data/",
        "https://2852039166/",
        "https://0xa9.0xfe.0xa9.0xfe/",
        "https://[::ffff:169.254.169.254]/",
        "https://[64:ff9b::a9fe:a9fe]/",
        "https://[fd00:ec2::254]/",
        "https://pictures.test:443@169.254.169.254/",
        "https://①⑥⑨.②⑤④.①⑥⑨.②⑤④/",
    ],
)
def test_no_redirect_leads_to_the_metadata_server(location: str, world: World, web: responses.RequestsMock) -> None:
    """By the real resolver, for all but the first name."""
    moved(web, URL, location)
    internet = Internet(resolve=lambda host: [PUBLIC] if host == "pictures.test" else resolve(host), sleep=world.sleep)
    assert not refusal(lambda: fetch_reference(URL, internet=internet)).retryable
    assert len(web.calls) == 1


@pytest.mark.parametrize("location", ["https:169.254.169.254/", "\\\\169.254.169.254/", "169.254.169.254", "?//169.254.169.254/"])
def test_what_only_looks_like_another_host_is_a_place_on_the_same(location: str, world: World, web: responses.RequestsMock) -> None:
    moved(web, URL, location)
    web.get(re.compile("https://pictures.test/.+"), body=IMAGE)
    assert fetch_reference(URL, internet=world.internet) == IMAGE
    assert world.asked == ["pictures.test"] * 2


def test_redirects_are_counted(world: World, web: responses.RequestsMock) -> None:
    moved(web, URL, URL)
    error = refusal(lambda: fetch_reference(URL, internet=world.internet))
    assert (error.user_message, error.retryable, len(web.calls)) == ("The reference URL redirects more than 3 times.", False, 4)


# Answers


@pytest.mark.parametrize("status", [201, 204, 206, 302, 304, 400, 401, 403, 404, 405, 406, 410, 415, 416, 451, 501, 505])
def test_what_will_not_get_better_costs_no_retry(status: int, world: World, web: responses.RequestsMock) -> None:
    web.get(URL, status=status, body=b"no")
    error = refusal(lambda: fetch_reference(URL, internet=world.internet))
    assert error.user_message == f"The reference image could not be downloaded ({status})."
    assert (error.retryable, len(web.calls), world.slept) == (False, 1, [])


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 520])
def test_what_may_pass_is_tried_three_times_and_may_be_tried_again(status: int, world: World, web: responses.RequestsMock) -> None:
    web.get(URL, status=status)
    error = refusal(lambda: fetch_reference(URL, internet=world.internet))
    assert isinstance(error, ReferenceUnreachable)
    assert error.user_message == f"The reference image could not be downloaded ({status})."
    assert (error.retryable, len(web.calls), len(world.slept)) == (True, 3, 2)


@pytest.mark.parametrize(
    "failure",
    [requests.ConnectionError(URL), requests.ReadTimeout(URL), requests.ConnectTimeout(URL), requests.exceptions.SSLError(URL)],
)
def test_a_broken_connection_may_pass(failure: Exception, world: World, web: responses.RequestsMock) -> None:
    web.get(URL, body=failure)
    error = refusal(lambda: fetch_reference(URL, internet=world.internet))
    assert (error.user_message, error.retryable, len(web.calls)) == ("The reference image could not be reached.", True, 3)


def test_a_second_attempt_may_succeed(world: World, web: responses.RequestsMock) -> None:
    web.get(URL, status=503)
    web.get(URL, body=IMAGE)
    assert fetch_reference(URL, internet=world.internet) == IMAGE


# Bounds

TEN = Limits(max_bytes=10)


def test_the_cap_itself_is_allowed(world: World, web: responses.RequestsMock) -> None:
    web.get(URL, body=b"x" * 10)
    assert fetch_reference(URL, limits=TEN, internet=world.internet) == b"x" * 10


@pytest.mark.parametrize("with_length", [True, False])
def test_a_larger_body_is_refused(with_length: bool, world: World, web: responses.RequestsMock) -> None:
    web.get(URL, body=b"x" * 11, auto_calculate_content_length=with_length)
    error = refusal(lambda: fetch_reference(URL, limits=TEN, internet=world.internet))
    assert "too large" in error.user_message
    assert (error.retryable, len(web.calls)) == (False, 1)


def test_the_user_reads_the_cap_in_mib(world: World, web: responses.RequestsMock) -> None:
    web.get(URL, headers={"Content-Length": str(20 * 1024 * 1024 + 1)})
    error = refusal(lambda: fetch_reference(URL, internet=world.internet))
    assert error.user_message == "The reference image is too large: 20 MiB at most."


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "gzip, gzip"])
def test_a_compressed_body_is_not_unpacked(coding: str, world: World, web: responses.RequestsMock) -> None:
    web.get(URL, body=b"\x1f\x8b", headers={"Content-Encoding": coding})
    assert "compressed" in refusal(lambda: fetch_reference(URL, internet=world.internet)).user_message


def test_names_count_against_the_deadline(world: World, web: responses.RequestsMock) -> None:
    moved(web, URL, URL)
    world.slow_names_seconds = 6.0
    error = refusal(lambda: fetch_reference(URL, internet=world.internet))
    assert error.user_message == "The reference image took longer than 15 seconds."
    assert (error.retryable, len(world.asked), len(web.calls)) == (True, 3, 2)


def test_a_name_server_that_never_answers_is_left_alone(world: World) -> None:
    end = threading.Event()

    def silent(host: str) -> Sequence[str]:
        end.wait()
        return []

    error = refusal(lambda: fetch_reference(URL, limits=Limits(seconds=0.05), internet=Internet(resolve=silent)))
    end.set()
    assert "took longer" in error.user_message


def test_retries_end_after_a_few_seconds(world: World, web: responses.RequestsMock) -> None:
    web.get(URL, status=503)
    limits = Limits(attempts=10**6)
    refusal(lambda: fetch_reference(URL, limits=limits, internet=world.internet))
    assert 0 < sum(world.slept) < limits.retry_seconds < limits.seconds


def test_after_a_slow_failure_there_is_no_retry(world: World, web: responses.RequestsMock) -> None:
    web.get(URL, status=503)
    world.slow_names_seconds = 5.0
    assert refusal(lambda: fetch_reference(URL, internet=world.internet)).retryable
    assert (len(web.calls), world.slept) == (1, [])


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("retry_after", "calls", "waits"),
    [
        ("0", 3, (0, 4)),
        ("2", 3, (4, 5)),
        ("4", 2, (4, 5)),
        ("5", 1, (0, 0)),
        ("9" * 4000, 1, (0, 0)),
        ("Tue, 01 Dec 2026 03:00:00 GMT", 1, (0, 0)),
        ("soon", 1, (0, 0)),
    ],
    ids=["now", "two", "four", "five", "huge", "date", "nonsense"],
)
def test_a_server_that_says_when_is_not_asked_before_and_never_waited_for_long(
    status: int, retry_after: str, calls: int, waits: tuple[int, int], world: World, web: responses.RequestsMock
) -> None:
    web.get(URL, status=status, headers={"Retry-After": retry_after})
    assert refusal(lambda: fetch_reference(URL, internet=world.internet)).retryable
    assert len(web.calls) == calls
    assert waits[0] <= sum(world.slept) <= waits[1]


def test_timeouts_shrink_with_what_is_left(world: World, web: responses.RequestsMock) -> None:
    moved(web, URL, URL)
    world.slow_names_seconds = 3.5
    refusal(lambda: fetch_reference(URL, internet=world.internet))
    timeouts = [vars(call.request)["req_kwargs"]["timeout"] for call in web.calls]
    assert timeouts == [(3.0, 11.5), (3.0, 8.0), (3.0, 4.5), (1.0, 1.0)]


def test_nothing_is_logged(world: World, web: responses.RequestsMock, caplog: pytest.LogCaptureFixture) -> None:
    web.get(URL, status=503)
    with caplog.at_level(logging.DEBUG):
        refusal(lambda: fetch_reference(URL, internet=world.internet))
    assert "secret" not in caplog.text
