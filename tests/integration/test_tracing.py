"""One span tree a job, sent to a receiver that is real; and a receiver that is not there, or hangs, is nobody's loss."""

import time
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import pytest

from ourvidz_sdxl.local import EmbeddedSupabase
from ourvidz_sdxl.tracing import Attempt, TraceIds, waited_seconds
from tests.fault_proxy import FaultProxy
from tests.integration.conftest import Database, User
from tests.otlp_receiver import OtlpReceiver, tree
from tests.pace import TIMEOUT_SECONDS
from tests.processes import STUB, WorkerProcess

TARGET = "traced"
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
FAST: dict[str, Any] = {"otel_bsp_schedule_delay": 100, "target_worker": TARGET}


def trace_of(job_id: str) -> str:
    return UUID(job_id).hex


def test_a_job_is_one_tree_from_its_insert_to_its_end(supabase: EmbeddedSupabase, db: Database, user: User) -> None:
    with (
        OtlpReceiver() as receiver,
        WorkerProcess(supabase, STUB, otel_exporter_otlp_endpoint=receiver.url, stub_step_seconds=0.02, worker_id="w", **FAST) as w,
    ):
        job = user.insert(target_worker=TARGET, batch_size=3, steps=5, width=128, height=192)
        w.wait_for("job_completed", job_id=job["id"])
        spans = receiver.trace(trace_of(job["id"]))
        row = user.job(job["id"])

    children = {parent: sorted(names) for parent, names in tree(spans).items()}
    assert children == {
        "": ["job"],
        "job": ["attempt", "wait"],
        "attempt": ["claim", "deliver", "finish", "gpu_wait", "paint", "prepare"],
        "paint": ["decode", "denoise"],
        "deliver": ["encode"] * 3 + ["upload"] * 3,
    }
    by_name = {span.name: span for span in spans}
    whole, attempt = by_name["job"], by_name["attempt"]
    assert abs(whole.start - datetime.fromisoformat(row["created_at"]).timestamp()) < 1
    assert all(whole.start - 0.001 <= span.start <= span.end <= whole.end + 0.001 for span in spans)
    order = ["wait", "claim", "prepare", "gpu_wait", "denoise", "decode", "deliver", "finish"]
    assert [span.name for span in sorted((by_name[name] for name in order), key=lambda span: span.end)] == order
    assert by_name["denoise"].end - by_name["denoise"].start >= 0.1
    assert by_name["denoise"].attributes == {"steps": 5}
    assert attempt.attributes == {
        "job.id": job["id"],
        "job.job_type": "sdxl_image_fast",
        "job.target_worker": TARGET,
        "job.batch_size": 3,
        "job.width": 128,
        "job.height": 192,
        "job.steps": 5,
        "job.attempts": 1,
        "job.claims": 1,
        "job.priority": 100,
        "job.has_reference": False,
        "job.outcome": "completed",
        "job.error_code": "",
        "worker.id": "w",
    }
    assert row["metrics"]["trace_id"] == trace_of(job["id"]), "who sees the row finds the trace"
    assert {span.error for span in spans} == {None}
    assert receiver.resources[0]["service.name"] == "sdxl-worker"
    assert receiver.resources[0]["service.instance.id"] == "w"


def test_a_trace_has_no_words_and_no_addresses(supabase: EmbeddedSupabase, db: Database, user: User) -> None:
    with OtlpReceiver() as receiver, WorkerProcess(supabase, STUB, otel_exporter_otlp_endpoint=receiver.url, **FAST) as worker:
        url = "https://127.0.0.1/kingfisher.png"
        for columns in ({"prompt": "raise RuntimeError"}, {"reference_image_url": url, "reference_strength": 0.5}, {}):
            job = user.insert(
                **{"target_worker": TARGET, "prompt": "zebra finch", "negative_prompt": "a quagga", "metadata": {"note": "okapi"}}
                | columns
            )
            worker.wait_for("job_claimed", job_id=job["id"])
        receiver.wait_for(lambda spans: sum(span.name == "attempt" for span in spans) == 3)
    assert receiver.raw
    told = receiver.raw.decode("latin-1")
    words = ["zebra", "finch", "quagga", "okapi", "kingfisher", user.id, supabase.secret_key, supabase.url, "raise RuntimeError"]
    assert [word for word in words if word in told] == []


def test_a_frontend_that_traces_finds_the_job_under_its_span(supabase: EmbeddedSupabase, db: Database, user: User) -> None:
    with OtlpReceiver() as receiver, WorkerProcess(supabase, STUB, otel_exporter_otlp_endpoint=receiver.url, **FAST) as worker:
        job = user.insert(target_worker=TARGET, metadata={"traceparent": PARENT})
        worker.wait_for("job_completed", job_id=job["id"])
        _, trace_id, span_id, _ = PARENT.split("-")
        spans = receiver.trace(trace_id)
        assert {span.parent_id for span in spans if span.name == "job"} == {span_id}
        assert user.job(job["id"])["metrics"]["trace_id"] == trace_id


def test_each_attempt_is_under_the_same_job_and_says_how_it_ended(supabase: EmbeddedSupabase, db: Database, user: User) -> None:
    with OtlpReceiver() as receiver, WorkerProcess(supabase, STUB, otel_exporter_otlp_endpoint=receiver.url, **FAST) as worker:
        job = user.insert(target_worker=TARGET, prompt="raise UploadFailed")
        for attempt in (1, 2, 3):
            worker.wait_for("generation_error", job_id=job["id"], attempt=attempt)
            # not to wait for the pause before the next attempt
            db.execute("update public.jobs set run_at = now() where id = %s and status = 'queued'", (job["id"],))
            db.execute("select realtime.send('{}', 'wake', %s, true)", (f"worker:{TARGET}",))
        spans = receiver.trace(trace_of(job["id"]))
    assert user.job(job["id"])["status"] == "failed"
    assert tree(spans)["job"].count("attempt") == 3
    assert tree(spans)[""] == ["job"], "the job's own span is sent once, by the attempt that ended it"
    ended = [
        (span.attributes["job.outcome"], span.attributes["job.error_code"], span.error) for span in spans if span.name == "attempt"
    ]
    assert ended == [("retry", "upload_failed", "upload_failed")] * 3
    assert {span.error for span in spans if span.name == "paint"} == {"UploadFailed"}
    assert {span.error for span in spans if span.name == "job"} == {"upload_failed"}


def test_a_call_that_is_made_again_is_an_event(supabase: EmbeddedSupabase, db: Database, user: User) -> None:
    with (
        OtlpReceiver() as receiver,
        FaultProxy(supabase.url) as proxy,
        WorkerProcess(supabase, STUB, supabase_url=proxy.url, otel_exporter_otlp_endpoint=receiver.url, **FAST) as worker,
    ):
        proxy.answer("POST /storage/v1/object/sdxl", 503, times=1)
        proxy.answer("POST /rest/v1/rpc/finish_job", 503, times=1)
        job = user.insert(target_worker=TARGET)
        worker.wait_for("job_completed", job_id=job["id"])
        spans = receiver.trace(trace_of(job["id"]))
    events = {span.name: span.events for span in spans if span.events}
    assert events == {
        "upload": [("retry", {"call": "upload", "error": "StorageApiError"})],
        "finish": [("retry", {"call": "finish_job", "error": "APIError"})],
    }


@pytest.mark.parametrize("receiver", ["away", "hanging", "refusing"])
def test_a_receiver_that_does_not_take_spans_costs_no_job_any_time(
    supabase: EmbeddedSupabase, db: Database, user: User, receiver: str
) -> None:
    with OtlpReceiver(hold_seconds=120 if receiver == "hanging" else 0, status=503) as standing:
        url = "http://127.0.0.1:9" if receiver == "away" else standing.url
        with WorkerProcess(supabase, STUB, otel_exporter_otlp_endpoint=url, **FAST) as worker:
            for _ in range(5):
                job = user.insert(target_worker=TARGET)
                assert worker.wait_for("job_completed", job_id=job["id"])["seconds"] < 2
            if receiver == "hanging":
                deadline = time.monotonic() + TIMEOUT_SECONDS
                while not standing.requests:  # it has begun to hang
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
            asked = time.monotonic()
        assert worker.process.returncode == 0
        assert time.monotonic() - asked < 3, "nor does the end of the worker wait for it"


def test_nothing_of_it_is_even_loaded_where_it_is_off(supabase: EmbeddedSupabase, db: Database, user: User) -> None:
    with WorkerProcess(supabase, STUB, target_worker=TARGET) as worker:
        job = user.insert(target_worker=TARGET)
        worker.wait_for("job_completed", job_id=job["id"])
        assert "trace_id" not in user.job(job["id"])["metrics"]
        with open(f"/proc/{worker.process.pid}/maps") as maps:  # noqa: PTH123
            assert "_upb" not in maps.read(), "protobuf's C library"


@pytest.mark.parametrize(
    "given",
    [
        None,
        5,
        {"a": 1},
        "",
        "nonsense",
        PARENT.upper(),
        PARENT + "-00",
        PARENT.replace("00-", "ff-", 1),
        f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-4bf92f3577b34da6a3ce929d0e0e4736-{'0' * 16}-01",
        PARENT + "\n",
    ],
)
def test_what_is_no_traceparent_is_as_if_it_were_not_there(given: object) -> None:
    job_id = uuid4()
    assert TraceIds.of(job_id, {"traceparent": given}) == TraceIds(
        trace=job_id.int, job_span=int(job_id.hex[16:], 16), parent_span=None
    )
    assert TraceIds.of(job_id, given).parent_span is None


@pytest.mark.parametrize(
    ("outcome", "row", "last"),
    [
        ("completed", {}, True),
        ("failed", {}, True),
        ("cancelled", {}, True),
        ("released", {}, False),
        ("lost", {}, False),
        ("retry", {"attempts": 2}, False),
        ("retry", {"attempts": 3}, True),
        ("crashed", {"crashes": 0}, False),
        ("crashed", {"crashes": 1}, True),
    ],
)
def test_which_attempt_ends_its_job(outcome: str, row: dict[str, int], last: bool) -> None:
    attempt = Attempt({"attempts": 1, "max_attempts": 3, "crashes": 0} | row)
    attempt.ended(outcome, "")
    assert attempt.last is last


def test_ids_that_a_client_chose_are_never_zero() -> None:
    assert TraceIds.of(UUID(int=0), None) == TraceIds(trace=1, job_span=1, parent_span=None)


def test_a_job_that_was_put_off_waits_from_then_on() -> None:
    times = {
        "created_at": "2026-01-01T00:00:00+00:00",
        "run_at": "2026-01-01T00:01:00.5+00:00",
        "started_at": "2026-01-01T00:01:02+00:00",
    }
    assert waited_seconds(times) == (62.0, 1.5)
    assert waited_seconds(times | {"run_at": times["created_at"]}) == (62.0, 62.0)
    assert waited_seconds(times | {"started_at": times["created_at"]}) == (0.0, 0.0), "never below nothing"
