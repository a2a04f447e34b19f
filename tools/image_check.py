"""The Dockerfile's steps, performed without Docker: `python -m tools.image_check`, as root on Debian or Ubuntu. `make image-check`.

In place of the base image stands a fresh Debian bookworm from debootstrap, which is how Debian's images are made. Each step is done
in it as Docker does it: RUN in a namespace of its own with the environment that the steps before have set, COPY from this working
tree through .dockerignore. Then the image is started as RunPod starts it: its own entrypoint as process 1, a model on a volume that
is root's, and a job in an embedded Supabase. It must paint that as an ordinary user, and end on SIGTERM.

What it cannot show: Docker's own base image, layers and push, and a GPU. pip takes what this machine's pip is set up to take.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ourvidz_sdxl.local import ROOT
from tests.integration.conftest import sign_up
from tests.processes import scratch_supabase
from tools.image import IGNORE, Step, expand, ignore, pairs, sent, steps, target

FOLDER = ROOT / ".local" / "image"
BASE = FOLDER / "bookworm"
# What Docker gives every container: https://github.com/moby/moby/blob/master/oci/defaults.go
DOCKERS_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
HOST = "/run/host"  # where a step finds the files that this machine's pip needs
CLEAN = "rm -f /var/cache/apt/archives/*.deb"
VOLUME = "/workspace"
WANTED = {"process 1": "python worker.py run", "its user": 1000, "owner of the model's folder": 1000, "status after SIGTERM": 0}
PAINT_SECONDS, END_SECONDS = 180, 10


@dataclass(kw_only=True)
class Image:
    root: Path
    env: dict[str, str] = field(default_factory=lambda: {"PATH": DOCKERS_PATH})
    args: dict[str, str] = field(default_factory=dict)
    folder: str = "/"
    entrypoint: tuple[str, ...] = ()

    def perform(self, step: Step) -> None:
        variables = self.args | self.env
        match step.command:
            case "ARG":
                name, _, value = step.values[0].partition("=")
                self.args[name] = value
            case "FROM":
                base = expand(step.values[0], variables)
                if not base.startswith("debian:bookworm-"):
                    raise SystemExit(f"this can stand in for Debian bookworm, and not for {base}")
                self.args.clear()  # as Docker does
            case "ENV":
                self.env |= {name: expand(value, variables) for name, value in pairs(step.values).items()}
            case "WORKDIR":
                self.folder = str(Path(self.folder, expand(step.values[0], variables)))
                self.within(self.folder).mkdir(parents=True, exist_ok=True)
            case "COPY":
                self._copy([expand(value, variables) for value in step.values])
            case "RUN":
                pip, binds = this_machines_pip()
                command = step.values if step.exec_form else ("/bin/sh", "-c", step.values[0])
                done = subprocess.run(self.command(command, variables | pip, binds), check=False)
                if done.returncode:
                    raise SystemExit(f"line {step.line} failed with status {done.returncode}: {step}")
            case "ENTRYPOINT" if step.exec_form:
                self.entrypoint = step.values
            case "HEALTHCHECK":
                pass  # Docker's alone
            case _:
                raise SystemExit(f"line {step.line}: this does not know how to perform {step}")

    def within(self, path: str) -> Path:
        return self.root / str(Path(self.folder, path)).lstrip("/")

    def command(self, command: Sequence[str], env: Mapping[str, str], binds: Sequence[Path] = ()) -> list[str]:
        """What starts a command in the image as process 1 of a namespace of its own, and takes everything away with it."""
        words = ["set -e; mount --make-rprivate /; mount -t proc proc $ROOT/proc; mount --rbind /dev $ROOT/dev"]
        for path in binds:
            place = f"$ROOT{HOST}{path}"
            make = f"mkdir -p {place}" if path.is_dir() else f"mkdir -p $(dirname {place}); touch {place}"
            words.append(f"{make}; mount --bind {path} {place}; mount -o remount,bind,ro {place}")
        words.append('cd $ROOT; exec chroot $ROOT /usr/bin/env -i --chdir "$FOLDER" "$@"')
        variables = [f"{name}={value}" for name, value in env.items()]
        outside = ["/usr/bin/env", f"ROOT={self.root}", f"FOLDER={self.folder}"]
        isolated = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", "; ".join(words), "sh"]
        return [*outside, *isolated, *variables, *command]

    def _copy(self, values: Sequence[str]) -> None:
        *sources, destination = values
        ignored = ignore(IGNORE.read_text())
        for source in sources:
            files = list(sent(source, ignored))
            if not files:
                raise SystemExit(f"COPY: {source} is not in what the builder gets")
            for file in files:
                place = self.within(target(ROOT / source, file, destination))
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, place)


def this_machines_pip() -> tuple[dict[str, str], list[Path]]:
    """This machine's pip settings as variables, and the files and folders that they name. Empty on most machines."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True).stdout
    env: dict[str, str] = {}
    binds: set[Path] = set()
    for key, _, value in (line.partition("=") for line in listed.splitlines()):
        text = str(ast.literal_eval(value))
        for scheme, path in re.findall(r"(file://)?(/[^\s]+)", text):
            if Path(path).exists():
                binds.add(Path(path).parent if scheme else Path(path))  # an index has its files beside it
                text = text.replace(path, HOST + path)
        env["PIP_" + key.rpartition(".")[2].upper().replace("-", "_")] = text
    return env, sorted(binds)


def base() -> None:
    if BASE.exists():
        return
    if not shutil.which("debootstrap"):
        raise SystemExit("debootstrap is missing: apt-get install debootstrap")
    made = BASE.with_suffix(".part")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    subprocess.run(["debootstrap", "--variant=minbase", "bookworm", str(made)], check=True, stdout=subprocess.DEVNULL)
    # as Debian's images for Docker have it: apt keeps neither packages nor caches
    words = 'APT::Keep-Downloaded-Packages "false"; Dir::Cache::pkgcache ""; Dir::Cache::srcpkgcache "";\n'
    (made / "etc" / "apt" / "apt.conf.d" / "docker-clean").write_text(words + f'DPkg::Post-Invoke {{ "{CLEAN}"; }};\n')
    made.rename(BASE)


def build(root: Path) -> Image:
    subprocess.run(["cp", "--archive", str(BASE), str(root)], check=True)
    shutil.copy("/etc/resolv.conf", root / "etc" / "resolv.conf")  # Docker puts its own there
    image, before = Image(root=root), megabytes(root)
    for step in steps():
        began = time.monotonic()
        image.perform(step)
        after = megabytes(root)
        print(f"{time.monotonic() - began:6.1f} s {after - before:+6d} MB  {str(step)[:100]}", flush=True)
        before = after
    shutil.rmtree(root / "run" / "host", ignore_errors=True)
    return image


def megabytes(folder: Path) -> int:
    done = subprocess.run(["du", "--summarize", "--block-size=M", str(folder)], capture_output=True, text=True, check=True)
    return int(done.stdout.partition("M")[0])


def prove(image: Image) -> dict[str, object]:
    """Starts it as RunPod would, has it paint one picture, and ends it."""
    models = image.root / VOLUME.strip("/") / "models"
    shutil.rmtree(models.parent, ignore_errors=True)
    shutil.copytree(ROOT / "models" / "tiny-sdxl", models / "tiny-sdxl")  # root's, as RunPod mounts a volume
    with scratch_supabase() as supabase:
        env = image.env | {
            "SUPABASE_URL": supabase.url,
            "SUPABASE_SERVICE_ROLE_KEY": supabase.secret_key,
            "MODEL_PATH": f"{VOLUME}/models/tiny-sdxl",
            "HTTP_PORT": "",  # taken by others here, perhaps
        }
        user = sign_up(supabase)
        request = ["python", "-u", "handler.py", "--test_input", '{"input": {"seconds": 1}}']
        served = subprocess.run(image.command([*image.entrypoint, *request], env), capture_output=True, text=True)
        if "'jobs': 0" not in served.stdout:
            raise SystemExit(f"the serverless handler did not answer:\n{served.stdout}\n{served.stderr}")
        job = user.insert()
        began = time.monotonic()
        process = subprocess.Popen(image.command(image.entrypoint, env), stderr=subprocess.PIPE, text=True)
        try:
            follow(process, "job_completed", within_seconds=PAINT_SECONDS)
            seconds, first = time.monotonic() - began, process_1(process.pid)
            seen = {"process 1": first.command, "its user": first.user, "owner of the model's folder": models.stat().st_uid}
            os.kill(first.number, signal.SIGTERM)
            seen["status after SIGTERM"] = process.wait(timeout=END_SECONDS)
        finally:
            process.kill()
            process.wait()
        (picture,) = user.images(job["id"])
    if seen != WANTED:
        raise SystemExit(f"the image does not do as it should; wanted: {WANTED}; seen: {seen}")
    return seen | {"picture": f"{picture['width']} x {picture['height']}", "seconds to the picture": round(seconds, 1)}


def follow(process: subprocess.Popen[str], event: str, *, within_seconds: float) -> None:
    """Waits for the worker's log event."""
    timer = threading.Timer(within_seconds, process.kill)
    timer.start()
    assert process.stderr
    lines: list[str] = []
    for line in process.stderr:
        lines.append(line)
        if f'"{event}"' in line:
            break
    else:
        raise SystemExit(f"no {event} from the image; its last lines:\n" + "".join(lines[-20:]))
    timer.cancel()
    threading.Thread(target=process.stderr.read, daemon=True).start()  # so that it can go on writing


@dataclass(frozen=True, kw_only=True)
class Process:
    number: int  # outside of its namespace
    command: str
    user: int


def process_1(unshare: int) -> Process:
    """The first process of the namespace that `unshare` made."""
    number = int(Path(f"/proc/{unshare}/task/{unshare}/children").read_text().split()[0])
    command = Path(f"/proc/{number}/cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ").decode()
    return Process(number=number, command=command, user=Path(f"/proc/{number}").stat().st_uid)


def main() -> None:
    if os.geteuid() != 0:
        raise SystemExit("this makes namespaces and roots of its own: run it as root")
    began = time.monotonic()
    base()
    root = FOLDER / "root"
    shutil.rmtree(root, ignore_errors=True)
    image = build(root)
    subprocess.run(image.command(["python", "worker.py", "--help"], image.env), check=True, stdout=subprocess.DEVNULL)
    seen = prove(image)
    print(json.dumps(seen | {"megabytes": megabytes(root), "seconds": round(time.monotonic() - began)}, ensure_ascii=False))
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
