"""A promtool for the tests of the alerts: the machine's own, or, on Debian as root, the one in apt's package `prometheus`.

Only that program is taken out of the package: to install the package would start a server on port 9090 and have it started at
every boot.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from ourvidz_sdxl.local import ROOT

FETCHED = ROOT / ".local" / "promtool"
INSIDE = Path("usr/bin/promtool")


def promtool() -> Path | None:
    """PROMTOOL, or the one on the path, or the one that `install` fetched; None when there is none."""
    found = os.environ.get("PROMTOOL") or shutil.which("promtool") or shutil.which(FETCHED / INSIDE)
    return Path(found) if found else None


def install() -> None:
    """Raises OSError or CalledProcessError when it cannot be had."""
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise OSError("it is installed on Debian, as root, only")
    with tempfile.TemporaryDirectory() as folder:
        # as root and not as _apt, which cannot write into that folder
        for command in (
            ["apt-get", "-qq", "update"],
            ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", "prometheus"],
        ):
            subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)  # noqa: S603  the two commands above
        [package] = Path(folder).glob("prometheus_*.deb")
        subprocess.run(["dpkg-deb", "--extract", package, f"{folder}/all"], check=True)  # noqa: S603, S607
        target = FETCHED / INSIDE
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(Path(folder, "all", INSIDE), target)


if __name__ == "__main__":
    if promtool() is None:
        print("Fetching promtool for the tests of the alerts …")
        try:
            install()
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"It cannot be had: {error}. Those tests are skipped.")
    if found := promtool():
        print(found)
