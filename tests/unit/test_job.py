"""A row is parsed once. What the database would refuse, the worker refuses too, by the column's name."""

from typing import Any
from uuid import UUID

import pytest

from ourvidz_sdxl.errors import JobInvalid
from ourvidz_sdxl.job import Job, JobType, OutputFormat

ROW: dict[str, Any] = {
    "id": "11111111-1111-4111-8111-111111111111",
    "user_id": "22222222-2222-4222-8222-222222222222",
    "job_type": "sdxl_image_fast",
    "claims": 1,
    "prompt": "a red circle",
    "status": "processing",
}


def test_a_row_becomes_a_job() -> None:
    job = Job.from_row(ROW | {"batch_size": 3, "seed": 0, "output_format": "webp", "width": 1024, "height": 768})
    assert job.id == UUID(ROW["id"])
    assert job.job_type is JobType.FAST
    assert (job.batch_size, job.seed, job.output_format, job.width, job.height) == (3, 0, OutputFormat.WEBP, 1024, 768)
    assert not job.has_reference


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"prompt": " "}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 7}, "batch_size"),
        ({"prompt": "\u00a0\u3000\u200b"}, "prompt"),
        ({"batch_size": 2}, "batch_size"),
        ({"width": 1001, "height": 1024}, "width"),
        ({"width": 64, "height": 1024}, "width"),
        ({"width": 1024}, "height"),
        ({"width": 2048, "height": 2048}, "width times height"),
        ({"steps": 0}, "steps"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"seed": -1}, "seed"),
        ({"reference_strength": 1.5}, "reference_strength"),
        ({"job_type": "video"}, "job_type"),
        ({"exact_copy_mode": True}, "exact_copy_mode"),
        ({"reference_image_url": "https://a.test/x.png"}, "reference_strength"),
        ({"reference_image_url": "http://a.test/x.png", "reference_strength": 1}, "reference_image_url"),
        ({"reference_image_url": "https://me@a.test/x.png", "reference_strength": 1}, "reference_image_url"),
        ({"reference_image_path": "somebody/x.png", "reference_strength": 1}, "reference_image_path"),
        ({"reference_image_path": f"secrets/{ROW['user_id']}/x.png", "reference_strength": 1}, "reference_image_path"),
        ({"reference_image_path": f"{ROW['user_id']}/a%00.png", "reference_strength": 1}, "reference_image_path"),
        ({"metadata": {"private_metadata": "yes"}}, "metadata"),
        ({"id": None}, "id"),
    ],
)
def test_what_cannot_be_painted_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(JobInvalid) as caught:
        Job.from_row(ROW | change)
    assert named in caught.value.user_message


def test_prompts_never_show() -> None:
    job = Job.from_row(ROW | {"prompt": "my secret wish", "negative_prompt": "my secret fear"})
    assert "secret" not in repr(job)
    with pytest.raises(JobInvalid) as caught:
        Job.from_row(ROW | {"prompt": "my secret wish" * 1000})
    assert "secret" not in str(caught.value) + caught.value.user_message


def test_exact_copy_needs_no_prompt() -> None:
    job = Job.from_row(ROW | {"prompt": "", "exact_copy_mode": True, "reference_image_path": f"{ROW['user_id']}/x.png"})
    assert job.has_reference
