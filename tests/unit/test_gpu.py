"""Turns on the GPU, what goes on beside them, and the fault that ends them all."""

import threading
from uuid import UUID, uuid4

import pytest

from ourvidz_sdxl.errors import GpuUnusable, JobCancelled, ModelInvalid, OutOfMemory, Released
from ourvidz_sdxl.gpu import Gpu
from ourvidz_sdxl.queue import Lease


def lease() -> Lease:
    return Lease(uuid4(), uuid4(), expires_at=60, clock=lambda: 0)


def test_who_paints_is_told_before_it_paints_and_the_end_when_the_next_may_paint() -> None:
    first, second = lease(), lease()
    told: list[UUID | None] = []

    def on_turn(job_id: UUID | None) -> None:
        told.append(job_id)
        if told == [first.job_id, None]:
            assert first.painted
            with gpu.turn(second):  # nobody has to wait for what is done in here
                assert gpu.painting == second.job_id

    gpu = Gpu(on_turn)
    with gpu.turn(first):
        assert told == [first.job_id] == [gpu.painting]
        assert not first.painted
    assert told == [first.job_id, None, second.job_id, None]


def test_a_job_that_ends_while_it_waits_has_no_turn() -> None:
    gpu, waiting = Gpu(lambda _: None), lease()
    waiting.end(JobCancelled)
    with gpu.turn(lease()), pytest.raises(JobCancelled), gpu.turn(waiting):
        pass
    assert not waiting.painted


def test_after_a_fault_in_a_turn_the_others_are_given_back() -> None:
    gpu = Gpu(lambda _: None)
    with pytest.raises(GpuUnusable), gpu.turn(lease()):
        raise GpuUnusable("planted")
    assert not gpu.usable
    with pytest.raises(Released), gpu.turn(lease()):
        pass


def test_a_fault_beside_a_turn_gives_its_job_back_and_ends_the_turns_after_this_one() -> None:
    gpu = Gpu(lambda _: None)
    with gpu.turn(lease()), pytest.raises(Released, match="planted"), gpu.beside():
        raise GpuUnusable("planted")
    with pytest.raises(Released), gpu.turn(lease()):
        pass


def test_it_is_nearly_free_once_a_turn_when_the_pace_of_its_steps_says_so() -> None:
    now, told, seen = [0.0], list[float](), list[bool]()
    gpu = Gpu(lambda _: None, lambda: told.append(now[0]), nearly_seconds=2, clock=lambda: now[0])
    for _ in range(2):
        seen.append(gpu.nearly_free)
        with gpu.turn(lease()):
            for done in range(1, 11):
                now[0] += 5 if done == 1 else 0.5  # a slow first step, and then half a second each
                gpu.step(done, 10)
                seen.append(gpu.nearly_free)
    assert seen == 2 * [True, *5 * [False], *5 * [True]], "nearly free before its turn, and when four steps are left"
    assert told == [7.5, 9.5 + 7.5]


def test_it_counts_as_nearly_free_all_the_time_where_that_is_asked_for() -> None:
    gpu = Gpu(lambda _: None)
    with gpu.turn(lease()):
        assert gpu.nearly_free


class TestFaults:
    """Errors that may be the worker's own (`WorkerError.suspect`)."""

    def test_three_different_jobs_in_a_row_end_the_worker_with_their_codes(self) -> None:
        gpu = Gpu(lambda _: None)
        for code in ("blank_image", "unknown_error", "blank_image"):
            assert gpu.usable
            gpu.record_fault(uuid4(), code)
        assert (
            gpu.unusable_because == "worker_faulty: 3 jobs in a row failed here (blank_image, unknown_error) and none was completed"
        )
        assert gpu.faulty
        with pytest.raises(Released), gpu.turn(lease()):
            pass

    def test_one_job_that_nobody_can_paint_ends_no_worker(self) -> None:
        gpu, job_id = Gpu(lambda _: None), uuid4()
        for _ in range(10):
            gpu.record_fault(job_id, "blank_image")
        assert gpu.usable

    def test_a_completed_job_begins_the_count_anew(self) -> None:
        gpu = Gpu(lambda _: None)
        for _ in range(5):
            gpu.record_fault(uuid4(), "blank_image")
            gpu.record_fault(uuid4(), "blank_image")
            gpu.record_completed()
        assert gpu.usable

    def test_a_worker_that_completed_a_job_before_deserves_a_new_process_at_once(self) -> None:
        gpu = Gpu(lambda _: None)
        gpu.record_completed()
        for _ in range(3):
            gpu.record_fault(uuid4(), "blank_image")
        assert (gpu.usable, gpu.faulty) == (False, False)

    @pytest.mark.parametrize(
        ("found", "reason"),
        [
            (None, None),
            (OutOfMemory("planted"), None),
            (ModelInvalid("the unet is not finite"), "worker_faulty: the unet is not finite"),
            (GpuUnusable("planted"), "gpu_unusable: planted"),
            (RuntimeError("cuDNN error: planted"), "worker_faulty: RuntimeError: cuDNN error: planted"),
            (OSError("planted"), "worker_faulty: OSError: planted"),
        ],
        ids=str,
    )
    def test_an_engine_that_fails_its_proof_ends_the_worker_at_once(self, found: Exception | None, reason: str | None) -> None:
        def prove() -> None:
            if found:
                raise found

        gpu = Gpu(lambda _: None)
        assert gpu.passes_proof(uuid4(), prove) is (reason is None)
        assert gpu.unusable_because == reason
        assert gpu.faulty is (reason or "").startswith("worker_faulty")

    def test_the_proof_waits_for_its_turn_and_counts_as_the_painting_of_its_job(self) -> None:
        told: list[UUID | None] = []
        gpu, seen, painting, job_id = Gpu(told.append), list[UUID | None](), lease(), uuid4()
        with gpu.turn(painting):
            proof = threading.Thread(target=gpu.passes_proof, args=(job_id, lambda: seen.append(gpu.painting)))
            proof.start()
            assert not seen
        proof.join()
        assert seen == [job_id]
        assert told == [painting.job_id, None, job_id, None] or told == [painting.job_id, job_id, None, None]
        assert gpu.painting is None

    def test_the_first_reason_stays(self) -> None:
        gpu = Gpu(lambda _: None)
        with pytest.raises(GpuUnusable), gpu.turn(lease()):
            raise GpuUnusable("planted")
        for _ in range(3):
            gpu.record_fault(uuid4(), "blank_image")
        assert gpu.unusable_because == "gpu_unusable: planted"
