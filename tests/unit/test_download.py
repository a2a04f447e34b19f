"""The checkpoint from MODEL_URL, from servers that break off, lie, change their minds or refuse."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from ourvidz_sdxl import download
from ourvidz_sdxl.download import CHUNK_BYTES, fetch_model
from ourvidz_sdxl.errors import ModelInvalid, ModelNotDownloaded, SettingsInvalid
from ourvidz_sdxl.settings import Settings

MODEL = bytes(range(256)) * 40_000  # 10 MB
SHA256 = hashlib.sha256(MODEL).hexdigest()
KEY = {"SUPABASE_URL": "http://127.0.0.1:1", "SUPABASE_SERVICE_ROLE_KEY": "sb_secret_x"}


@dataclass
class Server:
    """Gives `content` in parts, as a good server does, unless told otherwise."""

    content: bytes = MODEL
    tag: str | None = '"one"'
    ranges: bool = True
    statuses: list[int] = field(default_factory=list)  # of the next answers, in place of a good one
    break_after: list[int] = field(default_factory=list)  # bytes of the next answers after which the connection ends
    redirect_to: str | None = None
    content_range: str | None = None
    before: Callable[[], None] = lambda: None
    asked: list[dict[str, str]] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def serve() -> Iterator[Callable[[], Server]]:
    running: list[ThreadingHTTPServer] = []

    def begin() -> Server:
        server = Server()
        http = ThreadingHTTPServer(("127.0.0.1", 0), handler(server))
        http.daemon_threads = True
        running.append(http)
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        server.url = f"http://127.0.0.1:{http.server_port}/model.safetensors"
        return server

    yield begin
    for http in running:
        http.shutdown()
        http.server_close()


@pytest.fixture
def server(serve: Callable[[], Server]) -> Server:
    return serve()


def handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.asked.append({name.lower(): value for name, value in self.headers.items()})
            server.before()
            if server.redirect_to:
                self.answer(302, {"Location": server.redirect_to})
            elif server.statuses:
                self.answer(server.statuses.pop(0), {})
            else:
                self.give()

        def answer(self, status: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

        def give(self) -> None:
            begin, wanted = 0, self.headers["Range"]
            if wanted and server.ranges and self.headers["If-Range"] == server.tag:
                begin = int(wanted.removeprefix("bytes=").removesuffix("-"))
                if begin >= len(server.content):
                    return self.answer(416, {})
            headers = {"Content-Length": str(len(server.content) - begin)} | ({"ETag": server.tag} if server.tag else {})
            if begin:
                whole = len(server.content)
                headers["Content-Range"] = server.content_range or f"bytes {begin}-{whole - 1}/{whole}"
            self.answer(206 if begin else 200, headers)
            end = begin + server.break_after.pop(0) if server.break_after else None
            with suppress(ConnectionError):  # who asked has seen enough
                self.wfile.write(server.content[begin:end])
            return None

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "models" / "model.safetensors"


@pytest.fixture(autouse=True)
def _no_time_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "wait_random_exponential", lambda **_: lambda _state: 0.0)


def settings(server: Server, path: Path, **others: str) -> Settings:
    given = {"MODEL_URL": server.url, "MODEL_PATH": str(path), "MODEL_SHA256": SHA256} | others
    return Settings.from_env(KEY | given)


def ranges(server: Server) -> list[str | None]:
    return [asked.get("range") for asked in server.asked]


def test_it_comes_is_checked_and_then_has_its_name(server: Server, path: Path) -> None:
    server.before = lambda: pytest.fail("under its name before it was checked") if path.exists() else None
    fetch_model(settings(server, path))
    assert path.read_bytes() == MODEL
    assert [file.name for file in path.parent.iterdir() if not file.name.endswith(".lock")] == [path.name]


def test_what_is_there_is_not_fetched_again(server: Server, path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"already")
    fetch_model(settings(server, path))
    assert server.asked == []


def test_nothing_is_fetched_without_an_address(path: Path) -> None:
    fetch_model(Settings.from_env(KEY | {"MODEL_PATH": str(path)}))
    assert not path.exists()


def test_after_a_break_only_the_rest_is_asked_for(server: Server, path: Path) -> None:
    server.break_after = [46 * CHUNK_BYTES, 30 * CHUNK_BYTES]
    fetch_model(settings(server, path))
    assert path.read_bytes() == MODEL
    assert ranges(server) == [None, f"bytes={46 * CHUNK_BYTES}-", f"bytes={76 * CHUNK_BYTES}-"]


def test_another_process_goes_on_where_one_stopped(server: Server, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.break_after = [61 * CHUNK_BYTES]
    monkeypatch.setattr(download, "PATIENCE_SECONDS", -1.0)
    with pytest.raises(ModelNotDownloaded):
        fetch_model(settings(server, path))
    fetch_model(settings(server, path))
    assert path.read_bytes() == MODEL
    assert ranges(server) == [None, f"bytes={61 * CHUNK_BYTES}-"]


def test_a_file_that_changed_meanwhile_is_begun_anew(server: Server, path: Path) -> None:
    server.content, server.break_after = b"old" * 1_000_000, [2_000_000]

    def change() -> None:
        if len(server.asked) == 2:
            server.content, server.tag = MODEL, '"two"'

    server.before = change
    fetch_model(settings(server, path))
    assert path.read_bytes() == MODEL


@pytest.mark.parametrize(("tag", "knows_ranges"), [('"one"', False), ('W/"weak"', True), (None, True)])
def test_a_server_that_gives_no_parts_gives_all_of_it_again(
    server: Server, path: Path, tag: str | None, knows_ranges: bool
) -> None:
    server.tag, server.ranges, server.break_after = tag, knows_ranges, [5_000_000]
    fetch_model(settings(server, path))
    assert path.read_bytes() == MODEL


def test_a_server_that_lies_about_its_part_is_not_believed(server: Server, path: Path) -> None:
    server.break_after, server.content_range = [50 * CHUNK_BYTES], "bytes 0-10239999/10240000"
    with pytest.raises(ModelNotDownloaded, match="another part"):
        fetch_model(settings(server, path))
    assert not path.exists()


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_trouble_that_may_pass_is_waited_out(server: Server, path: Path, status: int) -> None:
    server.statuses = [status, status]
    fetch_model(settings(server, path))
    assert path.read_bytes() == MODEL


@pytest.mark.parametrize(
    ("status", "words"), [(401, "MODEL_URL_TOKEN"), (403, "MODEL_URL_TOKEN"), (404, "HTTP 404"), (416, ".part")]
)
def test_a_refusal_is_told_at_once(server: Server, path: Path, status: int, words: str) -> None:
    server.statuses = [status]
    with pytest.raises(ModelNotDownloaded, match=words) as told:
        fetch_model(settings(server, path))
    assert len(server.asked) == 1
    assert server.url not in str(told.value), "it may be signed"


def test_what_was_not_meant_is_thrown_away(server: Server, path: Path) -> None:
    server.content = MODEL[:-1] + b"x"
    with pytest.raises(ModelInvalid, match=hashlib.sha256(server.content).hexdigest()):
        fetch_model(settings(server, path))
    assert [file.name for file in path.parent.iterdir() if not file.name.endswith(".lock")] == []


def test_a_full_disk_is_found_out_before_it_is_full(server: Server, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "SPARE_BYTES", 1 << 60)
    with pytest.raises(ModelNotDownloaded, match="no room"):
        fetch_model(settings(server, path))


def test_a_folder_that_cannot_be_written_is_told(server: Server, path: Path) -> None:
    part = path.with_name("model.safetensors.part")
    part.mkdir(parents=True)
    with pytest.raises(ModelNotDownloaded, match="cannot be written"):
        fetch_model(settings(server, path))


def test_a_server_that_is_not_there_is_told_when_patience_ends(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PATIENCE_SECONDS", 0.2)
    with pytest.raises(ModelNotDownloaded, match="cannot be reached"):
        fetch_model(settings(Server(url="http://127.0.0.1:9/x"), path))


def test_the_token_goes_to_the_named_host_alone(serve: Callable[[], Server], path: Path) -> None:
    first, second = serve(), serve()
    first.redirect_to = second.url.replace("127.0.0.1", "localhost")
    with capture_logs() as lines:
        fetch_model(settings(first, path, MODEL_URL_TOKEN="hf_secret"))
    assert first.asked[0]["authorization"] == "Bearer hf_secret"
    assert "authorization" not in second.asked[0]
    assert "hf_secret" not in str(lines)
    assert first.url not in str(lines)


def test_who_waits_hears_that_it_goes_on(server: Server, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "REPORT_SECONDS", 0.0)
    heard: list[None] = []
    fetch_model(settings(server, path), on_progress=lambda: heard.append(None))
    assert heard


def _fetch_in_a_process(environ: dict[str, str], barrier: Any) -> None:
    barrier.wait()
    fetch_model(Settings.from_env(environ))


def test_of_several_processes_one_fetches(server: Server, path: Path) -> None:
    context = get_context("fork")
    barrier = context.Barrier(3)
    environ = KEY | {"MODEL_URL": server.url, "MODEL_PATH": str(path), "MODEL_SHA256": SHA256}
    processes = [context.Process(target=_fetch_in_a_process, args=(environ, barrier)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert path.read_bytes() == MODEL
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"MODEL_URL": "https://example.com/m"}, "MODEL_SHA256"),
        ({"MODEL_URL": "http://example.com/m", "MODEL_SHA256": SHA256}, "https"),
        ({"MODEL_URL": "ftp://example.com/m", "MODEL_SHA256": SHA256}, "MODEL_URL"),
        ({"MODEL_URL": "https://example.com/m", "MODEL_SHA256": SHA256, "MODEL_PATH": "/models/folder"}, "safetensors"),
        ({"MODEL_URL": "https://example.com/m", "MODEL_SHA256": "x"}, "MODEL_SHA256"),
    ],
)
def test_settings_that_cannot_work_are_refused(given: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsInvalid, match=words):
        Settings.from_env(KEY | given)
