"""`worker.py demo --once`: one command from nothing to a picture, with a last line that a script can read."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ourvidz_sdxl.local import ROOT
from tests.processes import scratch_folder


def run_demo(out: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    with scratch_folder() as data:
        command = [sys.executable, "worker.py", "demo", "--once", "--out", str(out), "--data-dir", str(data), *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.stdout.strip(), done.stderr
    return done.returncode, json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_a_batch_from_a_prompt(tmp_path: Path) -> None:
    status, result, log = run_demo(tmp_path, "--prompt", "a green square on a white background", "--batch", "3")
    assert (status, result["status"], len(result["images"])) == (0, "completed", 3), log
    assert result["seconds"] > 0
    for path in result["images"]:
        red, green, blue = Image.open(path).convert("RGB").getpixel((2, 2))  # type: ignore[misc]
        assert min(red, green, blue) > 180, "the background should be white"
    assert any(json.loads(line)["event"] == "job_completed" for line in log.splitlines()), "log lines in a pipe"


@pytest.mark.parametrize("arguments", [("--exact-copy",), ("--prompt", "a red circle on a white background", "--strength", "0.9")])
def test_from_a_reference(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    Image.new("RGB", (200, 100), "red").save(tmp_path / "reference.png")
    status, result, log = run_demo(tmp_path, "--reference", str(tmp_path / "reference.png"), *arguments)
    assert (status, result["status"], len(result["images"])) == (0, "completed", 1), log


def test_a_refused_wish_ends_with_status_1_and_the_databases_words(tmp_path: Path) -> None:
    status, result, _ = run_demo(tmp_path, "--prompt", " ")
    assert (status, result["status"], result["images"]) == (1, "refused", [])
    assert "prompt_is_required" in result["error_message"]
