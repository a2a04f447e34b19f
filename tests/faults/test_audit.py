"""The audits of `make check`, made by the real pip-audit and npm against services of our own."""

from __future__ import annotations

import gzip
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tools import audit

NOBODY = "http://127.0.0.1:1/"
Answer = Callable[[str, Any], tuple[int, object]]


@contextmanager
def service(answer: Answer) -> Iterator[str]:
    """Answers every request by `answer(path, body)`, a status and what to say in JSON."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(None)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.reply(json.loads(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body))

        def reply(self, body: Any) -> None:
            status, said = answer(self.path, body)
            content = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def environ(osv: str, npm: str, **more: str) -> dict[str, str]:
    return os.environ | {"AUDIT_OSV_URL": osv, "npm_config_registry": npm, "npm_config_fetch_retries": "0"} | more


def sound(path: str, body: Any) -> tuple[int, object]:
    return 200, {}


def osv_advisory(path: str, body: Any) -> tuple[int, object]:
    if body["package"]["name"] != "pillow":
        return sound(path, body)
    affected = {
        "package": {"ecosystem": "PyPI", "name": "pillow"},
        "ranges": [{"type": "ECOSYSTEM", "events": [{"fixed": "99.0"}]}],
    }
    return 200, {"vulns": [{"id": "PYSEC-2026-1", "aliases": ["CVE-2026-1"], "summary": "A hole", "affected": [affected]}]}


def npm_advisory(path: str, body: Any) -> tuple[int, object]:
    if path.endswith("/advisories/bulk"):
        hole = {
            "id": 1,
            "url": "https://github.com/advisories/GHSA-1",
            "title": "A hole",
            "severity": "low",
            "vulnerable_versions": "*",
        }
        return 200, {"ws": [hole]} if "ws" in body else {}
    return 200, {"name": "ws", "dist-tags": {"latest": "8.23.0"}, "versions": {"8.23.0": {"name": "ws", "version": "8.23.0"}}}


def broken(path: str, body: Any) -> tuple[int, object]:
    return 503, {"message": "come back later"}


def test_no_known_vulnerability_passes(capsys: pytest.CaptureFixture[str]) -> None:
    with service(sound) as osv, service(sound) as npm:
        assert audit.main(environ(osv, npm, AUDIT_REQUIRED="1")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [re.sub(r"\d\d+", "N", line) for line in lines] == [
        "pip-audit: no known vulnerabilities in N packages",
        "npm audit: no known vulnerabilities in N packages",
    ]


def test_a_vulnerable_python_package_fails(capsys: pytest.CaptureFixture[str]) -> None:
    with service(osv_advisory) as osv, service(sound) as npm:
        assert audit.main(environ(osv, npm)) == 1
    assert re.search(r"^pip-audit: pillow [\d.]+: PYSEC-2026-1, CVE-2026-1, mended in 99.0$", capsys.readouterr().out, re.M)


def test_a_vulnerable_node_package_fails(capsys: pytest.CaptureFixture[str]) -> None:
    with service(sound) as osv, service(npm_advisory) as npm:
        assert audit.main(environ(osv, npm)) == 1
    assert "npm audit: ws: https://github.com/advisories/GHSA-1: A hole (low)\n" in capsys.readouterr().out


def test_an_accepted_advisory_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "ACCEPTED", {"CVE-2026-1": "we never open such a file", "GHSA-1": "nor such a socket"})
    with service(osv_advisory) as osv, service(npm_advisory) as npm:
        assert audit.main(environ(osv, npm)) == 0


@pytest.mark.parametrize("answer", [None, broken], ids=["nobody there", "an error"])
@pytest.mark.parametrize(("required", "status"), [({}, 0), ({"AUDIT_REQUIRED": "1"}, 1)], ids=["allowed", "required"])
def test_an_audit_that_cannot_be_made_says_so(
    answer: Answer | None, required: dict[str, str], status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with service(answer or sound) as there:
        where = there if answer else NOBODY
        assert audit.main(environ(where, where, **required)) == status
    told = capsys.readouterr().out
    assert told.count("NOT MADE, nothing is known about these packages: ") == 2
    assert "no known vulnerabilities" not in told


def test_one_audit_does_not_hide_the_others_finding(capsys: pytest.CaptureFixture[str]) -> None:
    with service(osv_advisory) as osv:
        assert audit.main(environ(osv, NOBODY)) == 1
    assert "npm audit: NOT MADE" in capsys.readouterr().out
