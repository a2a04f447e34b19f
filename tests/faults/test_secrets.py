"""Nobody's words, keys or signed addresses in a log, an error, a repr or a row that others read, whatever goes wrong.

Run as a program this is a worker whose engine and libraries talk too much; see `TalkativeEngine`.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from PIL import Image
from psycopg.rows import dict_row

from ourvidz_sdxl import errors
from ourvidz_sdxl.connection import connect
from ourvidz_sdxl.encode import EncodedFile, describe, encode
from ourvidz_sdxl.engine import OnStep
from ourvidz_sdxl.job import Job, OutputFormat
from ourvidz_sdxl.local import ROOT, EmbeddedSupabase
from ourvidz_sdxl.plan import Plan, make_plan
from ourvidz_sdxl.process import Prepared
from ourvidz_sdxl.queue import Claimed, Lease, Outcome, Queue
from ourvidz_sdxl.settings import Settings
from ourvidz_sdxl.startup import run_worker
from ourvidz_sdxl.storage import Storage
from ourvidz_sdxl.telemetry import set_up_logging
from tests.integration.conftest import sign_up
from tests.pace import TIMEOUT_SECONDS
from tests.processes import environ, scratch_supabase
from tests.stub_worker import StubEngine

TALKATIVE = [sys.executable, "-m", "tests.faults.test_secrets"]

# Words that occur nowhere else, so that each can be searched for as it is.
PROMPT = "violet walrus"
NEGATIVE = "sullen heron"
ENHANCED = "crimson badger"
TOKEN = "quartz-finch-token"
ENHANCER_KEY = "umber-stoat-key"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJwbHVtLWxlbXVyIn0.c2lnbmVkLWJ5LWEtbGVtdXI"
REFERENCE = f"https://gilded-newt.invalid/a.png?token={TOKEN}&sig={TOKEN}#{TOKEN}"
SECRETS = {
    "prompt": PROMPT,
    "negative prompt": NEGATIVE,
    "enhanced prompt": ENHANCED,
    "token in the reference's address": TOKEN,
    "host of the reference": "gilded-newt",
    "enhancer's key": ENHANCER_KEY,
    "JSON web token": JWT,
}


class TalkativeEngine(StubEngine):
    """Repeats the words that it was given: as a library's warnings and log lines, and as the text of an error."""

    def paint(self, plan: Plan, reference: Image.Image | None, on_step: OnStep, *, frugal: bool = False) -> Sequence[Image.Image]:
        if "aloud" in plan.prompt:
            warnings.warn(f"{plan.prompt!r} is longer than 77 tokens", stacklevel=1)
            logging.getLogger("diffusers").warning("The following part of your input was truncated: %s", plan.prompt[3:-2])
            logging.getLogger("httpx").error("GET https://x.supabase.co/storage/v1/object/sign/b/p.png?token=%s", JWT)
        if "broken" in plan.prompt:
            try:
                raise ValueError(f"no tokens for {plan.negative_prompt!r} in {plan.prompt.upper()!r}")
            except ValueError as error:
                raise RuntimeError(f"cannot paint {plan.prompt!r}; asked with Bearer {JWT}") from error
        return super().paint(plan, reference, on_step, frugal=frugal)


def asked_for(kind: str, *, enhance: bool = False, **columns: object) -> dict[str, object]:
    job = {"job_type": "sdxl_image_fast", "prompt": f"a {PROMPT}, {kind}", "negative_prompt": f"a {NEGATIVE}", "steps": 1}
    return job | {"enhance_prompt": enhance} | columns


# One job for each way to fail, and the code it must end with: a failure that did not happen leaks nothing.
JOBS: dict[str, tuple[dict[str, object], str | None]] = {
    "a library repeats the prompt": (asked_for("aloud"), None),
    "an error repeats the prompt": (asked_for("broken"), "unknown_error"),
    "the database refuses the end, and repeats the row": (asked_for("refused", seed=1), "supabase_refused"),
    "Storage refuses the upload": (asked_for("stored", job_type="sdxl_image_high"), "upload_refused"),
    "the reference is nowhere": (asked_for("shown", reference_image_url=REFERENCE, reference_strength=0.5), "invalid_reference"),
    "the reference is nowhere, and not needed": (
        asked_for("shown", reference_image_url=REFERENCE, reference_strength=0.5, fallback_to_text=True),
        None,
    ),
    "the enhancer fails": (asked_for("unheard", enhance=True), None),
    "the prompt is enhanced": (asked_for("heard", enhance=True), None),
    "an error repeats the enhanced prompt": (asked_for("broken, heard", enhance=True), "unknown_error"),
    "the row makes no sense": (asked_for("sized", width=100, height=100), "invalid_job"),
    "the words are not allowed": (asked_for("of a naked child"), "content_refused"),
}


class Endpoint(BaseHTTPRequestHandler):
    """An enhancer that answers some prompts, and repeats the others, and its key, in an error."""

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
        heard = "unheard" not in asked.rpartition(PROMPT)[2] and "heard" in asked.rpartition(PROMPT)[2]
        words = f" a {PROMPT}, {'broken' if 'broken' in asked.rpartition(PROMPT)[2] else 'heard'}, beside a {ENHANCED}"
        answer = {"choices": [{"text": words, "finish_reason": "stop"}]} if heard else {"error": asked, "you": dict(self.headers)}
        content = json.dumps(answer).encode()
        self.send_response(200 if heard else 500)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def enhancer() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Endpoint)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


FAULTS = """
  alter table public.jobs add constraint planted check (status <> 'completed' or seed is distinct from 1);
  alter table public.jobs drop constraint width_is_a_multiple_of_64_from_128_to_2048;
  alter table public.jobs drop constraint height_is_a_multiple_of_64_from_128_to_2048;
  update storage.buckets set allowed_mime_types = array['text/plain'] where id = 'sdxl_image_high';
  create function private.tell() returns trigger language plpgsql as $$
    begin perform pg_notify('finished', new.id::text); return null; end $$;
  create trigger tell after update on public.jobs for each row when (new.completed_at is not null)
    execute function private.tell()
"""


HIDDEN = "array['prompt', 'negative_prompt', 'enhanced_prompt', 'reference_image_url']"
TOLD = (
    f"select to_jsonb(j) - {HIDDEN} as row from public.jobs j",
    "select to_jsonb(i) as row from public.job_images i",
    "select to_jsonb(e) as row from public.job_events e",
    "select to_jsonb(w) as row from public.workers w",
    "select to_jsonb(o) as row from storage.objects o",
)


class Night:
    """Everything goes wrong at once, under one worker; `log` is all that it wrote."""

    def __init__(self, log_format: str, folder: Path) -> None:
        with ExitStack() as worker, scratch_supabase() as self.supabase, enhancer() as url:
            self.user = sign_up(self.supabase)
            with psycopg.connect(self.supabase.db_url, autocommit=True, row_factory=dict_row) as db:
                db.execute(FAULTS)
                self.jobs = {name: self.user.insert(**columns)["id"] for name, (columns, _) in JOBS.items()}
                db.execute("update public.jobs set max_attempts = 1")
                db.execute("listen finished")
                worker.enter_context(self.worker(log_format, url, folder / "log"))
                wanted = set(self.jobs.values())
                for word in db.notifies(timeout=TIMEOUT_SECONDS):
                    wanted -= {word.payload}
                    if not wanted:
                        break
                self.rows = {str(row["id"]): row for row in db.execute("select * from public.jobs").fetchall()}
                self.told = "\n".join(str(row["row"]) for query in TOLD for row in db.execute(query).fetchall())
            worker = worker.pop_all()
        with worker:  # Supabase is gone, and the worker still up: it now fails at everything
            pass
        self.log = (folder / "log").read_text()

    @contextmanager
    def worker(self, log_format: str, enhancer_url: str, log: Path) -> Iterator[None]:
        settings = {
            "log_format": log_format,
            "log_level": "debug",
            "enhancer": "http",
            "enhancer_url": enhancer_url,
            "enhancer_api_key": ENHANCER_KEY,
            "request_timeout_seconds": 2,
            "lease_seconds": 10,  # half of it is the patience with a Supabase that is gone
        }
        env = environ(self.supabase, **settings) | {"PYTHONWARNINGS": "always", "PYTHONDEVMODE": "1"}
        with log.open("w") as stderr, subprocess.Popen(TALKATIVE, env=env, cwd=ROOT, stderr=stderr) as process:
            try:
                yield
                process.send_signal(signal.SIGTERM)
                process.wait(timeout=TIMEOUT_SECONDS)
            finally:
                process.kill()

    def secrets(self) -> dict[str, str]:
        keys = {"secret key": self.supabase.secret_key, "publishable key": self.supabase.publishable_key}
        return SECRETS | keys | {"user's token": self.user.access_token}


@pytest.fixture(scope="module", params=["json", "console"])
def night(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Night:
    return Night(request.param, tmp_path_factory.mktemp("night"))


def spilled(text: str, secrets: Mapping[str, str]) -> list[str]:
    """Each secret of which a word stands in `text`, in any case, with its line."""
    words = [(name, word.lower()) for name, secret in secrets.items() for word in secret.split()]
    return [f"{name}: {line[:300]}" for line in text.splitlines() for name, word in words if word in line.lower()]


@pytest.mark.parametrize("name", JOBS)
def test_it_happened(night: Night, name: str) -> None:
    row = night.rows[night.jobs[name]]
    assert (row["error_code"], row["status"]) == (JOBS[name][1], "failed" if JOBS[name][1] else "completed")


def test_nothing_in_the_log(night: Night) -> None:
    assert "job_completed" in night.log
    assert "generation_error" in night.log
    assert spilled(night.log, night.secrets()) == []


def test_nothing_in_what_others_read(night: Night) -> None:
    """Not in the columns that the operator sees beside the words themselves, either."""
    assert spilled(night.told, night.secrets()) == []


# Errors and reprs


@pytest.fixture(scope="module")
def supabase() -> Iterator[EmbeddedSupabase]:
    with scratch_supabase() as running:
        yield running


@pytest.fixture(scope="module")
def settings(supabase: EmbeddedSupabase) -> Settings:
    given = {"supabase_url": supabase.url, "supabase_service_role_key": supabase.secret_key, "enhancer_api_key": ENHANCER_KEY}
    return Settings.from_env({name.upper(): value for name, value in given.items()} | {"LEASE_SECONDS": "10"})


@pytest.fixture(scope="module")
def row(supabase: EmbeddedSupabase) -> dict[str, Any]:
    return asked_for("row") | {
        "id": str(uuid4()),
        "user_id": str(uuid4()),
        "claims": 1,
        "reference_image_url": REFERENCE,
        "reference_strength": 0.5,
        "negative_preset": NEGATIVE,
        "enhanced_prompt": ENHANCED,
    }


def shown(thing: object) -> str:
    return "\n".join([repr(thing), str(thing), f"{thing}", f"{[thing]}"])


def everything(supabase: EmbeddedSupabase, settings: Settings, row: dict[str, Any]) -> dict[str, object]:
    job = Job.from_row(row)
    plan = make_plan(job, native_size=64, random_seed=1, enhanced_prompt=ENHANCED)
    words = describe(plan, 0, model="m", model_hash="0" * 64, version="1")
    return {
        "Settings": settings,
        "Job": job,
        "Plan": plan,
        "Prepared": Prepared(plan=plan, reference=None, enhanced_prompt=ENHANCED),
        "Claimed": Claimed(row=row, lease=Lease(UUID(row["id"]), uuid4(), 0)),
        "EncodedFile": encode(Image.new("RGB", (8, 8)), OutputFormat.PNG, words),
        "EmbeddedSupabase": supabase,
    }


@pytest.mark.parametrize("name", ["Settings", "Job", "Plan", "Prepared", "Claimed", "EncodedFile", "EmbeddedSupabase"])
def test_no_repr_tells(name: str, supabase: EmbeddedSupabase, settings: Settings, row: dict[str, Any]) -> None:
    keys = {"secret key": supabase.secret_key, "publishable key": supabase.publishable_key}
    assert spilled(shown(everything(supabase, settings, row)[name]), SECRETS | keys) == []


@pytest.mark.parametrize(
    "broken",
    [
        {"prompt": ["a", PROMPT]},
        {"negative_prompt": {"a": NEGATIVE}},
        {"reference_image_url": [REFERENCE]},
        {"prompt": PROMPT * 1000},
        {"metadata": {"fit": PROMPT}},
        {"id": PROMPT},
        {"steps": PROMPT, "seed": TOKEN},
    ],
    ids=lambda broken: next(iter(broken)),
)
def test_a_row_that_cannot_be_parsed_is_not_quoted(broken: dict[str, Any], row: dict[str, Any]) -> None:
    with pytest.raises(errors.JobInvalid) as caught:
        Job.from_row(row | broken)
    assert spilled(told(caught.value), SECRETS) == []


@pytest.mark.parametrize("name", ["SUPABASE_URL", "LEASE_SECONDS", "ENHANCER", "ENHANCER_URL", "JOB_TYPES", "CONTENT_POLICY"])
def test_settings_that_cannot_be_parsed_are_not_quoted(name: str, supabase: EmbeddedSupabase) -> None:
    given = {"SUPABASE_URL": supabase.url, "SUPABASE_SERVICE_ROLE_KEY": supabase.secret_key, "ENHANCER_API_KEY": ENHANCER_KEY}
    with pytest.raises(errors.SettingsInvalid) as caught:
        Settings.from_env(given | {name: f"{supabase.secret_key} {TOKEN}"})
    assert spilled(told(caught.value), SECRETS | {"secret key": supabase.secret_key}) == []


def test_the_clients_key_in_the_workers_place_is_not_quoted(supabase: EmbeddedSupabase) -> None:
    with pytest.raises(errors.SettingsInvalid) as caught:
        Settings.from_env({"SUPABASE_URL": supabase.url, "SUPABASE_SERVICE_ROLE_KEY": supabase.publishable_key})
    assert spilled(told(caught.value), {"publishable key": supabase.publishable_key}) == []


@pytest.mark.parametrize("name", ["SUPABASE_SERVICE_ROLE_KEY", "ENHANCER_API_KEY"])
@pytest.mark.parametrize("key", ["sb_secret_quartz\nfinch", "sb_secret_quartz finch", "sb_secret_quärtz-finch"])
def test_a_key_that_no_header_can_carry_is_refused_at_the_start(name: str, key: str, supabase: EmbeddedSupabase) -> None:
    """HTTP libraries would quote the header that they refuse."""
    given = {"SUPABASE_URL": supabase.url, "SUPABASE_SERVICE_ROLE_KEY": supabase.secret_key}
    with pytest.raises(errors.SettingsInvalid, match=name) as caught:
        Settings.from_env(given | {name: key})
    assert spilled(told(caught.value), {"key": "finch"}) == []


def test_what_the_database_refuses_is_not_quoted(supabase: EmbeddedSupabase, settings: Settings) -> None:
    """The DETAIL of a constraint error is the whole row."""
    user = sign_up(supabase)
    with psycopg.connect(supabase.db_url, autocommit=True) as db:
        job_id = user.insert(**asked_for("row"))["id"]
        db.execute("alter table public.jobs add constraint planted check (status <> 'failed')")
        queue = Queue(connect(settings), settings)
        claimed, _ = queue.claim()
        assert claimed
        assert claimed.row["id"] == job_id
        with pytest.raises(errors.SupabaseRefused, match="planted") as caught:
            queue.finish(claimed.lease, Outcome.FAILED, error={"code": "x", "message": "y"})
        db.execute("alter table public.jobs drop constraint planted")
    assert spilled(told(caught.value), SECRETS | {"secret key": supabase.secret_key}) == []


def test_what_storage_refuses_is_not_quoted(settings: Settings, row: dict[str, Any]) -> None:
    storage = Storage(connect(settings), patience_seconds=1)
    file = EncodedFile(content=PROMPT.encode(), mime_type="text/plain", suffix="txt")
    with pytest.raises(errors.UploadFailed) as caught:
        storage.upload("sdxl_image_fast", f"{row['user_id']}/{TOKEN}.txt", file)
    assert spilled(told(caught.value), SECRETS) == []


def test_a_supabase_that_is_not_there_is_not_quoted(settings: Settings) -> None:
    nowhere = settings.model_copy(update={"supabase_url": "http://127.0.0.1:1"})
    with pytest.raises(errors.SupabaseUnavailable) as caught:
        Queue(connect(nowhere), nowhere).report_worker("ready", {})
    assert spilled(told(caught.value), {"secret key": settings.supabase_service_role_key.get_secret_value()}) == []


def told(error: BaseException) -> str:
    """All that a log or a debugger's first look would show of it."""
    return "\n".join([*traceback.format_exception(error), repr(error), str(error), getattr(error, "user_message", "")])


if __name__ == "__main__":
    its_own = Settings.from_env(os.environ)
    set_up_logging(its_own.log_format, its_own.log_level)
    sys.exit(run_worker(its_own, lambda: TalkativeEngine(0)))
