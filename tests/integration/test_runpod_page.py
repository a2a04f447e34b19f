"""docs/runpod.md, walked through: every block of it is run, in its order, and at its end there is a picture.

Stand-ins: `docker`, `git` and `make`, which check what they are told and do little, RunPod (tests/fake_runpod.py, where `curl` is
led to), and for the hosted Supabase the embedded one; `supabase db push` is the real CLI. The pod is a worker process with the
environment that RunPod gives it, and nothing else; its volume has the bundled model where the template says that the model is
(tests/unit/test_download.py fetches one).
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent

import numpy as np
import psycopg
from PIL import Image

from ourvidz_sdxl.local import ROOT, EmbeddedSupabase, embedded_supabase, node
from tests import preloaded
from tests.fake_runpod import FakeRunPod, Record
from tests.pace import TIMEOUT_SECONDS
from tests.processes import TINY_MODEL, scratch_folder
from tools.check_database import CLI

PAGE = (ROOT / "docs" / "runpod.md").read_text()
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
SECRET = re.compile(r"\{\{ RUNPOD_SECRET_(\w+) \}\}")
# What a reader writes in place of what the page says; each must be there.
YOURS = {
    "YOUR-NAME": "somebody",
    "YOUR-STORE": "models.example",
    "THE-FILES-SHA-256": "5" * 64,
    "YOUR-VOLUME": "volume-1",
    "YOUR-DATA-CENTER": "EU-SE-1",
    "YOUR-ENDPOINT": "endpoint-1",
    "rpa_YOURS": FakeRunPod.key,
}
STAND_INS = {
    "python": 'exec {python} "$@"',
    "git": '[ "$1" = clone ] && mkdir "$(basename "$2")" && ln -s {root}/* {root}/.[a-z]* "$(basename "$2")"',
    "make": '[ "$1" = setup ]',
    "curl": """for one in "$@"; do
      shift
      case "$one" in https://api.runpod.io/v2/*) one="$RUNPOD_REST_URL/${one#https://api.runpod.io/v2/}" ;; https:*) exit 64 ;; esac
      set -- "$@" "$one"
    done
    exec /usr/bin/curl "$@\"""",
    "docker": """case "$1" in
      login) ;;
      build) [ "$2 $3 $4 $6" = "--platform linux/amd64 --tag ." ] && [ -f Dockerfile ] && echo "$5" >> {folder}/built ;;
      push) grep -qx "$2" {folder}/built && echo "$2" >> {folder}/pushed ;;
      run) grep -qx "$IMAGE" {folder}/pushed && echo "$*" >> {folder}/ran ;;
      *) exit 64 ;;
    esac""",
    "supabase": """echo "$*" >> {folder}/supabase-calls
    case "$1 $2" in
      "login "|"link --project-ref"|"functions deploy") ;;
      "secrets set") shift 2; if [ "$1" = --env-file ]; then cat "$2"; else printf '%s\\n' "$@"; fi >> {folder}/functions.env ;;
      "db push") exec {cli} db push --yes --remote="$STAND_IN_DB_URL" --workdir {root} ;;
      *) exit 64 ;;
    esac""",
}


@dataclass(frozen=True, kw_only=True)
class Block:
    language: str
    text: str


@dataclass(kw_only=True)
class Reader:
    """Somebody who does what the page says, in one shell: what is exported, and the folder, hold for the blocks that follow."""

    folder: Path
    environ: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.folder / "bin").mkdir()
        for name, script in STAND_INS.items():
            program = self.folder / "bin" / name
            for place, value in {"python": sys.executable, "root": ROOT, "folder": self.folder, "cli": CLI}.items():
                script = script.replace(f"{{{place}}}", shlex.quote(str(value)))
            program.write_text(f"#!/bin/sh -e\n{script}\n")
            program.chmod(0o755)
        path = f"{node().parent}:/usr/local/bin:/usr/bin:/bin"
        self.environ |= {"PATH": path, "HOME": str(self.folder), "DO_NOT_TRACK": "1"}
        self._cwd = self.folder

    def begin(self, block: Block) -> subprocess.Popen[str]:
        before, after = (
            f'set -euo pipefail\nPATH="{self.folder}/bin:$PATH"',
            f'env -0 > "{self.folder}/environ"\npwd > "{self.folder}/cwd"',
        )
        script = f"{before}\n{block.text}\n{after}\n"
        return subprocess.Popen(
            ["/bin/bash", "-c", script],
            cwd=self._cwd,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def end(self, running: subprocess.Popen[str], block: Block) -> str:
        """What it printed."""
        try:
            out, err = running.communicate(timeout=TIMEOUT_SECONDS)
        finally:
            kill(running)
        assert running.returncode == 0, f"{block.text}\n{out}\n{err}"
        exported = (self.folder / "environ").read_bytes().split(b"\0")
        self.environ = dict(os.fsdecode(one).split("=", 1) for one in exported if one)
        self._cwd = Path((self.folder / "cwd").read_text().strip())
        return out

    def lines(self, name: str) -> list[str]:
        return (self.folder / name).read_text().splitlines()


def kill(block: subprocess.Popen[str]) -> None:
    """The shell and what it started."""
    with suppress(ProcessLookupError):
        os.killpg(block.pid, signal.SIGKILL)


def blocks() -> list[Block]:
    found = [Block(language=language, text=dedent(text)) for _, language, text in BLOCK.findall(PAGE)]
    assert {block.language for block in found} == {"bash", "sql"}
    for placeholder, value in YOURS.items():
        assert any(placeholder in block.text for block in found), placeholder
        found = [Block(language=block.language, text=block.text.replace(placeholder, value)) for block in found]
    return found


def secrets_of(reader: Reader) -> dict[str, str]:
    """What the reader puts into RunPod's console, by the page's table."""
    return {name: reader.environ[variable] for name, variable in re.findall(r"\| `(\w+)` \| what `(\w+)` is above \|", PAGE)}


@contextmanager
def pod_of(runpod: FakeRunPod, pod: Record, secrets: dict[str, str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """What RunPod does with a pod: the volume is mounted, the template's secrets are put in, the image's own command is run."""
    assert (pod["args"], pod["ports"]) == ("", []), "the image's own command, and no way in"
    volume = folder / "volume"
    [mount] = pod["mounts"]["network"]
    resolved = {name: SECRET.sub(lambda found: secrets[found[1]], value) for name, value in pod["env"].items()}
    env = {name: value.replace(mount["path"], str(volume), 1) for name, value in resolved.items()}
    model = Path(env["MODEL_PATH"])
    assert model.is_relative_to(volume), "it would be fetched by each pod anew"
    model.parent.mkdir(parents=True)
    model.symlink_to(TINY_MODEL)
    env |= {"RUNPOD_POD_ID": pod["id"], "RUNPOD_API_KEY": runpod.key, "PATH": "/usr/bin:/bin", "HOME": str(folder)}
    with (folder / "pod.log").open("wb") as log:
        process = preloaded.Popen([sys.executable, "worker.py", "run"], cwd=ROOT, env=env, stderr=log)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(TIMEOUT_SECONDS)


def wait_for_pod(runpod: FakeRunPod, meanwhile: subprocess.Popen[str]) -> Record:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not runpod.pods:
        assert time.monotonic() < deadline, runpod.requests
        assert meanwhile.poll() is None, meanwhile.communicate()
        time.sleep(0.02)
    [pod] = runpod.pods.values()
    return pod


def test_the_page_leads_to_the_first_picture() -> None:
    with scratch_folder() as folder, FakeRunPod() as runpod, ExitStack() as running:
        reader = Reader(folder=folder, environ={"RUNPOD_REST_URL": runpod.rest_url})
        supabase: EmbeddedSupabase | None = None
        told = ""
        for block in blocks():
            if supabase is None and "supabase db push" in block.text:
                with (folder / "functions.env").open("a") as settings:
                    settings.write(f"RUNPOD_REST_URL={runpod.rest_url}\n")
                supabase = running.enter_context(embedded_supabase(data_dir=folder / "db", functions_env=folder / "functions.env"))
                assert {"SUPABASE_URL", "SUPABASE_SERVICE_ROLE_KEY"} <= set(reader.environ)
                reader.environ |= {"SUPABASE_URL": supabase.url, "SUPABASE_SERVICE_ROLE_KEY": supabase.secret_key}
                reader.environ["STAND_IN_DB_URL"] = supabase.db_url.replace("supabase_admin", "postgres")
            if block.language == "sql":
                assert supabase
                secret = re.findall(r"for the SQL editor: (\w{64})", told)[0]
                sql = block.text.replace("https://YOUR_PROJECT.supabase.co", supabase.url).replace("THE SAME SECRET", secret)
                with psycopg.connect(reader.environ["STAND_IN_DB_URL"], autocommit=True) as editor:
                    editor.execute(sql.encode())
                continue
            doing = reader.begin(block)
            running.callback(kill, doing)
            if "tools.first_picture" in block.text:
                pod = wait_for_pod(runpod, doing)
                running.enter_context(pod_of(runpod, pod, secrets_of(reader), folder))
            told += reader.end(doing, block)

        assert re.search(r"s  queued.*s  completed\n.*s  first\.png\n", told, re.DOTALL), told
        picture = np.array(Image.open(folder / "ourvidz-sdxl-worker" / "first.png")).astype(int)
        assert picture.shape == (128, 128, 3)
        assert picture[64, 64, 0] > picture[64, 64, 2] + 60, "a red circle"
        assert picture[3, 3, 2] > picture[3, 3, 0] + 60, "on a blue background"

        assert reader.lines("pushed") == ["docker.io/somebody/ourvidz-sdxl:1", "docker.io/somebody/ourvidz-sdxl:2"]
        [exporter] = reader.lines("ran")
        assert exporter.endswith(" docker.io/somebody/ourvidz-sdxl:1 python worker.py exporter")
        given = dict(re.findall(r"--env (\w+)=?(\S*)", exporter))
        assert given == {"SUPABASE_URL": "", "SUPABASE_SERVICE_ROLE_KEY": "", "HTTP_HOST": "0.0.0.0", "HTTP_PORT": "9091"}
        kinds = {template["name"]: template for template in runpod.templates.values()}
        assert set(kinds) == {"ourvidz-sdxl", "ourvidz-sdxl-serverless"}
        assert {template["image"] for template in kinds.values()} == {"docker.io/somebody/ourvidz-sdxl:2"}
        assert kinds["ourvidz-sdxl"]["env"]["MODEL_SHA256"] == "5" * 64
        assert pod["image"] == "docker.io/somebody/ourvidz-sdxl:1"
        assert (pod["mounts"]["network"][0]["volumeId"], pod["dataCenterId"]) == ("volume-1", "EU-SE-1")
        [(endpoint_id, endpoint)] = runpod.endpoints.items()
        assert (endpoint_id, endpoint["networkVolumes"], endpoint["image"]) == ("endpoint-1", ["volume-1"], pod["image"][:-1] + "2")
        assert "RUNPOD_ENDPOINT_ID=endpoint-1" in reader.lines("functions.env")


def test_the_real_cli_knows_every_call_of_the_page() -> None:
    calls = set(re.findall(r"^supabase ([a-z ]+?)((?: --[a-z-]+)*)(?: [\"A-Z].*)?$", PAGE, re.MULTILINE))
    assert len(calls) >= 5
    for command, flags in calls:
        help_text = subprocess.run(
            [CLI, *command.split(), "--help"],
            env={"PATH": f"{node().parent}:/usr/bin:/bin", "DO_NOT_TRACK": "1"},
            capture_output=True,
            text=True,
        ).stdout
        assert f"supabase {command}" in help_text, command
        for flag in flags.split():
            assert f"{flag} " in help_text or f"{flag}\n" in help_text, f"{command} {flag}"


def test_every_file_that_the_page_names_is_there() -> None:
    for path in re.findall(r"\]\((\.{0,2}/?[\w./-]+)(?:#[\w-]+)?\)", PAGE):
        assert (ROOT / "docs" / path).exists(), path
