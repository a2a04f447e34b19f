"""`worker.py demo --once`: one command from nothing to a picture, with a last line that a script can read."""

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from postgrest.exceptions import APIError
from supabase import ClientOptions, create_client

from ourvidz_sdxl.demo import Wish, as_a_frontend, make_account
from ourvidz_sdxl.local import ROOT, EmbeddedSupabase, embedded_supabase, node
from tests import preloaded
from tests.integration.conftest import Database
from tests.pace import TIMEOUT_SECONDS
from tests.processes import WorkerProcess, scratch_folder


def run_demo(out: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    with scratch_folder() as data:
        command = [sys.executable, "worker.py", "demo", "--once", "--out", str(out), "--data-dir", str(data), *arguments]
        done = preloaded.run(command, env=os.environ)
    assert done.stdout.strip(), done.stderr
    return done.returncode, json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_a_batch_from_a_prompt(tmp_path: Path) -> None:
    status, result, log = run_demo(tmp_path, "--prompt", "a green square on a white background", "--batch", "3")
    assert (status, result["status"], len(result["images"])) == (0, "completed", 3), log
    assert result["seconds"] > 0
    assert "worker_drained" in log
    assert "worker_died" not in log
    for path in result["images"]:
        red, green, blue = Image.open(path).convert("RGB").getpixel((2, 2))  # type: ignore[misc]
        assert min(red, green, blue) > 180, "the background should be white"
    assert any(json.loads(line)["event"] == "job_completed" for line in log.splitlines()), "log lines in a pipe"


@pytest.mark.parametrize(
    "wish",
    [
        Wish(prompt="", exact_copy=True),
        Wish(prompt="a red circle on a white background", strength=0.9),
    ],
    ids=["exact copy", "changed"],
)
def test_from_a_reference(
    supabase: EmbeddedSupabase, db: Database, session_worker: WorkerProcess, tmp_path: Path, wish: Wish
) -> None:
    """What stands around `as_a_frontend` is in the test above."""
    make_account(supabase)
    Image.new("RGB", (200, 100), "red").save(tmp_path / "reference.png")
    job, paths = asyncio.run(as_a_frontend(supabase, replace(wish, reference=tmp_path / "reference.png"), tmp_path / "out"))
    assert (job["status"], len(paths)) == ("completed", 1), session_worker.lines


def test_a_refused_wish_ends_with_the_databases_words(supabase: EmbeddedSupabase, db: Database, tmp_path: Path) -> None:
    make_account(supabase)
    with pytest.raises(APIError, match="prompt_is_required"):
        asyncio.run(as_a_frontend(supabase, Wish(prompt=" "), tmp_path))


@pytest.fixture(scope="module")
def staying_demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`worker.py demo`, as far as `Ctrl-C ends the demo.`, and what it printed until then."""
    with scratch_folder() as data:
        out = tmp_path_factory.mktemp("out")
        command = [sys.executable, "worker.py", "demo", "--out", str(out), "--data-dir", str(data)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr
            printed = ""
            for line in process.stderr:
                printed += line
                if line.startswith("Ctrl-C ends"):
                    break
            yield process, printed
            process.kill()


def printed_after(name: str, printed: str) -> str:
    found = re.search(rf"^{name} +(\S+)", printed, re.MULTILINE)
    assert found, printed
    return found[1]


def test_the_printed_example_runs_as_often_as_one_likes_and_ends(staying_demo: Any, tmp_path: Path) -> None:
    _, printed = staying_demo
    example = printed[printed.index("// npm install") : printed.index("Ctrl-C ends")]
    (tmp_path / "node_modules").symlink_to(ROOT / "supabase" / "local" / "node_modules")  # in place of `npm install`
    (tmp_path / "example.mjs").write_text(example)
    for _ in range(2):
        done = subprocess.run([str(node()), "example.mjs"], cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("processing")
        assert "completed [" in done.stdout


def test_studio_opens_with_the_account_that_has_the_first_picture(staying_demo: Any) -> None:
    _, printed = staying_demo
    config = httpx.get(printed_after("Studio", printed) + "config.json").json()
    client = create_client(config["supabaseUrl"], config["supabasePublishableKey"], ClientOptions(auto_refresh_token=False))
    client.auth.sign_in_with_password(config["account"])
    jobs = client.table("jobs").select("status, prompt").order("created_at").execute().data
    assert jobs[0] == {"status": "completed", "prompt": "a red circle on a blue background"}
    assert config["supabaseUrl"] == printed_after("Supabase URL", printed)


def test_one_that_is_killed_takes_its_worker_and_its_supabase_along(staying_demo: Any) -> None:
    """The last test of this demo."""
    process, _ = staying_demo
    children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    assert len(children) == 2
    process.kill()
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while any(is_running(pid) for pid in children):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def is_running(pid: int) -> bool:
    """A zombie is none: nobody here may be its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_supabase_is_on_the_same_port_every_time_where_that_is_free() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with scratch_folder() as data, embedded_supabase(data_dir=data, port=port) as supabase:
            assert supabase.url != f"http://127.0.0.1:{port}"
    for _ in range(2):
        with scratch_folder() as data, embedded_supabase(data_dir=data, port=port) as supabase:
            assert supabase.url == f"http://127.0.0.1:{port}"
