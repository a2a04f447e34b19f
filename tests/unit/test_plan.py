"""The owner's rules as a table: what a job says, and what the GPU is told."""

import math
import struct
from decimal import Decimal
from fractions import Fraction
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ourvidz_sdxl.errors import JobInvalid
from ourvidz_sdxl.job import Job, JobType, Scheduler
from ourvidz_sdxl.plan import FewStep, I2IMode, Plan, make_plan, size_like

REFERENCE = {"reference_image_path": "u/x.png"}
LCM_51 = {"scheduler": "lcm", "steps": 51}
LORA = FewStep(lora="hyper-8", steps=8)
OPTIONS = ("guidance_interval", "few_step", "default_steps", "default_guidance_scale")


def plan_of(**columns: Any) -> Plan:
    """OPTIONS are the operator's; all else is the job's."""
    options = {name: columns.pop(name) for name in OPTIONS if name in columns}
    job = Job(id=uuid4(), user_id=uuid4(), claims=1, **({"job_type": "sdxl_image_high", "prompt": "a cat"} | columns))
    reference_size = (1024, 1024) if job.has_reference else None
    return make_plan(job, native_size=1024, random_seed=7, reference_size=reference_size, **options)


@pytest.mark.parametrize(("job_type", "steps", "guidance_scale"), [("sdxl_image_fast", 15, 6.0), ("sdxl_image_high", 25, 7.5)])
def test_defaults_by_job_type(job_type: str, steps: int, guidance_scale: float) -> None:
    plan = plan_of(job_type=job_type)
    assert (plan.steps, plan.guidance_scale, plan.width, plan.height) == (steps, guidance_scale, 1024, 1024)
    assert (plan.mode, plan.denoise, plan.painted_steps) == (I2IMode.NONE, 1.0, steps)


def test_what_the_job_says_wins() -> None:
    plan = plan_of(steps=40, guidance_scale=0.0, width=832, height=1216, seed=0, negative_prompt="blur")
    assert (plan.steps, plan.guidance_scale, plan.width, plan.height) == (40, 0.0, 832, 1216)
    assert plan.seeds == (0,)
    assert plan.negative_prompt == "blur"


def test_image_i_has_seed_plus_i() -> None:
    assert plan_of(batch_size=6, seed=41).seeds == (41, 42, 43, 44, 45, 46)
    assert plan_of(batch_size=3).seeds == (7, 8, 9), "no seed: the random one"


@pytest.mark.parametrize(("strength", "denoise"), [(None, 0.5), (0.0, 1.0), (0.2, 0.8), (1.0, 0.0)])
def test_modify_denoises_what_the_strength_leaves(strength: float | None, denoise: float) -> None:
    plan = plan_of(**REFERENCE, reference_strength=strength, negative_prompt="blur")
    assert plan.mode is I2IMode.MODIFY
    assert plan.denoise == pytest.approx(denoise)
    assert (plan.guidance_scale, plan.negative_prompt) == (7.5, "blur")


@pytest.mark.parametrize(("strength", "denoise"), [(None, 0.05), (0.0, 0.0), (0.02, 0.02), (0.9, 0.05)])
def test_copy_denoises_at_most_a_twentieth_without_guidance_or_negative_prompt(strength: float | None, denoise: float) -> None:
    plan = plan_of(**REFERENCE, exact_copy_mode=True, reference_strength=strength, negative_prompt="blur", guidance_scale=9.0)
    assert plan.mode is I2IMode.COPY
    assert plan.denoise == pytest.approx(denoise)
    assert (plan.guidance_scale, plan.negative_prompt) == (1.0, "")


def test_fifteen_steps_at_a_twentieth_still_paint_one() -> None:
    plan = plan_of(**REFERENCE, exact_copy_mode=True, job_type="sdxl_image_fast")
    assert (plan.steps, plan.painted_steps) == (20, 1)


@pytest.mark.parametrize(("steps", "strength", "painted"), [(25, 0.8, 5), (15, 0.8, 3), (100, 0.71, 29), (10, 0.9, 1)])
def test_painted_steps_are_the_exact_product_rounded_down(steps: int, strength: float, painted: int) -> None:
    assert plan_of(**REFERENCE, steps=steps, reference_strength=strength).painted_steps == painted


def test_painted_steps_of_every_schedule_and_strength_equal_those_of_exact_fractions() -> None:
    job = Job(id=uuid4(), user_id=uuid4(), claims=1, job_type=JobType.HIGH, prompt="a cat", reference_image_path="u/x.png")
    for hundredths in range(101):
        exact = 1 - Fraction(hundredths, 100)
        # as a double, as a client computes it, and as a 32-bit real widened to a double
        single = struct.unpack("f", struct.pack("f", hundredths / 100))[0]
        for strength in {hundredths / 100, 1 - (100 - hundredths) / 100, single}:
            for steps in range(1, 101):
                asked = job.model_copy(update={"steps": steps, "reference_strength": strength})
                plan = make_plan(asked, native_size=1024, random_seed=7, reference_size=(1024, 1024))
                length = steps if not exact else max(steps, math.ceil(1 / exact))
                assert (plan.steps, plan.painted_steps) == (length, math.floor(length * exact)), (steps, strength)


@given(steps=st.integers(1, 100), strength=st.decimals(0, "0.999", places=3))
def test_painted_steps_are_exact_in_thousandths_too_and_at_least_one(steps: int, strength: Decimal) -> None:
    plan = plan_of(**REFERENCE, steps=steps, reference_strength=float(strength))
    assert plan.painted_steps == math.floor(plan.steps * (1 - Fraction(strength))) >= 1


def test_a_reference_at_strength_0_is_painted_from_noise_and_at_1_not_at_all() -> None:
    assert plan_of(**REFERENCE, reference_strength=0.0).painted_steps == plan_of().painted_steps == 25
    assert plan_of(**REFERENCE, reference_strength=1.0).painted_steps == 0


def test_the_operators_defaults_stand_above_the_job_types_and_below_the_job() -> None:
    turbo = {"default_steps": 2, "default_guidance_scale": 0.0}
    for job_type in JobType:
        assert (plan_of(job_type=job_type, **turbo).steps, plan_of(job_type=job_type, **turbo).guidance_scale) == (2, 0)
    asked = plan_of(steps=30, guidance_scale=5.0, **turbo)
    assert (asked.steps, asked.guidance_scale) == (30, 5)
    few = plan_of(job_type="sdxl_image_fast", few_step=LORA, **turbo)
    assert (few.steps, few.guidance_scale) == (8, 1), "a few-step LoRA paints with its own"


def test_lcm_is_painted_in_at_most_50_steps() -> None:
    with pytest.raises(JobInvalid, match="at most 50 with lcm"):
        Job.from_row({"id": uuid4(), "user_id": uuid4(), "claims": 1, "job_type": "sdxl_image_high", "prompt": "a cat"} | LCM_51)
    assert plan_of(scheduler="lcm", default_steps=60).steps == 50


@given(
    job_type=st.sampled_from(JobType),
    steps=st.none() | st.integers(1, 100),
    strength=st.none() | st.floats(0, 1),
    exact_copy_mode=st.booleans(),
    with_reference=st.booleans(),
)
def test_a_reference_is_returned_as_it_is_or_painted_in_at_least_one_step(
    job_type: JobType, steps: int | None, strength: float | None, exact_copy_mode: bool, with_reference: bool
) -> None:
    plan = plan_of(
        job_type=job_type,
        steps=steps,
        reference_strength=strength,
        exact_copy_mode=exact_copy_mode and with_reference,
        **(REFERENCE if with_reference else {}),
    )
    assert 0 <= plan.denoise <= 1
    assert plan.denoise == 0 or plan.painted_steps >= 1
    assert plan.painted_steps <= plan.steps <= 1000


def interval() -> st.SearchStrategy[tuple[float, float]]:
    return st.tuples(st.floats(0, 1), st.floats(0, 1)).filter(lambda ends: ends[0] < ends[1])


@pytest.mark.parametrize(
    ("ends", "columns", "guided"),
    [
        ((0, 1), {}, range(25)),
        ((0.15, 0.9), {}, range(4, 22)),
        ((0.1, 0.8), {"steps": 10}, range(1, 8)),
        ((0.1, 0.8), {"steps": 10, "guidance_scale": 1.0}, range(0)),
        ((0.1, 0.8), {"steps": 10, **REFERENCE, "reference_strength": 0.5}, range(3)),
        ((0.6, 0.8), {"steps": 10, **REFERENCE, "reference_strength": 0.5}, range(1, 3)),
        ((0.1, 0.4), {"steps": 10, **REFERENCE, "reference_strength": 0.5}, range(0)),
        ((0, 1), {**REFERENCE, "exact_copy_mode": True}, range(0)),
    ],
)
def test_guided_steps_are_counted_among_those_that_are_painted(
    ends: tuple[float, float], columns: dict[str, Any], guided: range
) -> None:
    assert plan_of(guidance_interval=ends, **columns).guided_steps == guided


@given(ends=interval(), steps=st.integers(1, 100), strength=st.floats(0, 0.99), with_reference=st.booleans())
def test_the_guided_part_is_of_the_whole_schedule_whatever_of_it_is_painted(
    ends: tuple[float, float], steps: int, strength: float, with_reference: bool
) -> None:
    plan = plan_of(guidance_interval=ends, steps=steps, **(REFERENCE | {"reference_strength": strength} if with_reference else {}))
    skipped = plan.steps - plan.painted_steps
    assert set(plan.guided_steps) <= set(range(plan.painted_steps))
    for step in range(plan.painted_steps):
        begin, end = (skipped + step) / plan.steps, (skipped + step + 1) / plan.steps
        if ends[0] <= begin and end <= ends[1]:
            assert step in plan.guided_steps, "it lies within"
        if end <= ends[0] or ends[1] <= begin:
            assert step not in plan.guided_steps, "it lies outside"


@given(ends=interval(), between=st.floats(0, 1), steps=st.integers(1, 100), denoise=st.floats(0.01, 1))
def test_two_parts_side_by_side_are_the_whole_and_share_no_step(
    ends: tuple[float, float], between: float, steps: int, denoise: float
) -> None:
    middle = min(max(between, ends[0]), ends[1])
    whole, left, right = (
        [*plan_of(guidance_interval=part, steps=steps, **REFERENCE, reference_strength=1 - denoise).guided_steps]
        for part in (ends, (ends[0], middle), (middle, ends[1]))
    )
    assert left + right == whole


def test_a_fast_job_is_painted_in_few_steps_without_guidance_where_the_operator_has_a_lora() -> None:
    plan = plan_of(job_type="sdxl_image_fast", few_step=LORA, negative_prompt="blur")
    assert (plan.few_step_lora, plan.steps, plan.guidance_scale, plan.scheduler) == ("hyper-8", 8, 1, Scheduler.EULER)
    assert plan.negative_prompt == "", "it has no effect, so nothing says that it was used"
    modified = plan_of(job_type="sdxl_image_fast", few_step=LORA, **REFERENCE, reference_strength=0.5)
    assert (modified.few_step_lora, modified.steps, modified.painted_steps) == ("hyper-8", 8, 4)


@pytest.mark.parametrize(
    "columns",
    [
        {"job_type": "sdxl_image_high"},
        {"steps": 8},
        {"guidance_scale": 1.0},
        {"scheduler": "euler"},
        {**REFERENCE, "exact_copy_mode": True},
        {**REFERENCE, "reference_strength": 0.9},
        {**REFERENCE, "reference_strength": 1.0},
    ],
    ids=str,
)
def test_every_other_job_is_painted_as_without_a_lora(columns: dict[str, Any]) -> None:
    columns = {"job_type": "sdxl_image_fast", "negative_prompt": "blur"} | columns
    assert plan_of(few_step=LORA, **columns) == plan_of(**columns)


def sizes() -> st.SearchStrategy[tuple[int | None, int | None]]:
    edge = st.integers(2, 32).map(lambda n: n * 64)
    return st.just((None, None)) | st.tuples(edge, edge)


@settings(max_examples=500, deadline=None)
@given(
    row=st.fixed_dictionaries(
        {"job_type": st.sampled_from(["sdxl_image_fast", "sdxl_image_high", "video"]), "prompt": st.text(max_size=20)},
        optional={
            "batch_size": st.integers(-1, 8),
            "steps": st.none() | st.integers(-1, 110),
            "guidance_scale": st.none() | st.floats(),
            "seed": st.none() | st.integers(-1, 2**31),
            "scheduler": st.sampled_from([None, "euler", "unipc", "magic"]),
            "reference_strength": st.none() | st.floats(-0.5, 1.5),
            "exact_copy_mode": st.booleans(),
            "reference_image_path": st.none() | st.just("u/x.png"),
            "metadata": st.sampled_from([{}, {"fit": "contain"}, {"fit": "stretch"}]),
        },
    ),
    size=sizes(),
    reference_size=st.tuples(st.integers(1, 9000), st.integers(1, 9000)),
    native_size=st.sampled_from([128, 1024]),
)
def test_a_job_has_a_plan_or_a_named_error(
    row: dict[str, Any], size: tuple[int | None, int | None], reference_size: tuple[int, int], native_size: int
) -> None:
    whole = {"id": str(uuid4()), "user_id": str(uuid4()), "claims": 1, "width": size[0], "height": size[1]} | row
    try:
        job = Job.from_row(whole)
    except JobInvalid:
        return
    plan = make_plan(job, native_size=native_size, random_seed=5, reference_size=reference_size if job.has_reference else None)
    assert plan.steps >= 1
    assert plan.denoise == 0 or plan.painted_steps >= 1
    assert plan.width % 8 == plan.height % 8 == 0
    assert len(plan.seeds) == job.batch_size
    assert (job.width, job.height) in {(None, None), (plan.width, plan.height)}
    if job.width is None and job.has_reference:
        assert native_size // 2 <= min(plan.width, plan.height) <= max(plan.width, plan.height) <= 2 * native_size


@pytest.mark.parametrize(
    ("reference_size", "size"),
    [((512, 512), (1024, 1024)), ((1920, 1080), (1344, 768)), ((1080, 1920), (768, 1344)), ((9000, 10), (2048, 512))],
)
def test_without_a_size_it_follows_the_references_aspect(reference_size: tuple[int, int], size: tuple[int, int]) -> None:
    assert size_like(reference_size, 1024) == size
