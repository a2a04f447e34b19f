"""The Dockerfile builds from what git has, pins what it takes, holds no secret, and starts Python as an ordinary user's process 1.

`make image-check` performs it; here it is only read.
"""

from __future__ import annotations

import os
import pwd
import re
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.image import entrypoint
from ourvidz_sdxl.local import ROOT
from ourvidz_sdxl.settings import LUSTIFY
from tools.image import IGNORE, copies, ignore, pairs, sent, steps, target

STEPS = steps()
IGNORED = ignore(IGNORE.read_text())
WORKER = pwd.getpwnam("nobody")  # stands in for the image's user

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give root up")


def values(command: str) -> list[tuple[str, ...]]:
    return [step.values for step in STEPS if step.command == command]


def tracked() -> set[str]:
    """What git has, or would take: a file that is new is in no commit yet."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    return set(subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines())


def test_the_linter_has_no_objection() -> None:
    done = subprocess.run([Path(sys.executable).parent / "hadolint", "Dockerfile"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_it_copies_what_git_has_and_nothing_else() -> None:
    git = tracked()
    for source, _ in copies(STEPS):
        files = {file.relative_to(ROOT).as_posix() for file in sent(source, IGNORED)}
        assert files, source
        assert files <= git, "only git's files get into an image"
    package = {file for file in git if file.startswith("ourvidz_sdxl/")}
    assert {file.relative_to(ROOT).as_posix() for file in sent("ourvidz_sdxl", IGNORED)} == package


@pytest.mark.parametrize(
    ("path", "kept_out"),
    [
        (".env", True),
        (".git/config", True),
        ("ourvidz_sdxl/__pycache__/cli.cpython-311.pyc", True),
        ("models/tiny-sdxl.1234.runtime", True),
        ("models/sdxl.safetensors", True),
        ("tests/processes.py", True),
        ("worker.py", False),
        ("ourvidz_sdxl/engine/load.py", False),
        ("models/tiny-sdxl/unet/config.json", False),
    ],
)
def test_what_the_builder_gets(path: str, kept_out: bool) -> None:
    assert (path in IGNORED) is kept_out


def test_where_copies_land() -> None:
    assert target(ROOT / "worker.py", ROOT / "worker.py", "./") == "./worker.py"
    assert target(ROOT / "deploy", ROOT / "deploy" / "image" / "entrypoint.py", "there") == "there/image/entrypoint.py"


def test_everything_is_pinned() -> None:
    args = dict(value.split("=", 1) for (value,) in values("ARG"))
    assert re.fullmatch(r"debian:bookworm-20\d{6}-slim", args["BASE"])
    assert f"torch=={args['TORCH']}" in (ROOT / "requirements.txt").read_text().split()
    for file in ("requirements.txt", args["REQUIREMENTS"]):
        lines = [line.partition("#")[0].strip() for line in (ROOT / file).read_text().splitlines()]
        assert all("==" in line or line.startswith("-r ") for line in lines if line), file
    for (run,) in values("RUN"):
        assert not re.search(r"pip install (?!.*(==|--requirement))", run)


def test_no_secret_in_a_layer() -> None:
    names = [name for step in values("ENV") for name in pairs(step)] + [value.partition("=")[0] for (value,) in values("ARG")]
    assert not [name for name in names if re.search("KEY|TOKEN|SECRET|PASSWORD|SUPABASE", name)]


def test_it_starts_python_without_a_shell() -> None:
    (start,) = (step for step in STEPS if step.command == "ENTRYPOINT")
    assert start.exec_form
    assert start.values == ("python", "/opt/ourvidz/entrypoint.py")
    assert not values("CMD"), "arguments to the image would be taken for a command's"


def test_its_defaults_are_the_settings_own() -> None:
    env = {name: value for step in values("ENV") for name, value in pairs(step).items()}
    assert Path(env["MODEL_PATH"]) == LUSTIFY


# deploy/image/entrypoint.py


def test_a_pod_runs_the_worker_and_an_endpoint_the_handler() -> None:
    assert entrypoint.default_command({}) == ["python", "worker.py", "run"]
    assert entrypoint.default_command({"RUNPOD_ENDPOINT_ID": "x"}) == ["python", "-u", "handler.py"]


def test_only_what_the_worker_keeps_is_handed_over(tmp_path: Path) -> None:
    model = tmp_path / "a.safetensors"
    ours = [tmp_path, tmp_path / "a.safetensors.part", tmp_path / ".triton", tmp_path / ".triton" / "kernel"]
    (tmp_path / ".triton").mkdir()
    for file in (model, ours[1], ours[3], tmp_path / "another.safetensors"):
        file.touch()
    assert sorted(entrypoint.kept(model)) == sorted(ours)


def test_a_link_does_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "shadow").touch()
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / ".triton").symlink_to(tmp_path / "outside")
    assert list(entrypoint.kept(tmp_path / "models" / "a.safetensors")) == [tmp_path / "models"]


@pytest.fixture
def volume() -> Iterator[Path]:
    """A volume as RunPod mounts it: root's, and open to be read. pytest's own folders are closed to others."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def in_a_process(code: str) -> str:
    """`become` is for good: it needs a process of its own. Prints nothing but what the code prints."""
    lines = [
        "import os, pwd",
        "from pathlib import Path",
        "from deploy.image.entrypoint import *",
        "worker = pwd.getpwnam('nobody')",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join([*lines, code])], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@as_root
def test_it_becomes_the_user_on_a_volume_that_was_roots(volume: Path) -> None:
    model = volume / "models" / "sdxl" / "a.safetensors"
    code = f"model = Path({str(model)!r}); hand_over(model, worker.pw_uid, worker.pw_gid); print(become(worker, model))"
    said = in_a_process(code + "; (model.parent / 'written').touch(); print(os.getresuid(), os.getresgid(), os.getgroups())")
    uid, gid = WORKER.pw_uid, WORKER.pw_gid
    assert said == f"None\n{(uid,) * 3} {(gid,) * 3} [{gid}]"
    assert (model.parent / "written").stat().st_uid == uid


@as_root
def test_a_model_that_is_there_needs_no_writing(volume: Path) -> None:
    model = volume / "a.safetensors"
    model.touch()
    assert in_a_process(f"print(become(worker, Path({str(model)!r})), os.getuid())") == f"None {WORKER.pw_uid}"


@as_root
def test_where_the_user_could_do_nothing_it_stays_root(volume: Path) -> None:
    """As on a disk that knows no owners."""
    model = volume / "a.safetensors"
    said = in_a_process(f"print(become(worker, Path({str(model)!r})), os.getresuid(), os.getresgid())")
    assert said == f"{model}: Permission denied (0, 0, 0) (0, 0, 0)"
    model.touch(mode=stat.S_IRUSR)
    assert "Permission denied" in in_a_process(f"print(become(worker, Path({str(model)!r})))")
