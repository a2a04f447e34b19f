"""Process 1 of the image: hands the model's folder to the user `worker`, becomes that user, and then becomes the worker.

RunPod mounts volumes as root's, whatever user an image names, and lets nothing run before the image. So the image starts as root,
and this gives root up at once, unless the worker could not work without: then it stays, and a line says why. Whoever starts the
image as another user (`docker run --user`) gets that user.

Without arguments it starts `worker.py run`, or `handler.py` on RunPod serverless, which sets RUNPOD_ENDPOINT_ID.
"""

from __future__ import annotations

import glob
import json
import os
import pwd
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

USER = "worker"
DEVICES = ("nvidiactl", "nvidia-uvm", "nvidia[0-9]*")


def main(arguments: Sequence[str], environ: Mapping[str, str]) -> None:
    command = list(arguments) or default_command(environ)
    model = Path(environ["MODEL_PATH"]).absolute()
    if os.getuid() == 0:
        worker = pwd.getpwnam(USER)
        hand_over(model, worker.pw_uid, worker.pw_gid)
        if obstacle := become(worker, model):
            line = {"event": "stays_root", "level": "warning", "reason": obstacle}
            print(json.dumps(line), file=sys.stderr, flush=True)  # noqa: T201  before there is a log
    os.execvp(command[0], command)  # noqa: S606  the operator's own command


def default_command(environ: Mapping[str, str]) -> list[str]:
    return ["python", "-u", "handler.py"] if environ.get("RUNPOD_ENDPOINT_ID") else ["python", "worker.py", "run"]


def hand_over(model: Path, uid: int, gid: int) -> None:
    """Makes the model's folder, and gives it to the user with what the worker keeps there. A disk may refuse; `become` finds it."""
    try:
        model.parent.mkdir(parents=True, exist_ok=True)
        for path in kept(model):
            os.chown(path, uid, gid, follow_symlinks=False)
    except OSError:
        return


def kept(model: Path) -> Iterator[Path]:
    """The folder; the parts, the lock and the converted weights beside the model; Triton's kernels. Links are never followed.

    Nothing else: a volume may be large, and others' too.
    """
    yield model.parent
    yield from model.parent.glob(f"{glob.escape(model.name)}.*")
    kernels = model.parent / ".triton"
    for folder, folders, files in os.walk(kernels) if not kernels.is_symlink() else ():
        yield Path(folder)
        yield from (Path(folder, name) for name in (*folders, *files))


def become(worker: pwd.struct_passwd, model: Path) -> str | None:
    """Becomes the user for good; or stays what it is, and says what that user could not do."""
    before = os.getgroups()
    os.setgroups([worker.pw_gid])
    os.setegid(worker.pw_gid)
    os.seteuid(worker.pw_uid)
    obstacle = what_hinders(model)
    os.seteuid(0)
    if obstacle:
        os.setegid(os.getgid())
        os.setgroups(before)
        return obstacle
    os.setgid(worker.pw_gid)
    os.setuid(worker.pw_uid)
    os.environ["HOME"] = worker.pw_dir
    return None


def what_hinders(model: Path) -> str | None:
    """Why the present effective user could not work: by trying, since not every disk says what it allows."""
    for pattern in DEVICES:
        for device in Path("/dev").glob(pattern):
            if not os.access(device, os.R_OK | os.W_OK, effective_ids=True):
                return f"{device} is root's alone"
    try:
        if model.exists():
            inside = model / "model_index.json" if model.is_dir() else model
            inside.open("rb").close()
        else:
            tempfile.TemporaryFile(dir=model.parent).close()
    except OSError as error:
        return f"{model}: {error.strerror}"
    return None


if __name__ == "__main__":
    main(sys.argv[1:], os.environ)
