"""benchmarks/results/<name>.json: the one form of every benchmark's figures, from which the tables in the docs are made."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results"


def write_results(
    name: str, figures: Sequence[dict[str, Any]], *, packages: Sequence[str], gpu: str | None = None, folder: Path = FOLDER
) -> None:
    """Each figure is {"name", "unit", "ours", "peer", "peer_name", "bar", "better": "lower" | "higher"}; prints them, too."""
    commit = None
    if git := shutil.which("git"):
        command = [git, "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip() or None
    result = {
        "machine": ", ".join(filter(None, [gpu, f"{os.cpu_count()} cores", platform.machine(), platform.system()])),
        "versions": {"python": platform.python_version()} | {package: version(package) for package in packages},
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit,
        "figures": figures,
    }
    for figure in figures:
        peer = f"   {figure['peer_name']}: {figure['peer']} {figure['unit']}" if figure["peer"] is not None else ""
        bar = f"   bar: {figure['bar']} {figure['unit']}" if figure["bar"] is not None else ""
        print(f"{figure['name']:44} {figure['ours']:>10} {figure['unit']}{peer}{bar}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
