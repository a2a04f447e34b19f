"""The whole way on one machine: embedded Supabase, a worker process, and a user whose job goes through both.

The user here does what a frontend does, with the same client calls; nothing in this file reaches around Supabase.
"""

from __future__ import annotations

import asyncio
import json
import mimetypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import httpx
from postgrest.exceptions import APIError
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from supabase import AsyncClient, AsyncClientOptions, AuthApiError, acreate_client, create_client

from ourvidz_sdxl.local import ROOT, EmbeddedSupabase, embedded_supabase
from ourvidz_sdxl.studio import BUNDLED_MODEL, serve_studio

MODEL = ROOT / "models" / "tiny-sdxl"
JOB_TIMEOUT_SECONDS = 300
SUPABASE_PORT = 54321  # the Supabase CLI's own
# Of a Supabase that only this machine reaches: who asks for the first job, and who is signed in where Studio is opened.
ACCOUNT = {"email": "operator@example.com", "password": "operator"}


EXAMPLE = """
// npm install @supabase/supabase-js; node example.mjs (Node 22 or newer)
import {{ createClient }} from '@supabase/supabase-js'
const supabase = createClient('{url}', '{key}')
const {{ data: {{ user }} }} = await supabase.auth.signInWithPassword({{ email: '{email}', password: '{password}' }})
const id = crypto.randomUUID()
await supabase.realtime.setAuth()
supabase
  .channel('user:' + user.id, {{ config: {{ private: true }} }})
  .on('broadcast', {{ event: 'UPDATE' }}, ({{ payload: {{ record, images }} }}) => {{
    if (record.id !== id) return
    console.log(record.status, images ?? '')
    if (record.completed_at) supabase.removeAllChannels() // so that the program can end
  }})
  .subscribe(async (status) => {{
    if (status !== 'SUBSCRIBED') return
    const {{ error }} = await supabase
      .from('jobs')
      .insert({{ id, job_type: 'sdxl_image_fast', prompt: 'a yellow star on a black background' }})
    if (error) throw error
  }})
"""


@dataclass(frozen=True, kw_only=True)
class Wish:
    prompt: str
    reference: Path | None = None
    strength: float | None = None
    exact_copy: bool = False
    batch: int = 1
    seed: int | None = None


def demo(wish: Wish, *, out: Path, once: bool, data_dir: Path | None = None) -> int:
    """Returns 0 when the job completed. The last line on standard output is one JSON object: status, images, seconds."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that both children are stopped
    with (
        embedded_supabase(data_dir=data_dir, port=SUPABASE_PORT) as supabase,
        serve(supabase) as studio,
        worker_process(supabase) as worker,
    ):
        make_account(supabase)
        if studio and not once:
            say_where(studio)
        started = time.monotonic()
        try:
            job, paths = asyncio.run(as_a_frontend(supabase, wish, out))
        except APIError as error:  # the database's own refusal
            job, paths = {"status": "refused", "error_code": error.code, "error_message": error.message}, []
        result: dict[str, Any] = {
            "status": job["status"],
            "images": [str(path) for path in paths],
            "seconds": round(time.monotonic() - started, 2),
        }
        if job["status"] != "completed":
            result |= {"error_code": job["error_code"], "error_message": job["error_message"]}
        if not once:
            say(supabase, paths)
            if studio:
                say_where(studio)  # once more: by now it has scrolled away
            wait_for_the_end(worker)
    print(json.dumps(result))  # noqa: T201  the contract of the command
    return 0 if job["status"] == "completed" else 1


@contextmanager
def worker_process(supabase: EmbeddedSupabase) -> Iterator[subprocess.Popen[bytes]]:
    """`python worker.py run` with the bundled model, drained at the end; at the demo's own end, too, however it comes."""
    environ = os.environ | {
        "SUPABASE_URL": supabase.url,
        "SUPABASE_SERVICE_ROLE_KEY": supabase.secret_key,
        "MODEL_PATH": os.environ.get("MODEL_PATH", str(MODEL)),
        "LOG_LEVEL": os.environ.get("LOG_LEVEL", "warning" if sys.stderr.isatty() else "info"),
    }
    command = [sys.executable, str(ROOT / "worker.py"), "run", "--watch-stdin"]
    # its own session: Ctrl-C comes to the demo alone, which then stops the worker and Supabase in that order
    process = subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, start_new_session=True)  # noqa: S603  our own program
    try:
        yield process
    finally:
        process.communicate(timeout=30)  # the end of its input is what stops it; SIGTERM beside that would be a second one


async def as_a_frontend(supabase: EmbeddedSupabase, wish: Wish, out: Path) -> tuple[dict[str, Any], list[Path]]:
    """Signs in, inserts the job, listens, downloads. Returns the finished row and the files."""
    async with httpx.AsyncClient() as http:
        client = await acreate_client(supabase.url, supabase.publishable_key, AsyncClientOptions(httpx_client=http))
        try:
            job = await painted(client, wish)
            return job, await download(client, job["id"], out)
        finally:
            await client.realtime.close()


async def painted(client: AsyncClient, wish: Wish) -> dict[str, Any]:
    session = await client.auth.sign_in_with_password(cast("Any", ACCOUNT))
    if session.user is None or session.session is None:
        raise RuntimeError("the embedded Auth should have signed the demo's account in")
    user_id = session.user.id
    await client.realtime.set_auth(session.session.access_token)

    job_id = str(uuid4())  # known before the first message about it
    finished: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
    with progress_display() as show:

        def on_change(message: Any) -> None:
            record = message["payload"]["record"]
            if record["id"] != job_id:
                return
            show(record["status"], record["progress"])
            if record["completed_at"] and not finished.done():
                finished.set_result(record)

        await subscribe(client, f"user:{user_id}", {"INSERT": on_change, "UPDATE": on_change})
        await insert_job(client, user_id, job_id, wish)
        await subscribe(client, f"job:{job_id}", {"progress": lambda message: show("processing", message["payload"]["progress"])})
        loading = asyncio.create_task(say_when_the_model_loads(client, show))
        async with asyncio.timeout(JOB_TIMEOUT_SECONDS):
            job = await finished
        loading.cancel()
    return job


async def say_when_the_model_loads(client: AsyncClient, show: Any) -> None:
    """Until a worker is ready, which the operator's view of them says."""
    while True:
        workers = cast("list[dict[str, Any]]", (await client.table("fleet").select("state").execute()).data)
        if any(worker["state"] == "ready" for worker in workers):
            return
        show("the worker is loading its model", 0)
        await asyncio.sleep(1)


async def subscribe(client: AsyncClient, topic: str, handlers: dict[str, Any]) -> None:
    channel = client.channel(topic, {"config": {"private": True, "broadcast": None, "presence": None}})
    for event, handler in handlers.items():
        channel.on_broadcast(event, handler)
    await channel.subscribe()


async def insert_job(client: AsyncClient, user_id: str, job_id: str, wish: Wish) -> None:
    job: dict[str, Any] = {
        "id": job_id,
        "job_type": "sdxl_image_high",
        "prompt": wish.prompt,
        "batch_size": wish.batch,
        "exact_copy_mode": wish.exact_copy,
    }
    if wish.seed is not None:
        job["seed"] = wish.seed
    if wish.reference is not None:
        path = f"{user_id}/{uuid4()}{wish.reference.suffix}"
        mime_type = mimetypes.guess_type(wish.reference)[0] or "application/octet-stream"
        await client.storage.from_("reference_images").upload(path, wish.reference.read_bytes(), {"content-type": mime_type})
        job |= {"reference_image_path": path, "reference_strength": 0.5 if wish.strength is None else wish.strength}
    await client.table("jobs").insert(job).execute()


async def download(client: AsyncClient, job_id: str, out: Path) -> list[Path]:
    out.mkdir(parents=True, exist_ok=True)
    answer = await client.table("job_images").select("*").eq("job_id", job_id).order("index").execute()
    paths = []
    for image in cast("list[dict[str, Any]]", answer.data):
        path = out / f"{job_id}-{image['index']}{Path(image['path']).suffix}"
        path.write_bytes(await client.storage.from_(image["bucket"]).download(image["path"]))
        paths.append(path)
    return paths


@contextmanager
def progress_display() -> Iterator[Any]:
    """A bar on a terminal; in a pipe the worker's own log lines say it."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _status, _percent: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("waiting", total=100)
        yield lambda status, percent: bar.update(task, description=status, completed=percent)


def serve(supabase: EmbeddedSupabase) -> AbstractContextManager[str | None]:
    model = {} if "MODEL_PATH" in os.environ else BUNDLED_MODEL
    return serve_studio(supabase, {**model, "account": ACCOUNT})


def make_account(supabase: EmbeddedSupabase) -> None:
    """Somebody who may also see workers and queue, unless an earlier run made them."""
    with suppress(AuthApiError):  # there already
        create_client(supabase.url, supabase.secret_key).auth.admin.create_user(
            cast("Any", {**ACCOUNT, "email_confirm": True, "app_metadata": {"role": "operator"}})
        )


def say_where(studio: str) -> None:
    print(f"\nStudio           {studio}", file=sys.stderr)  # noqa: T201  for the developer
    print(f"signed in as     {ACCOUNT['email']}, password {ACCOUNT['password']}\n", file=sys.stderr, flush=True)  # noqa: T201


def say(supabase: EmbeddedSupabase, paths: list[Path]) -> None:
    """What a developer needs to go on: on standard error, since standard output carries the result."""
    example = EXAMPLE.format(url=supabase.url, key=supabase.publishable_key, **ACCOUNT)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for path in paths:
        console.print(f"picture          {path}")
    console.print(f"Supabase URL     {supabase.url}")
    console.print(f"publishable key  {supabase.publishable_key}")
    console.print(f"secret key       {supabase.secret_key}")
    console.print(f"Postgres         {supabase.db_url}")
    console.print("\nA job from a program of yours:", example, markup=False)
    console.print("Ctrl-C ends the demo.")


def wait_for_the_end(worker: subprocess.Popen[bytes]) -> None:
    """Until Ctrl-C, SIGTERM, or the worker's own end."""
    with suppress(KeyboardInterrupt):
        worker.wait()
