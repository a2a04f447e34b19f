"""A Chromium for the browser tests: the machine's own, or, on Debian as root, the one that apt installs, or Playwright's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def chromium() -> Path | None:
    """CHROMIUM, or the first of the usual names on the path, or Playwright's own; None when there is none."""
    named = os.environ.get("CHROMIUM")
    found = named or next(filter(None, map(shutil.which, NAMES)), None)
    if found:
        return Path(found)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = Path(playwright.chromium.executable_path)
    return path if path.exists() else None


def install() -> None:
    """Raises CalledProcessError when it cannot be had."""
    if shutil.which("apt-get") and os.geteuid() == 0:
        for command in (["apt-get", "update"], ["apt-get", "install", "--yes", "--no-install-recommends", "chromium"]):
            quiet = [command[0], "-qq", *command[1:]]
            silent = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
            subprocess.run(quiet, check=True, stdout=subprocess.DEVNULL, env=silent)  # noqa: S603  the two commands above
    else:
        subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"], check=True)


if __name__ == "__main__":
    if chromium() is None:
        print("Installing Chromium for the browser tests …")
        install()
    print(chromium())
