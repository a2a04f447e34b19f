"""`worker.py doctor` passes where all is well, and names the mend of each fault that is planted."""

import base64
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from unittest import mock

import psycopg
import pytest
import structlog

import ourvidz_sdxl.cli  # noqa: F401  which quietens libraries before they are imported
from ourvidz_sdxl.doctor import examine, machine
from ourvidz_sdxl.doctor.finding import State
from ourvidz_sdxl.local import ROOT, EmbeddedSupabase
from ourvidz_sdxl.settings import Settings
from tests import preloaded
from tests.fault_proxy import FaultProxy
from tests.processes import TINY_MODEL, environ, scratch_supabase

CHECKS = ["settings", "key", "address", "migrations", "queue functions", "buckets", "realtime", "clock"]
CHECKS += ["model", "engine", "gpu", "disk", "image check"]
FUNCTION = "public.claim_jobs(text, text, text[], uuid, integer, integer)"

# A trigger of the project's own, as pg-safeupdate answers it; the server here does not have that extension.
SAFEUPDATE = """
  create function public.planted() returns trigger language plpgsql as $$
  begin
    raise exception 'UPDATE requires a WHERE clause' using errcode = '21000';
  end $$;
  create trigger planted before update on public.jobs for each statement execute function public.planted()
"""

Plant = Callable[["Patient"], AbstractContextManager[Mapping[str, object]]]


@dataclass(frozen=True, kw_only=True)
class Patient:
    supabase: EmbeddedSupabase
    folder: Path

    def sql(self, statement: str) -> None:
        with psycopg.connect(self.supabase.db_url, autocommit=True) as database:
            database.execute(statement)


@pytest.fixture(scope="module")
def own_supabase() -> Iterator[EmbeddedSupabase]:
    with scratch_supabase() as running:
        yield running


@pytest.fixture
def patient(own_supabase: EmbeddedSupabase, tmp_path: Path) -> Patient:
    return Patient(supabase=own_supabase, folder=tmp_path)


def doctor(supabase: EmbeddedSupabase, *arguments: str) -> tuple[int, str]:
    command = [sys.executable, str(ROOT / "worker.py"), "doctor", *arguments]
    done = preloaded.run(command, env=environ(supabase))
    assert done.stderr == "", "no traceback, no warning"
    return done.returncode, done.stdout


def findings(told: str) -> dict[str, dict[str, str]]:
    return {check["name"]: check for check in json.loads(told)["checks"]}


def test_all_is_well(supabase: EmbeddedSupabase) -> None:
    status, told = doctor(supabase)
    assert [line.partition(": ")[0] for line in told.splitlines()] == [
        f"{'note' if name in ('engine', 'gpu') else 'ok  '} {name}" for name in CHECKS
    ]
    assert status == 0


def test_it_tells_a_machine_the_same(supabase: EmbeddedSupabase) -> None:
    status, told = doctor(supabase, "--json")
    assert (status, json.loads(told)["ok"], list(findings(told))) == (0, True, CHECKS)
    assert {state["state"] for state in findings(told).values()} == {"ok", "note"}


def test_it_leaves_nothing_behind(patient: Patient) -> None:
    doctor(patient.supabase)
    with psycopg.connect(patient.supabase.db_url) as database:
        assert database.execute("select (select count(*) from public.workers), (select count(*) from public.jobs)").fetchone() == (
            0,
            0,
        )


# What can be wrong. Each of these plants one fault and takes it out again; the settings that it yields are the worker's.


@contextmanager
def setting(_: Patient, **settings: object) -> Iterator[Mapping[str, object]]:
    yield settings


def with_setting(**settings: object) -> Plant:
    return lambda patient: setting(patient, **settings)


def token(**claims: object) -> str:
    """A JSON web token with these claims and no valid signature, which the key's own words do not need."""
    parts = ({"alg": "HS256", "typ": "JWT"}, claims)
    return ".".join([*(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts), "c2lnbmF0dXJl"])


def in_the_database(plant: str, undo: str) -> Plant:
    @contextmanager
    def planted(patient: Patient) -> Iterator[Mapping[str, object]]:
        patient.sql(plant)
        try:
            yield {}
        finally:
            patient.sql(undo)

    return planted


def on_the_way(fault: Callable[[FaultProxy], None]) -> Plant:
    @contextmanager
    def planted(patient: Patient) -> Iterator[Mapping[str, object]]:
        with FaultProxy(patient.supabase.url) as proxy:
            fault(proxy)
            yield {"supabase_url": proxy.url}

    return planted


@contextmanager
def the_publishable_key(patient: Patient) -> Iterator[Mapping[str, object]]:
    yield {"supabase_service_role_key": patient.supabase.publishable_key}


@contextmanager
def a_web_page_at_the_url(_: Patient) -> Iterator[Mapping[str, object]]:
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<h1>Welcome</h1>")

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield {"supabase_url": f"http://127.0.0.1:{server.server_address[1]}"}
        server.shutdown()


def copied_model(folder: Path) -> Path:
    """The bundled model in a folder of its own, linked so far as possible."""
    copy = folder / "model"
    shutil.copytree(TINY_MODEL, copy)
    return copy


@contextmanager
def a_model_that_was_cut_off(patient: Patient) -> Iterator[Mapping[str, object]]:
    model = copied_model(patient.folder)
    weights = next((model / "unet").glob("*.safetensors"))
    os.truncate(weights, weights.stat().st_size // 2)
    yield {"model_path": model}


@contextmanager
def a_model_of_another_hash(patient: Patient) -> Iterator[Mapping[str, object]]:
    """One file, as it is downloaded: a whole SDXL by its names, with one byte changed."""
    file = single_file(patient.folder / "model.safetensors")
    right = sha256(file.read_bytes()).hexdigest()
    with file.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        last = stream.read(1)
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([last[0] ^ 1]))
    yield {"model_path": file, "model_sha256": right}


def single_file(path: Path) -> Path:
    import numpy as np
    from safetensors.numpy import save_file

    from ourvidz_sdxl.engine.checkpoint import LANDMARKS

    shapes = {name: (4, 4, 3, 3) if name == LANDMARKS["UNet"] else (2, 2) for name in LANDMARKS.values()}
    save_file({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, path)
    return path


@contextmanager
def a_clock_an_hour_ahead(_: Patient) -> Iterator[Mapping[str, object]]:
    now = time.time
    with mock.patch("time.time", side_effect=lambda: now() + 3600):
        yield {}


@contextmanager
def a_full_disk(patient: Patient) -> Iterator[Mapping[str, object]]:
    """A file system of 64 MB, nearly full of the model."""
    volume = patient.folder / "volume"
    volume.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(volume)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield {"model_path": copied_model(volume)}
    finally:
        subprocess.run(["umount", str(volume)], check=True)


@dataclass(frozen=True, kw_only=True)
class Fault:
    plant: Plant
    check: str
    words: str
    mend: str


FAULTS = {
    "no key": Fault(
        plant=with_setting(supabase_service_role_key=""), check="settings", words="SUPABASE_SERVICE_ROLE_KEY", mend=".env.example"
    ),
    "the publishable key": Fault(plant=the_publishable_key, check="settings", words="publishable key", mend=".env.example"),
    "the anon key": Fault(
        plant=with_setting(supabase_service_role_key=token(role="anon")), check="key", words="anon key", mend="Copy the secret key"
    ),
    "an expired key": Fault(
        plant=with_setting(supabase_service_role_key=token(role="service_role", exp=int(time.time()) - 60)),
        check="key",
        words="has expired",
        mend="Copy the secret key",
    ),
    "a key that was cut off": Fault(
        plant=with_setting(supabase_service_role_key=token(role="service_role")[:40]),
        check="key",
        words="cut off",
        mend="Copy the secret key",
    ),
    "the key of another project": Fault(
        plant=with_setting(
            supabase_service_role_key=token(role="service_role", ref="abcdefgh"), supabase_url="https://qrstuvwx.supabase.co"
        ),
        check="key",
        words="of the project abcdefgh, and SUPABASE_URL of qrstuvwx",
        mend="Copy the secret key",
    ),
    "a key that was deleted": Fault(
        plant=with_setting(supabase_service_role_key="sb_secret_gone"),
        check="address",
        words="does not take this key",
        mend="are of one project",
    ),
    "no network": Fault(
        plant=with_setting(supabase_url="https://project.invalid"), check="address", words="cannot be reached", mend="name server"
    ),
    "a wrong address": Fault(plant=a_web_page_at_the_url, check="address", words="is no Supabase", mend="Check SUPABASE_URL"),
    "no migration was pushed": Fault(
        plant=in_the_database("alter table public.jobs rename to gone", "alter table public.gone rename to jobs"),
        check="address",
        words="without the table jobs",
        mend="supabase db push",
    ),
    "a migration is missing": Fault(
        plant=in_the_database(
            f"alter function {FUNCTION} rename to gone",
            f"alter function {FUNCTION.replace('claim_jobs', 'gone')} rename to claim_jobs",
        ),
        check="queue functions",
        words="no claim_jobs with the arguments",
        mend="supabase db push",
    ),
    "an older database": Fault(
        plant=in_the_database(
            "update supabase_migrations.schema_migrations set version = 'gone' where version = '20261122000900'",
            "update supabase_migrations.schema_migrations set version = '20261122000900' where version = 'gone'",
        ),
        check="migrations",
        words="older than this worker: it lacks 20261122000900",
        mend="supabase db push",
    ),
    "a view is missing": Fault(
        plant=in_the_database("alter view public.queue_health rename to gone", "alter view public.gone rename to queue_health"),
        check="queue functions",
        words="no queue_health with the arguments and columns",
        mend="notify pgrst, 'reload schema'",
    ),
    "a table beneath is missing": Fault(
        plant=in_the_database("alter table private.sweep rename to gone", "alter table private.gone rename to sweep"),
        check="queue functions",
        words='"private.sweep" does not exist',
        mend="supabase db push",
    ),
    "a statement without WHERE": Fault(
        plant=in_the_database(SAFEUPDATE, "drop function public.planted() cascade"),
        check="queue functions",
        words="claim_jobs runs an UPDATE or DELETE without WHERE",
        mend="tools.check_database",
    ),
    "a grant was revoked": Fault(
        plant=in_the_database(
            f"revoke execute on function {FUNCTION} from service_role", f"grant execute on function {FUNCTION} to service_role"
        ),
        check="queue functions",
        words="may not call claim_jobs",
        mend="grant execute on function public.claim_jobs to service_role",
    ),
    "a grant beneath was revoked": Fault(
        plant=in_the_database("revoke usage on schema private from service_role", "grant usage on schema private to service_role"),
        check="queue functions",
        words="may not use the schema private, which claim_jobs needs",
        mend="that supabase/migrations has for private",
    ),
    "a project that grants nothing by default": Fault(
        plant=in_the_database(
            "revoke all on public.jobs from service_role", "grant select, insert, update, delete on public.jobs to service_role"
        ),
        check="address",
        words="may not use the table jobs",
        mend="that supabase/migrations has for jobs",
    ),
    "a bucket is missing": Fault(
        plant=in_the_database(
            "update storage.buckets set id = 'gone' where id = 'sdxl_image_high'",
            "update storage.buckets set id = 'sdxl_image_high' where id = 'gone'",
        ),
        check="buckets",
        words="Missing: sdxl_image_high",
        mend="supabase db push",
    ),
    "a bucket is public": Fault(
        plant=in_the_database(
            "update storage.buckets set public = true where id = 'reference_images'",
            "update storage.buckets set public = false where id = 'reference_images'",
        ),
        check="buckets",
        words="Public, so that anybody can read their images: reference_images",
        mend="Turn `Public bucket` off",
    ),
    "Realtime refuses": Fault(
        plant=on_the_way(FaultProxy.refuse_joins), check="realtime", words="No subscription to worker:sdxl", mend="Realtime is on"
    ),
    "Realtime loses wakes": Fault(
        plant=on_the_way(lambda proxy: proxy.swallow("wake")), check="realtime", words="did not come back", mend="Realtime's logs"
    ),
    "a clock that is wrong": Fault(
        plant=a_clock_an_hour_ahead,
        check="clock",
        words="3600 s ahead of the database's",
        mend="timedatectl set-ntp true",
    ),
    "a model that was cut off": Fault(
        plant=a_model_that_was_cut_off, check="model", words="cut off", mend="copy or download the model again"
    ),
    "no model": Fault(
        plant=with_setting(model_path="/no/such.safetensors"), check="model", words="/no/such", mend="Check MODEL_PATH"
    ),
    "a model of another hash": Fault(
        plant=a_model_of_another_hash, check="model", words="SHA-256 of model.safetensors is", mend="Delete the file"
    ),
    "a full disk": Fault(plant=a_full_disk, check="disk", words="GB needed", mend="take a larger volume"),
    "no image check": Fault(
        plant=with_setting(image_check="no.such.Check"), check="image check", words="no.such.Check", mend="Python path"
    ),
}
STOPS_AT = {"settings": CHECKS[1:], "address": CHECKS[3:8]}  # what cannot be looked at then


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found_with_its_mend(patient: Patient, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    fault = FAULTS[name]
    with fault.plant(patient) as settings, structlog.testing.capture_logs():
        status = examine(environ(patient.supabase, **settings), as_json=True)
    told, said = capsys.readouterr()
    assert said == "", "no traceback, no warning"
    found = findings(told)
    assert status == 1
    assert fault.words in found[fault.check]["words"]
    assert fault.mend in found[fault.check]["mend"]
    wrong = {check for check, finding in found.items() if finding["state"] == "fail"}
    # a key that is wrong by its looks is refused by Supabase, too
    assert wrong - ({"address"} if fault.check == "key" else set()) == {fault.check}, "and nothing else is called wrong"
    assert patient.supabase.secret_key not in told


CARD: dict[str, Any] = {"name": "H100", "total_bytes": 80 * 10**9, "free_bytes": 79 * 10**9}


@pytest.mark.parametrize(
    ("cards", "no_cuda", "state", "words"),
    [
        ([CARD], None, State.OK, "79 of 80 GB free"),
        ([CARD], "the driver is too old", State.FAIL, "the driver is too old"),
        ([CARD, CARD | {"total_bytes": 8 * 10**9}], None, State.FAIL, "has 8 GB, and MEMORY_LIMIT_GB is 10"),
        ([CARD | {"free_bytes": 5 * 10**9}], None, State.NOTE, "less than MEMORY_LIMIT_GB"),
        ([], None, State.NOTE, "on the CPU"),
    ],
)
def test_what_it_says_of_a_gpu(
    cards: list[dict[str, Any]], no_cuda: str | None, state: State, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is none here: what the driver and PyTorch say is made up."""
    monkeypatch.setattr(machine, "visible_cards", lambda: cards)
    monkeypatch.setattr("ourvidz_sdxl.engine.why_no_cuda", lambda: no_cuda)
    given = {"SUPABASE_URL": "http://127.0.0.1:9", "SUPABASE_SERVICE_ROLE_KEY": "sb_secret_x"}
    finding = machine.check_gpu(Settings.from_env(given))
    assert finding.state is state
    assert words in finding.words
