"""/health, /ready and /metrics over HTTP, for whoever starts, watches and draws workers. Off unless HTTP_PORT says otherwise.

Under a supervisor each worker answers on a port of its own that only this machine reaches, and the supervisor, which asks them all,
answers for the host (`host_probes`): one port, however many GPUs.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import structlog

from ourvidz_sdxl.errors import SettingsInvalid
from ourvidz_sdxl.settings import Settings

# in a supervised process's environment: the number of the listening socket's file descriptor
SOCKET_VARIABLE = "PROBES_SOCKET"
CLIENT_SECONDS = 5  # that a client may take over its request
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class Answers:
    """`health` and `ready` return what is wrong in sentences, none where all is well, and details for those who look closer."""

    health: Callable[[], tuple[Sequence[str], dict[str, Any]]]
    ready: Callable[[], tuple[Sequence[str], dict[str, Any]]]
    metrics: Callable[[], str]


def serve(listener: socket.socket, answers: Answers) -> None:
    """Answers from threads of its own until the process ends."""
    threading.Thread(target=_Server(listener, answers).serve_forever, name="probes", daemon=True).start()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, listener: socket.socket, answers: Answers) -> None:
        super().__init__(listener.getsockname()[:2], _Handler, bind_and_activate=False)
        self.socket.close()  # the one that it made for itself
        self.socket = listener
        self.answers = answers

    def handle_error(self, *_: object) -> None:
        """A client that went away is none of the operator's business."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = CLIENT_SECONDS

    def do_GET(self) -> None:
        answers = self.server.answers
        match self.path.partition("?")[0]:
            case "/metrics":
                self._send(HTTPStatus.OK, METRICS_TYPE, answers.metrics())
            case "/health":
                self._tell(*answers.health())
            case "/ready":
                self._tell(*answers.ready())
            case _:
                self._send(HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", "/health, /ready and /metrics\n")

    def _tell(self, problems: Sequence[str], details: dict[str, Any]) -> None:
        status = HTTPStatus.SERVICE_UNAVAILABLE if problems else HTTPStatus.OK
        self._send(status, "application/json", json.dumps({"ok": not problems, "problems": [*problems], **details}) + "\n")

    def _send(self, status: HTTPStatus, content_type: str, text: str) -> None:
        content = text.encode()
        self.send_response(status)
        self.send_header("content-type", content_type)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """A probe every few seconds is no event."""


def listen(settings: Settings) -> socket.socket | None:
    """The socket that this process is to answer on, or None where it is to answer nobody. Raises SettingsInvalid."""
    inherited = os.environ.pop(SOCKET_VARIABLE, None)
    if inherited is not None:
        return socket.socket(fileno=int(inherited))
    if settings.http_port is None:
        return None
    try:
        listener = socket.create_server((settings.http_host, settings.http_port))
    except OSError as error:
        raise SettingsInvalid(
            f"cannot listen on HTTP_HOST {settings.http_host}, HTTP_PORT {settings.http_port}: {error.strerror}"
        ) from None
    log.info("probes_listening", host=settings.http_host, port=listener.getsockname()[1])
    return listener
