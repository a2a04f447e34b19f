"""Who may do what. The tables say it; whatever they do not say must be refused, and must leave everything as it was.

`anonymous` holds the publishable key only. `owner` is the signed-in user whose rows, objects and topics these are, `other` is any
other one. `service` is the worker. The catalogue of the database is read too: what is new there and not named here fails.

What was seen becomes docs/security.md (`make security-page`).
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest
from postgrest import CountMethod, ReturnMethod, SyncRequestBuilder
from postgrest.exceptions import APIError

from ourvidz_sdxl.local import ROOT
from tests.integration.conftest import Database
from tests.integration.roles import (
    OPTIONS,
    OUTPUTS,
    PICTURE,
    REFERENCES,
    TARGET,
    Actor,
    Ear,
    Matrix,
    Role,
    Verdict,
    World,
    broadcast_by_http,
    expectations,
    markdown,
    verdict_of,
    world,
)
from tests.processes import scratch_supabase

PAGE = ROOT / "docs" / "security.md"
MARKER = "<!-- From here on written by tests/integration/test_role_matrix.py: `make security-page` -->\n\n"

TABLES = expectations("""
                                          anonymous  owner    other    operator  service
jobs: select                              refused    yes      nothing  nothing   yes
jobs: select with job_images, job_events  refused    yes      nothing  nothing   yes
jobs: insert                              refused    yes      refused  refused   yes
jobs: insert as completed                 refused    refused  refused  refused   yes
jobs: insert again under the same id      refused    nothing  refused  refused   nothing
jobs: upsert                              refused    refused  refused  refused   yes
jobs: ask to cancel                       refused    yes      nothing  nothing   yes
jobs: ask to cancel what is finished      refused    nothing  nothing  nothing   refused
jobs: update                              refused    refused  refused  refused   yes
jobs: update what is finished             refused    refused  refused  refused   refused
jobs: delete                              refused    refused  refused  refused   yes
job_images: select                        refused    yes      nothing  nothing   yes
job_images: select with jobs              refused    yes      nothing  nothing   yes
job_images: insert                        refused    refused  refused  refused   yes
job_images: upsert                        refused    refused  refused  refused   yes
job_images: update                        refused    refused  refused  refused   yes
job_images: delete                        refused    refused  refused  refused   yes
job_events: select                        refused    yes      nothing  nothing   yes
job_events: select with jobs              refused    yes      nothing  nothing   yes
job_events: insert                        refused    refused  refused  refused   refused
job_events: upsert                        refused    refused  refused  refused   refused
job_events: update                        refused    refused  refused  refused   refused
job_events: delete                        refused    refused  refused  refused   refused
workers: select                           refused    refused  refused  refused   yes
workers: insert                           refused    refused  refused  refused   yes
workers: upsert                           refused    refused  refused  refused   yes
workers: update                           refused    refused  refused  refused   yes
workers: delete                           refused    refused  refused  refused   yes
negative_presets: select                  refused    refused  refused  refused   yes
negative_presets: insert                  refused    refused  refused  refused   refused
negative_presets: upsert                  refused    refused  refused  refused   refused
negative_presets: update                  refused    refused  refused  refused   yes
negative_presets: delete                  refused    refused  refused  refused   refused
fleet_settings: select                    refused    refused  refused  refused   yes
fleet_settings: insert                    refused    refused  refused  refused   refused
fleet_settings: upsert                    refused    refused  refused  refused   refused
fleet_settings: update                    refused    refused  refused  refused   yes
fleet_settings: delete                    refused    refused  refused  refused   refused
worker_starts: select                     refused    refused  refused  refused   yes
worker_starts: insert                     refused    refused  refused  refused   yes
worker_starts: upsert                     refused    refused  refused  refused   yes
worker_starts: update                     refused    refused  refused  refused   yes
worker_starts: delete                     refused    refused  refused  refused   yes
retention: select                         refused    refused  refused  refused   yes
retention: insert                         refused    refused  refused  refused   refused
retention: upsert                         refused    refused  refused  refused   refused
retention: update                         refused    refused  refused  refused   yes
retention: delete                         refused    refused  refused  refused   refused
job_audit: select                         refused    yes      nothing  nothing   yes
job_audit: insert                         refused    refused  refused  refused   refused
job_audit: upsert                         refused    refused  refused  refused   refused
job_audit: update                         refused    refused  refused  refused   refused
job_audit: delete                         refused    refused  refused  refused   refused
fleet: select                             refused    nothing  nothing  yes       yes
fleet: insert                             refused    refused  refused  refused   refused
fleet: upsert                             refused    refused  refused  refused   refused
fleet: update                             refused    refused  refused  refused   refused
fleet: delete                             refused    refused  refused  refused   refused
queue_health: select                      refused    nothing  nothing  yes       yes
queue_health: insert                      refused    refused  refused  refused   refused
queue_health: upsert                      refused    refused  refused  refused   refused
queue_health: update                      refused    refused  refused  refused   refused
queue_health: delete                      refused    refused  refused  refused   refused
""")

# Columns of jobs that a client may write, in a row of its own. The rest of them is the worker's and the database's.
INSERTABLE: dict[str, object] = {
    "id": "00000000-0000-4000-8000-000000000001",
    "user_id": None,  # the client's own id
    "job_type": "sdxl_image_high",
    "target_worker": TARGET,
    "metadata": {"fit": "cover"},
    "idempotency_key": "click-1",
    "prompt": "a dog",
    "negative_prompt": "a cat",
    "batch_size": 3,
    "width": 512,  # with the height
    "height": 512,
    "steps": 9,
    "guidance_scale": 5.5,
    "seed": 1,
    "scheduler": "ddim",
    "output_format": "webp",
    "reference_image_url": "https://example.com/a.png",
    "reference_image_path": None,  # in the client's own folder
    "reference_strength": 0.5,
    "exact_copy_mode": False,
    "enhance_prompt": True,
    "fallback_to_text": True,
    "status": "queued",
}
UPDATABLE: dict[str, object] = {"cancel_requested_at": "2026-01-01T00:00:00Z"}
WORKERS_OWN: dict[str, object] = {
    "progress": 50,
    "error_code": "x",
    "error_message": "x",
    "attempts": 1,
    "max_attempts": 20,
    "created_at": "2020-01-01T00:00:00Z",
    "started_at": "2020-01-01T00:00:00Z",
    "completed_at": "2020-01-01T00:00:00Z",
    "enhanced_prompt": "x",
    "warnings": [],
    "metrics": {},
    "priority": 0,
    "run_at": "2020-01-01T00:00:00Z",
}

FUNCTIONS = expectations("""
                            anonymous  owner    other    operator  service
claim_jobs                  refused    refused  refused  refused   yes
heartbeat_jobs              refused    refused  refused  refused   yes
finish_job                  refused    refused  refused  refused   yes
reap_jobs                   refused    refused  refused  refused   yes
sweep_orphans               refused    refused  refused  refused   yes
retire_jobs                 refused    refused  refused  refused   yes
report_worker               refused    refused  refused  refused   yes
claim_starts                refused    refused  refused  refused   yes
report_start                refused    refused  refused  refused   yes
claim_stops                 refused    refused  refused  refused   yes
report_stop                 refused    refused  refused  refused   yes
applied_migrations          refused    refused  refused  refused   yes
jobs_ahead                  refused    yes      nothing  nothing   refused
delete_jobs                 refused    yes      nothing  nothing   refused
delete_everything           refused    yes      nothing  nothing   refused
private.applied_migrations  unknown    unknown  unknown  unknown   unknown
private.backoff             unknown    unknown  unknown  unknown   unknown
private.jobs_ahead          unknown    unknown  unknown  unknown   unknown
private.delete_jobs         unknown    unknown  unknown  unknown   unknown
private.delete_everything   unknown    unknown  unknown  unknown   unknown
private.is_live             unknown    unknown  unknown  unknown   unknown
private.is_operator         unknown    unknown  unknown  unknown   unknown
private.fleet               unknown    unknown  unknown  unknown   unknown
private.unready_starts      unknown    unknown  unknown  unknown   unknown
private.fleet_decision      unknown    unknown  unknown  unknown   unknown
private.call_fleet          unknown    unknown  unknown  unknown   unknown
private.fleet_is_needed     unknown    unknown  unknown  unknown   unknown
private.schedule_fleet      unknown    unknown  unknown  unknown   unknown
private.cron_fleet          unknown    unknown  unknown  unknown   unknown
private.cron_reap           unknown    unknown  unknown  unknown   unknown
private.cron_purge          unknown    unknown  unknown  unknown   unknown
private.start_pause         unknown    unknown  unknown  unknown   unknown
private.workers_reported    unknown    unknown  unknown  unknown   unknown
private.queue_health        unknown    unknown  unknown  unknown   unknown
private.jobs_before_insert  unknown    unknown  unknown  unknown   unknown
private.jobs_before_update  unknown    unknown  unknown  unknown   unknown
private.jobs_changed        unknown    unknown  unknown  unknown   unknown
private.jobs_deleted        unknown    unknown  unknown  unknown   unknown
private.job_images_deleted  unknown    unknown  unknown  unknown   unknown
private.jobs_id_is_free     unknown    unknown  unknown  unknown   unknown
private.jobs_enqueue        unknown    unknown  unknown  unknown   unknown
private.jobs_moved          unknown    unknown  unknown  unknown   unknown
private.lease_facts         unknown    unknown  unknown  unknown   unknown
private.jobs_wake           unknown    unknown  unknown  unknown   unknown
private.send                unknown    unknown  unknown  unknown   unknown
private.wake                unknown    unknown  unknown  unknown   unknown
the list of all functions   refused    refused  refused  refused   yes
""")

# For users, about what is their own; with what they return for what is somebody else's.
OF_ONES_OWN = {"jobs_ahead": None, "delete_jobs": 0, "delete_everything": 0}

TOPICS = expectations("""
                                              anonymous  owner    other    operator  service
worker:sdxl: listen                           refused    refused  refused  refused   yes
worker:sdxl: send, by websocket               refused    refused  refused  refused   yes
worker:sdxl: send, by HTTP                    refused    refused  refused  refused   yes
worker:sdxl: send, by HTTP in a batch         nothing    nothing  nothing  nothing   yes
worker:sdxl: as a public channel              nothing    nothing  nothing  nothing   nothing
user:<owner>: listen                          refused    yes      refused  refused   yes
user:<owner>: send, by websocket              refused    nothing  refused  refused   yes
user:<owner>: send, by HTTP                   refused    refused  refused  refused   yes
user:<owner>: send, by HTTP in a batch        nothing    nothing  nothing  nothing   yes
user:<owner>: as a public channel             nothing    nothing  nothing  nothing   nothing
job:<owner's job>: listen                     refused    yes      refused  refused   yes
job:<owner's job>: send, by websocket         refused    nothing  refused  refused   yes
job:<owner's job>: send, by HTTP              refused    refused  refused  refused   yes
job:<owner's job>: send, by HTTP in a batch   nothing    nothing  nothing  nothing   yes
job:<owner's job>: as a public channel        nothing    nothing  nothing  nothing   nothing
postgres_changes: of jobs                     refused    yes      nothing  nothing   yes
postgres_changes: of job_images               refused    yes      nothing  nothing   yes
postgres_changes: of job_events               refused    refused  refused  refused   refused
postgres_changes: of workers                  refused    refused  refused  refused   refused
postgres_changes: of negative_presets         refused    refused  refused  refused   refused
postgres_changes: of fleet_settings           refused    refused  refused  refused   refused
postgres_changes: of worker_starts            refused    refused  refused  refused   refused
postgres_changes: of retention                refused    refused  refused  refused   refused
postgres_changes: of job_audit                refused    refused  refused  refused   refused
postgres_changes: of fleet                    refused    refused  refused  refused   refused
postgres_changes: of queue_health             refused    refused  refused  refused   refused
""")

OUTPUT_BUCKET = expectations("""
                                                 anonymous  owner    other    operator  service
download                                         unknown    yes      unknown  unknown   yes
ask for size and type                            unknown    yes      unknown  unknown   yes
make a signed URL                                unknown    yes      unknown  unknown   yes
make signed URLs, by the dozen                   nothing    yes      nothing  nothing   yes
download by a signed URL that the owner made     yes        yes      yes      yes       yes
download by the public address                   unknown    unknown  unknown  unknown   unknown
download what is not published                   unknown    unknown  unknown  unknown   yes
make a signed URL of what is not published       unknown    unknown  unknown  unknown   yes
list                                             nothing    yes      nothing  nothing   yes
list what is not published                       nothing    nothing  nothing  nothing   yes
upload into the owner's folder                   refused    refused  refused  refused   yes
upload into the actor's own folder               refused    refused  refused  refused   yes
make an upload URL                               refused    refused  refused  refused   yes
overwrite, by upload                             refused    refused  refused  refused   yes
overwrite, by update                             refused    refused  refused  refused   yes
delete                                           nothing    nothing  nothing  nothing   yes
move                                             unknown    unknown  unknown  unknown   yes
copy beside it                                   unknown    refused  unknown  unknown   yes
copy into the actor's own references             unknown    yes      unknown  unknown   yes
see the bucket                                   unknown    unknown  unknown  unknown   yes
make the bucket public                           unknown    unknown  unknown  unknown   yes
empty the bucket                                 refused    refused  refused  refused   yes
""")

REFERENCE_BUCKET = OUTPUT_BUCKET | expectations("""
                                                 anonymous  owner    other    operator  service
upload into the owner's folder                   refused    yes      refused  refused   yes
upload into the actor's own folder               refused    yes      yes      yes       yes
make an upload URL                               refused    yes      refused  refused   yes
delete                                           nothing    yes      nothing  nothing   yes
copy beside it                                   unknown    yes      unknown  unknown   yes
""")
for name in [name for name in REFERENCE_BUCKET if "not published" in name]:
    del REFERENCE_BUCKET[name]

BUCKETS = {f"{bucket}: {name}": cells for bucket in OUTPUTS for name, cells in OUTPUT_BUCKET.items()} | {
    f"{REFERENCES}: {name}": cells for name, cells in REFERENCE_BUCKET.items()
}

MATRICES = {"Tables": TABLES, "Functions": FUNCTIONS, "Topics": TOPICS, "Buckets": BUCKETS}
SEEN: dict[str, Matrix] = {"Tables": {}, "Columns of jobs": {}, "Functions": {}, "Topics": {}, "Buckets": {}}


@pytest.fixture(scope="module")
def scene() -> Iterator[World]:
    with scratch_supabase() as supabase, world(supabase) as scene:
        yield scene


def cells(matrix: Matrix) -> pytest.MarkDecorator:
    every = [pytest.param(name, role, id=f"{name}, {role}") for name in matrix for role in Role]
    return pytest.mark.parametrize(("name", "role"), every)


def judge(section: str, name: str, role: Role, seen: Verdict) -> None:
    SEEN[section].setdefault(name, {})[role] = seen
    assert seen is MATRICES[section][name][role]


# Tables


def data(query: Any) -> Any:
    """The rows of the answer, which supabase-py types as any JSON."""
    return query.execute().data


def key_of(table: str, w: World) -> tuple[str, str]:
    """Which of the owner's rows an attempt is about."""
    return {
        "jobs": ("id", w.waiting),
        "job_images": ("job_id", w.finished[OUTPUTS[0]]),
        "job_events": ("job_id", w.finished[OUTPUTS[0]]),
        "workers": ("id", "w"),
        "negative_presets": ("job_type", "sdxl_image_fast"),
        "fleet_settings": ("target_worker", "sdxl"),
        "worker_starts": ("id", w.start_id),
        "retention": ("only_row", "true"),
        "job_audit": ("job_id", w.waiting),
        "fleet": ("id", "w"),
        "queue_health": ("target_worker", TARGET),
    }[table]


def new_row(table: str, w: World) -> dict[str, Any]:
    rows: dict[str, dict[str, Any]] = {
        "jobs": {"job_type": "sdxl_image_fast", "prompt": "a cat", "user_id": w.owner.id},
        "job_images": w.image(index=1),
        "job_events": {"job_id": w.waiting, "status": "completed", "attempt": 1},
        "workers": w.worker("impostor"),
        "negative_presets": {"job_type": "sdxl_image_fast", "negative_prompt": "x"},
        "fleet_settings": {"target_worker": "x", "max_workers": 1000},
        "worker_starts": {"target_worker": "x"},
        "retention": {"only_row": "true", "days": 1},
        "job_audit": {"job_id": str(uuid4()), "status": "completed"},
        "fleet": w.worker("impostor"),
        "queue_health": {"target_worker": "x", "waiting": 0},
    }
    return rows[table]


def old_row(table: str, w: World) -> dict[str, Any]:
    """A row that is there, with something changed."""
    rows: dict[str, dict[str, Any]] = {
        "jobs": new_row("jobs", w) | {"id": w.waiting, "prompt": "overwritten"},
        "job_images": w.image() | {"path": "stolen.png"},
        "job_events": new_row("job_events", w) | {"id": 1},
        "workers": w.worker() | {"host": "impostor"},
        "negative_presets": new_row("negative_presets", w),
        "fleet_settings": {"target_worker": "sdxl", "max_workers": 1000},
        "worker_starts": {"id": w.start_id, "target_worker": "x"},
        "retention": new_row("retention", w),
        "job_audit": {"job_id": w.waiting, "status": "completed"},
        "fleet": w.worker() | {"host": "impostor"},
        "queue_health": {"target_worker": TARGET, "waiting": 0},
    }
    return rows[table]


CHANGES: dict[str, dict[str, object]] = {
    "jobs": {"prompt": "x"},
    "job_images": {"path": "x"},
    "job_events": {"status": "completed"},
    "workers": {"state": "failed"},
    "negative_presets": {"negative_prompt": "x"},
    "fleet_settings": {"max_workers": 1000},
    "worker_starts": {"error": "x"},
    "retention": {"days": 1},
    "job_audit": {"status": "completed"},
    "fleet": {"state": "failed"},
    "queue_health": {"waiting": 0},
}


# Nothing is asked back: to see what one wrote, row security must let one read it too, which would hide a hole in writing.
QUIETLY: dict[str, Any] = {"returning": ReturnMethod.minimal}


def try_table(name: str, w: World, actor: Actor) -> object:
    table, _, action = name.partition(": ")
    rows = actor.client.table(table)
    column, value = key_of(table, w)
    finished = w.finished[OUTPUTS[0]]
    match action:
        case "select":
            return data(rows.select("*").eq(column, value))
        case "insert":
            return data(rows.insert(new_row(table, w), **QUIETLY))
        case "insert as completed":
            return data(rows.insert(new_row(table, w) | {"status": "completed"} | finished_now(actor), **QUIETLY))
        case "insert again under the same id":
            return data(rows.upsert(old_row(table, w), ignore_duplicates=True, **QUIETLY))
        case "upsert":
            return data(rows.upsert(old_row(table, w), **QUIETLY))
        case "ask to cancel":
            return data(rows.update(UPDATABLE, **QUIETLY).eq("id", w.waiting))
        case "ask to cancel what is finished":
            return data(rows.update(UPDATABLE, **QUIETLY).eq("id", finished))
        case "update":
            return data(rows.update(CHANGES[table], **QUIETLY).eq(column, value))
        case "update what is finished":
            return data(rows.update(CHANGES[table], **QUIETLY).eq("id", finished))
        case "delete":
            return data(rows.delete(**QUIETLY).eq(column, value))
        case _:
            embedded = ",".join(f"{other}(*)" for other in action.removeprefix("select with ").split(", "))
            return data(rows.select(f"*,{embedded}").eq(column, value))


def finished_now(actor: Actor) -> dict[str, str]:
    """What the constraints want of a completed row; a client could not even name the column."""
    return {"completed_at": "2026-01-01"} if actor.role is Role.SERVICE else {}


@cells(TABLES)
def test_table(scene: World, name: str, role: Role) -> None:
    judge("Tables", name, role, scene.ask(role, partial(try_table, name)))


# Columns of jobs

COLUMNS = INSERTABLE | UPDATABLE | WORKERS_OWN


def row_with(column: str, actor: Actor) -> dict[str, Any]:
    """A job of the actor's own that names the column."""
    company: dict[str, dict[str, Any]] = {
        "width": {"height": 512},
        "height": {"width": 512},
        "reference_image_url": {"reference_strength": 0.5},
        "reference_image_path": {"reference_strength": 0.5},
    }
    given = {"user_id": actor.id, "reference_image_path": f"{actor.id}/a.png"}.get(column) or COLUMNS[column]
    return {"job_type": "sdxl_image_fast", "prompt": "a cat", column: given} | company.get(column, {})


@pytest.mark.parametrize("column", COLUMNS)
def test_column_of_jobs(scene: World, column: str) -> None:
    """A client writes what it asks for, once, and later only that it asks no more."""
    for action, writable in (("insert", INSERTABLE), ("update", UPDATABLE)):
        seen = {}
        for role in (Role.ANONYMOUS, Role.OWNER, Role.OTHER, Role.OPERATOR):

            def attempt(w: World, actor: Actor, action: str = action) -> object:
                table = actor.client.table("jobs")
                if action == "insert":
                    return data(table.insert(row_with(column, actor), **QUIETLY))
                return data(table.update({column: row_with(column, actor)[column]}, **QUIETLY).eq("id", w.waiting))

            seen[role] = scene.ask(role, attempt)
        of_others = Verdict.YES if action == "insert" else Verdict.NOTHING  # what `other` inserts is a row of their own
        SEEN["Columns of jobs"][f"{column}: {action}"] = seen
        assert seen == {
            Role.ANONYMOUS: Verdict.REFUSED,
            Role.OWNER: Verdict.YES if column in writable else Verdict.REFUSED,
            **dict.fromkeys((Role.OTHER, Role.OPERATOR), of_others if column in writable else Verdict.REFUSED),
        }


# Functions


def try_function(name: str, w: World, actor: Actor) -> object:
    """With the arguments that would do most harm: the owner's running job and its true lease token."""
    arguments: dict[str, dict[str, Any]] = {
        "claim_jobs": {"p_worker": "me", "p_target": TARGET, "p_job_types": list(OUTPUTS), "p_token": str(uuid4())},
        "heartbeat_jobs": {"p_ids": [w.running], "p_token": w.lease_token},
        "finish_job": {"p_id": w.running, "p_token": w.lease_token, "p_outcome": "cancelled"},
        "reap_jobs": {"p_target": TARGET},
        "sweep_orphans": {},
        "retire_jobs": {},
        "claim_starts": {"p_target": TARGET},
        "report_start": {"p_id": w.start_id},
        "claim_stops": {"p_target": TARGET},
        "report_stop": {"p_id": w.start_id},
        "report_worker": {"p_worker": "w", "p_state": "failed", "p_facts": w.worker()},
        "jobs_ahead": {"p_job": w.waiting},
        "delete_jobs": {"p_jobs": [w.waiting, w.running, *w.finished.values()]},
        "private.delete_jobs": {"p_jobs": [w.waiting]},
        "private.jobs_ahead": {"p_job": w.waiting},
        "private.backoff": {"p_attempt": 1},
        "private.lease_facts": {"p_job": w.running},
        "private.send": {"p_payload": {}, "p_event": "cancel", "p_topic": "worker:sdxl"},
        "private.wake": {"p_target": TARGET, "p_jobs": 1},
    }
    if name == "the list of all functions":
        answer = httpx.get(f"{w.supabase.url}/rest/v1/", headers=actor.headers)
        return {200: Verdict.YES, 403: Verdict.REFUSED}[answer.status_code]
    schema, _, function = name.rpartition(".")
    client = actor.client.schema(schema) if schema else actor.client
    told = data(client.rpc(function, arguments.get(name, {})))
    return Verdict.NOTHING if function in OF_ONES_OWN and told == OF_ONES_OWN[function] else Verdict.YES


@cells(FUNCTIONS)
def test_function(scene: World, name: str, role: Role) -> None:
    judge("Functions", name, role, scene.ask(role, partial(try_function, name)))


@pytest.mark.parametrize("role", Role)
def test_a_private_function_is_not_found_in_the_exposed_schema_either(scene: World, role: Role) -> None:
    assert scene.ask(role, lambda _, actor: actor.client.rpc("backoff", {"p_attempt": 1}).execute()) is Verdict.UNKNOWN


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize(
    "table", ["private.leases", "private.sweep", "private.removals", "auth.users", "storage.objects", "realtime.messages"]
)
def test_no_other_schema_is_open(scene: World, table: str, role: Role) -> None:
    schema, name = table.split(".")
    assert scene.ask(role, lambda _, actor: actor.client.schema(schema).table(name).select("*").execute()) is Verdict.UNKNOWN


# Topics


def topic_of(name: str, w: World) -> str:
    return {"worker:sdxl": "worker:sdxl", "user:<owner>": f"user:{w.owner.id}", "job:<owner's job>": f"job:{w.running}"}[name]


def hears(w: World, ear: Ear, speak: Callable[[], object]) -> list[dict[str, Any]]:
    """What the ear hears of what is spoken. The last word comes the same way later: from the database, to everybody."""
    mark = f"mark-{uuid4()}"
    assert ear.join(mark, private=False) is Verdict.YES
    speak()
    w.db.execute("select realtime.send('{}', %s, %s, false)", (mark, mark))
    return ear.until(mark)[:-1]


def send_from_database(w: World, topic: str) -> None:
    w.db.execute("""select realtime.send('{"text": "for you"}', 'hello', %s, true)""", (topic,))


def try_topic(name: str, w: World, actor: Actor) -> object:
    if name.startswith("postgres_changes: of "):
        return try_changes(name.removeprefix("postgres_changes: of "), w, actor)
    place, _, action = name.rpartition(": ")
    topic = topic_of(place, w)
    text = f"word {uuid4()}"
    with Ear(w, actor) as ear, Ear(w, w.service) as worker:
        match action:
            case "listen":
                if (joined := ear.join(topic)) is not Verdict.YES:
                    assert hears(w, ear, lambda: send_from_database(w, topic)) == []
                    return joined
                return hears(w, ear, lambda: send_from_database(w, topic))
            case "as a public channel":
                ear.join(topic, private=False)
                worker.join(topic)
                heard = hears(w, ear, lambda: send_from_database(w, topic))
                ear.send(topic, text)
                return [*heard, *(message for message in hears(w, worker, lambda: None) if text in str(message))]
            case "send, by websocket":
                worker.join(topic)
                ear.join(topic)
                verdict = ear.send(topic, text)
                broadcast_by_http(w, actor, topic, "later", single=True)  # judged the same way, and so not sooner
            case _:
                worker.join(topic)
                answer = broadcast_by_http(w, actor, topic, text, single=action == "send, by HTTP")
                verdict = {202: None, 401: Verdict.REFUSED}[answer.status_code]
        heard = [message for message in hears(w, worker, lambda: None) if text in str(message)]
        assert not (heard and verdict), heard
        return verdict or heard


def try_changes(table: str, w: World, actor: Actor) -> object:
    """Something happens to a row of the owner's. Everybody has heard of it once the worker has."""
    column, (key, value) = next(iter(CHANGES[table])), key_of(table, w)
    changes = [{"event": "*", "schema": "public", "table": table}]
    with Ear(w, actor) as ear, Ear(w, w.service) as worker:
        ear.join("anything", private=False, changes=changes)
        worker.join("anything", private=False, changes=changes)
        [*_, said] = ear.until("system")
        if said["payload"]["status"] == "error":
            return Verdict.REFUSED

        def touch() -> None:
            w.db.execute(f"update public.{table} set {column} = {column} where {key} = %s", (value,))
            worker.until("postgres_changes")

        heard = hears(w, ear, touch)
    events = [message["payload"]["data"] for message in heard if message["event"] == "postgres_changes"]
    if any(event["errors"] for event in events):
        assert not any(event.get("record") for event in events), events
        return Verdict.REFUSED
    return events


@cells(TOPICS)
def test_topic(scene: World, name: str, role: Role) -> None:
    judge("Topics", name, role, scene.ask(role, partial(try_topic, name)))


@pytest.mark.parametrize("role", [Role.ANONYMOUS, Role.OWNER, Role.OTHER, Role.OPERATOR])
@pytest.mark.parametrize(
    "topic",
    [
        "worker:",
        "worker:flux",
        "worker:sdxl:0",
        "user:",
        "user:%",
        "user:*",
        "job:",
        "job:" + "-" * 36,
        f"job:{UUID(int=1)}",
        f"x user:{UUID(int=1)}",
        "*",
    ],
)
def test_an_odd_topic_is_nobodys(scene: World, topic: str, role: Role) -> None:
    with Ear(scene, scene.actors[role]) as ear:
        assert ear.join(topic) is Verdict.REFUSED


# Buckets


def try_bucket(name: str, w: World, actor: Actor) -> object:
    bucket, _, action = name.partition(": ")
    storage, here = actor.client.storage, actor.client.storage.from_(bucket)
    path, hidden, folder = w.published(bucket), w.unpublished(bucket), w.owner.id
    match action:
        case "download":
            return here.download(path) == PICTURE
        case "ask for size and type":
            return here.info(path)
        case "make a signed URL":
            return httpx.get(str(here.create_signed_url(path, 60)["signedURL"])).content == PICTURE
        case "make signed URLs, by the dozen":
            return any(made["signedURL"] for made in here.create_signed_urls([path] * 12, 60))
        case "download by a signed URL that the owner made":
            made = w.owner.client.storage.from_(bucket).create_signed_url(path, 60)
            return httpx.get(str(made["signedURL"])).content == PICTURE
        case "download by the public address":
            answer = httpx.get(here.get_public_url(path), headers=actor.headers)
            return {200: Verdict.YES, 400: Verdict.UNKNOWN}[answer.status_code]
        case "download what is not published":
            return here.download(hidden)
        case "make a signed URL of what is not published":
            return here.create_signed_url(hidden, 60)
        case "list":
            return here.list(path.rpartition("/")[0])
        case "list what is not published":
            return here.list(hidden.rpartition("/")[0])
        case "upload into the owner's folder":
            return here.upload(f"{folder}/new.png", b"x", OPTIONS)
        case "upload into the actor's own folder":
            return here.upload(f"{actor.id or 'anybody'}/new.png", b"x", OPTIONS)
        case "make an upload URL":
            return here.create_signed_upload_url(f"{folder}/new.png")
        case "overwrite, by upload":
            return here.upload(path, b"overwritten", {**OPTIONS, "upsert": "true"})
        case "overwrite, by update":
            return here.update(path, b"overwritten", OPTIONS)
        case "delete":
            return here.remove([path])
        case "move":
            return here.move(path, f"{folder}/moved.png")
        case "copy beside it":
            return here.copy(path, f"{folder}/copied.png")
        case "copy into the actor's own references":
            return copy_to_references(w, actor, bucket, path)
        case "see the bucket":
            return storage.get_bucket(bucket)
        case "make the bucket public":
            return storage.update_bucket(bucket, {"public": True})
        case "empty the bucket":
            return storage.empty_bucket(bucket)
    raise AssertionError(action)


def copy_to_references(w: World, actor: Actor, bucket: str, path: str) -> Verdict:
    """Across buckets, which supabase-py cannot ask for."""
    copy = {"bucketId": bucket, "sourceKey": path, "destinationBucket": REFERENCES, "destinationKey": f"{actor.id or 'a'}/copy.png"}
    answer = httpx.post(f"{w.supabase.url}/storage/v1/object/copy", json=copy, headers=actor.headers)
    if answer.status_code == 200:
        return Verdict.YES
    return {"403": Verdict.REFUSED, "404": Verdict.UNKNOWN}[answer.json()["statusCode"]]


@cells(BUCKETS)
def test_bucket(scene: World, name: str, role: Role) -> None:
    seen = scene.ask(role, partial(try_bucket, name))
    bucket = name.partition(":")[0]
    assert scene.bytes_at(bucket) == PICTURE, "refused, and yet the bytes changed"
    judge("Buckets", name, role, seen)


# What REST adds


def test_a_click_made_twice_is_one_job(scene: World) -> None:
    """As README has it: the second insert under the same idempotency key is answered without an error, and without a row."""

    def click(user: Actor) -> Any:
        job = {"job_type": "sdxl_image_fast", "prompt": "a cat", "idempotency_key": "click-1", "target_worker": TARGET}
        return data(actor_table(user).upsert(job, on_conflict="user_id,idempotency_key", ignore_duplicates=True))

    owner, other = scene.actors[Role.OWNER], scene.actors[Role.OTHER]
    assert [len(click(user)) for user in (owner, owner, other)] == [1, 0, 1]
    assert verdict_of(lambda: click(scene.actors[Role.ANONYMOUS])) is Verdict.REFUSED
    with pytest.raises(APIError, match="jobs_idempotency_key_is_unique_per_user"):
        actor_table(owner).insert({"job_type": "sdxl_image_fast", "prompt": "x", "idempotency_key": "click-1"}).execute()
    assert scene.db.execute("select count(*) from public.jobs where idempotency_key is not null").fetchone() == {"count": 2}
    scene.lay_out()


def actor_table(actor: Actor) -> SyncRequestBuilder:
    return actor.client.table("jobs")


def test_the_quota_is_http_429(scene: World) -> None:
    owner = scene.actors[Role.OWNER]
    job = {"job_type": "sdxl_image_fast", "prompt": "a cat", "target_worker": TARGET}
    actor_table(owner).insert([job] * 198).execute()  # the waiting and the running one make it 200
    answer = httpx.post(f"{scene.supabase.url}/rest/v1/jobs", json=job, headers=owner.headers)
    assert (answer.status_code, answer.json()["code"]) == (429, "PT429")
    assert "200 jobs" in answer.json()["hint"]
    scene.lay_out()


@pytest.mark.parametrize(("role", "status"), [(Role.ANONYMOUS, 401), (Role.OTHER, 403)])
def test_a_refusal_tells_who_should_sign_in_from_who_may_not(scene: World, role: Role, status: int) -> None:
    actor = scene.actors[role]
    answer = httpx.patch(f"{scene.supabase.url}/rest/v1/jobs?id=eq.{scene.waiting}", json={"prompt": "x"}, headers=actor.headers)
    assert (answer.status_code, answer.json()["code"]) == (status, "42501")


LEASE_COLUMNS = ["*", "token", "worker", "expires_at", "fair_key", "cost", "claims"]


@pytest.mark.parametrize("column", LEASE_COLUMNS)
@pytest.mark.parametrize("role", ["anon", "authenticated"])
def test_no_lease_is_readable_even_by_sql(scene: World, role: str, column: str) -> None:
    """Not through a function that runs with its caller's rights either."""
    with scene.db.transaction(force_rollback=True):
        scene.db.execute(f"set local role {role}".encode())
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            scene.db.execute(f"select {column} from private.leases".encode())


@pytest.mark.parametrize("column", ["lease_token", "leased_by", "fair_key", "token", "worker"])
def test_no_row_of_jobs_has_a_column_of_the_queue(scene: World, column: str) -> None:
    with pytest.raises(APIError, match="does not exist"):
        data(actor_table(scene.actors[Role.OWNER]).select(column))


def test_job_audit_says_of_a_lease_what_its_user_and_an_operator_may_know(scene: World) -> None:
    [row] = data(scene.actors[Role.OWNER].client.table("job_audit").select("claims, worker, cost").eq("job_id", scene.running))
    assert row == {"claims": 1, "worker": "w", "cost": 1}
    assert data(scene.actors[Role.OTHER].client.table("job_audit").select("*").eq("job_id", scene.running)) == []


def test_what_is_embedded_is_narrowed_too(scene: World) -> None:
    """The owner gets the images of their own jobs; a stranger's query over everything has no row of the owner's in any corner."""
    query = "*,job_images(*),job_events(*)"
    [owners] = data(actor_table(scene.actors[Role.OWNER]).select(query).eq("id", scene.finished[OUTPUTS[0]]))
    assert [image["path"] for image in owners["job_images"]] == [scene.published(OUTPUTS[0])]
    other = scene.actors[Role.OTHER]
    [mine] = data(actor_table(other).insert({"job_type": "sdxl_image_fast", "prompt": "mine", "target_worker": TARGET}))
    assert [job["id"] for job in data(actor_table(other).select(query))] == [mine["id"]]
    assert data(other.client.table("job_images").select("*,jobs(*)")) == []
    assert actor_table(other).select("*", count=CountMethod.exact).execute().count == 1
    scene.lay_out()


def test_of_a_deleted_row_others_learn_its_key_and_no_more(scene: World) -> None:
    """Row security cannot be asked about a row that is gone; so Supabase tells every subscriber that something was deleted."""
    with Ear(scene, scene.actors[Role.OTHER]) as ear:
        ear.join("anything", private=False, changes=[{"event": "DELETE", "schema": "public", "table": "jobs"}])
        ear.until("system")
        scene.db.execute("delete from public.jobs where id = %s", (scene.waiting,))
        [*_, deleted] = ear.until("postgres_changes")
        assert deleted["payload"]["data"]["old_record"] == {"id": scene.waiting}
    scene.lay_out()


# The catalogue: nothing is open that the tables above do not name

GRANTS = {
    *(
        f"authenticated: SELECT on public.{table}"
        for table in ("jobs", "job_images", "job_events", "job_audit", "fleet", "queue_health")
    ),
    *(f"authenticated: INSERT on public.jobs.{column}" for column in INSERTABLE),
    *(f"authenticated: UPDATE on public.jobs.{column}" for column in UPDATABLE),
    *(
        f"service_role: {action} on public.{table}"
        for table in ("jobs", "job_images", "workers", "worker_starts")
        for action in ("SELECT", "INSERT", "UPDATE", "DELETE")
    ),
    *(f"service_role: SELECT on public.{table}" for table in ("job_events", "job_audit", "fleet", "queue_health")),
    *(
        f"service_role: {action} on public.{table}"
        for table in ("negative_presets", "fleet_settings", "retention")
        for action in ("SELECT", "UPDATE")
    ),
    *(f"service_role: {action} on private.{table}" for table in ("leases", "sweep") for action in ("SELECT", "UPDATE")),
    *(f"service_role: {action} on private.reaping" for action in ("SELECT", "INSERT", "UPDATE")),
    *(f"service_role: {action} on private.removals" for action in ("SELECT", "DELETE")),
    *(
        f"{'authenticated' if name in OF_ONES_OWN else 'service_role'}: EXECUTE on public.{name}()"
        for name in FUNCTIONS
        if "." not in name and " " not in name
    ),
    # by the functions of their names in public
    *(f"authenticated: EXECUTE on private.{name}()" for name in OF_ONES_OWN),
    # by the views fleet, queue_health and job_audit; each asks for itself who the caller is
    *(
        f"{role}: EXECUTE on private.{name}()"
        for name in ("fleet", "queue_health", "is_operator", "lease_facts")
        for role in ("authenticated", "service_role")
    ),
    "service_role: EXECUTE on private.applied_migrations()",
    # finish_job and claim_starts run with their caller's rights
    *(
        f"service_role: EXECUTE on private.{name}()"
        for name in ("backoff", "is_live", "start_pause", "unready_starts", "fleet_decision")
    ),
    *(f"{role}: USAGE on public" for role in ("anon", "authenticated", "service_role")),
    "service_role: USAGE on private",
}


def grants(db: Database) -> set[str]:
    """What the API's roles were given in our schemas, from the catalogue; PUBLIC is everybody."""
    rows = db.execute("""
        with schemas as (select * from pg_namespace where nspname in ('public', 'private')),
        doors (name, acl) as (
          select nspname::text, coalesce(nspacl, acldefault('n', nspowner)) from schemas
          union all
          select format('%I.%I', nspname, relname),
                 coalesce(relacl, acldefault(case relkind when 'S' then 's' else 'r' end::"char", relowner))
            from pg_class join schemas n on n.oid = relnamespace where relkind in ('r', 'p', 'v', 'm', 'f', 'S')
          union all
          select format('%I.%I.%I', nspname, relname, attname), attacl
            from pg_attribute join pg_class c on c.oid = attrelid join schemas n on n.oid = relnamespace where attacl is not null
          union all
          select format('%I.%I()', nspname, proname), coalesce(proacl, acldefault('f', proowner))
            from pg_proc join schemas n on n.oid = pronamespace)
        select coalesce(r.rolname, 'PUBLIC') || ': ' || a.privilege_type || ' on ' || name as grant
          from doors, aclexplode(acl) a left join pg_roles r on r.oid = a.grantee
         where a.grantee = 0 or r.rolname in ('anon', 'authenticated', 'service_role', 'authenticator')""").fetchall()
    return {row["grant"] for row in rows}


def test_the_roles_have_these_rights_and_no_others(scene: World) -> None:
    assert grants(scene.db) - {"PUBLIC: USAGE on public"} == GRANTS


@pytest.mark.parametrize(
    ("planted", "door"),
    [
        ("create table public.planted (id int)", "anon: SELECT on public.planted"),
        ("create view public.planted as select * from public.jobs", "authenticated: SELECT on public.planted"),
        ("create function public.planted() returns int language sql as 'select 1'", "PUBLIC: EXECUTE on public.planted()"),
        ("create function private.planted() returns int language sql as 'select 1'", "PUBLIC: EXECUTE on private.planted()"),
        ("create sequence public.planted", "anon: USAGE on public.planted"),
        ("grant insert (prompt) on public.jobs to anon", "anon: INSERT on public.jobs.prompt"),
        ("grant usage on schema private to anon", "anon: USAGE on private"),
    ],
)
def test_what_a_later_migration_leaves_open_is_noticed(scene: World, planted: str, door: str) -> None:
    with scene.db.transaction(force_rollback=True):
        scene.db.execute("set local role postgres")  # as migrations do: the API's roles get everything by default
        scene.db.execute(planted)
        assert door in grants(scene.db) - GRANTS


def test_the_tables_above_name_everything_there_is(scene: World) -> None:
    def names(query: str) -> set[str]:
        return {row["name"] for row in scene.db.execute(query).fetchall()}

    tables = names("""select relname as name from pg_class
                       where relnamespace = 'public'::regnamespace and relkind in ('r', 'p', 'v', 'm', 'f')""")
    actions = ("select", "insert", "upsert", "update", "delete")
    assert {name.partition(":")[0] for name in TABLES} == tables
    assert {f"{table}: {action}" for table in tables for action in actions} <= set(TABLES)
    assert {f"postgres_changes: of {table}" for table in tables} <= set(TOPICS)
    assert set(COLUMNS) == names("""select attname as name from pg_attribute
                                     where attrelid = 'public.jobs'::regclass and attnum > 0 and not attisdropped""")
    functions = names("""select case nspname when 'private' then 'private.' else '' end || proname as name
                           from pg_proc join pg_namespace n on n.oid = pronamespace where nspname in ('public', 'private')""")
    assert set(FUNCTIONS) - {"the list of all functions"} == functions
    assert {name.partition(":")[0] for name in BUCKETS} == names("select id as name from storage.buckets")


def test_every_table_has_row_security(scene: World) -> None:
    without = """select relname from pg_class
                  where relnamespace = 'public'::regnamespace and relkind in ('r', 'p') and not relrowsecurity"""
    assert scene.db.execute(without).fetchall() == []


def test_every_policy_is_for_signed_in_users(scene: World) -> None:
    """For `anon` there is no policy at all, and `service_role` needs none."""
    for_others = "select policyname from pg_policies where roles <> '{authenticated}'"
    assert scene.db.execute(for_others).fetchall() == []


def test_every_function_has_an_empty_search_path(scene: World) -> None:
    without = """select oid::regprocedure::text from pg_proc where pronamespace in ('public'::regnamespace, 'private'::regnamespace)
                    and not coalesce('search_path=""' = any (proconfig), false)"""
    assert scene.db.execute(without).fetchall() == []


def test_besides_triggers_only_what_counts_or_deletes_ones_own_runs_with_its_owners_rights(scene: World) -> None:
    definers = """select nspname as schema, proname as name, prorettype = 'trigger'::regtype as is_trigger
                    from pg_proc join pg_namespace n on n.oid = pronamespace where prosecdef and nspname in ('public', 'private')"""
    rows = scene.db.execute(definers).fetchall()
    assert {row["schema"] for row in rows} == {"private"}
    counting = {"jobs_ahead", "lease_facts", "fleet", "queue_health", "applied_migrations"}
    deleting = {"delete_jobs", "delete_everything"}  # of the caller's own rows alone
    assert {row["name"] for row in rows if not row["is_trigger"]} == counting | deleting


def test_every_bucket_is_private_and_bounded(scene: World) -> None:
    open_ones = "select id from storage.buckets where public or file_size_limit is null or allowed_mime_types is null"
    assert scene.db.execute(open_ones).fetchall() == []


def test_only_the_public_schema_is_exposed() -> None:
    assert tomllib.loads((ROOT / "supabase" / "config.toml").read_text())["api"]["schemas"] == ["public"]


# The page


def test_the_page_says_what_was_seen() -> None:
    wanted = MATRICES | {"Columns of jobs": {f"{column}: {action}": {} for column in COLUMNS for action in ("insert", "update")}}
    if any(set(SEEN[section]) != set(matrix) for section, matrix in wanted.items()):
        pytest.skip("only a part of the matrix was run")
    prose, marker, _ = PAGE.read_text().partition(MARKER)
    page = prose + marker + markdown(SEEN, joined={"Columns of jobs", "Buckets"})
    if os.environ.get("WRITE_SECURITY_PAGE"):
        PAGE.write_text(page)
    assert PAGE.read_text() == page, "docs/security.md is stale: make security-page"
