"""A job that cannot be is refused by the database, with an error that names the fault."""

from typing import Any

import pytest
from postgrest.exceptions import APIError

from tests.integration.conftest import Database, User

PAINTABLE = {"job_type": "sdxl_image_fast", "prompt": "a cat"}


@pytest.mark.parametrize(
    ("columns", "code", "named"),
    [
        ({"prompt": ""}, "23514", "prompt_is_required_unless_exact_copy_mode"),
        ({"prompt": " \n"}, "23514", "prompt_is_required_unless_exact_copy_mode"),
        ({"prompt": "\u00a0\u3000"}, "23514", "prompt_is_required_unless_exact_copy_mode"),
        ({"prompt": "\u200b\ufeff\u2800"}, "23514", "prompt_is_required_unless_exact_copy_mode"),
        ({"prompt": "x" * 100_000}, "23514", "prompt_has_at_most_4000_characters"),
        ({"negative_prompt": "x" * 4001}, "23514", "negative_prompt_has_at_most_4000_characters"),
        ({"batch_size": 2}, "23514", "batch_size_is_1_3_or_6"),
        ({"batch_size": None}, "23502", "batch_size"),
        ({"width": 1000, "height": 1024}, "23514", "width_is_a_multiple_of_64_from_128_to_2048"),
        ({"width": 1024, "height": 1000}, "23514", "height_is_a_multiple_of_64_from_128_to_2048"),
        ({"width": 2_000_000_000, "height": 2_000_000_000}, "23514", "height_is_a_multiple_of_64_from_128_to_2048"),
        ({"width": 2048, "height": 2048}, "23514", "width_times_height_is_at_most_2097152"),
        ({"width": 1024}, "23514", "width_and_height_come_together"),
        ({"steps": 0}, "23514", "steps_is_from_1_to_100"),
        ({"steps": 51, "scheduler": "lcm"}, "23514", "steps_is_at_most_50_with_lcm"),
        ({"guidance_scale": 31}, "23514", "guidance_scale_is_from_0_to_30"),
        ({"seed": -1}, "23514", "seed_is_from_0_to_2147483647"),
        ({"seed": 2**31}, "23514", "seed_is_from_0_to_2147483647"),
        ({"output_format": "gif"}, "23514", "output_format_is_png_webp_or_jpeg"),
        ({"job_type": "video_fast"}, "23514", "job_type_is_sdxl_image_fast_or_sdxl_image_high"),
        ({"job_type": None}, "23502", "job_type"),
        ({"target_worker": "No Such"}, "23514", "target_worker_is_a_short_lowercase_name"),
        ({"metadata": "text"}, "23514", "metadata_is_an_object_of_at_most_16_kb"),
        ({"metadata": []}, "23514", "metadata_is_an_object_of_at_most_16_kb"),
        ({"metadata": {"note": "x" * 20_000}}, "23514", "metadata_is_an_object_of_at_most_16_kb"),
        ({"exact_copy_mode": True}, "23514", "exact_copy_mode_needs_a_reference"),
        ({"reference_image_url": "http://example.com/x.png", "reference_strength": 0.5}, "23514", "reference_image_url_is_https"),
        ({"reference_image_url": "https://example.com/a\x7f.png"}, "23514", "reference_image_url_is_https"),
        ({"reference_image_url": "https://" + "x" * 2048}, "23514", "reference_image_url_is_https"),
        (
            {"reference_image_url": "https://me:secret@example.com/x.png", "reference_strength": 1},
            "23514",
            "reference_image_url_has_no_user_name_and_no_port_but_443",
        ),
        ({"reference_image_url": "https://example.com/x.png"}, "23514", "reference_strength_is_required_with_a_reference"),
        ({"reference_strength": 1.5}, "23514", "reference_strength_is_from_0_to_1"),
        ({"reference_image_path": "someone/x.png", "reference_strength": 1}, "23514", "reference_image_path_is_in_your_own_folder"),
        ({"user_id": "11111111-1111-4111-8111-111111111111"}, "42501", "user_id must be your own"),
        ({"status": "completed"}, "42501", "status must be queued"),
        ({"priority": 0}, "42501", "permission denied for table jobs"),
        ({"attempts": 1}, "42501", "permission denied for table jobs"),
        ({"prompt_typo": "x"}, "PGRST204", "prompt_typo"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_refused(db: Database, user: User, columns: dict[str, Any], code: str, named: str) -> None:
    with pytest.raises(APIError) as caught:
        user.client.table("jobs").insert(PAINTABLE | columns).execute()
    assert (caught.value.code, named in (caught.value.message or "")) == (code, True), caught.value.message
    assert db.execute("select count(*) from public.jobs").fetchone() == {"count": 0}


@pytest.mark.parametrize(
    "columns",
    [
        {"status": "queued", "seed": 0, "batch_size": 6, "steps": 1, "guidance_scale": 0},
        {"width": 1344, "height": 768, "output_format": "jpeg", "metadata": {"fit": "cover"}},
        {"steps": 50, "scheduler": "lcm"},
        {"scheduler": "lcm"},
        {"reference_image_url": "https://example.com/x.png", "reference_strength": 0},
        {"reference_image_url": "https://bücher.example:443/ü.png?a=b#c", "reference_strength": 0},
        {"prompt": "🎨"},
        {"prompt": "", "exact_copy_mode": True, "reference_image_url": "https://example.com/x.png"},
    ],
)
def test_accepted(db: Database, user: User, columns: dict[str, Any]) -> None:
    job = user.insert(user_id=user.id, **columns)
    assert (job["status"], job["user_id"], job["attempts"]) == ("queued", user.id, 0)


def test_a_reference_in_the_users_own_folder_is_accepted(db: Database, user: User) -> None:
    for path in (f"{user.id}/cat.png", f"reference_images/{user.id}/cat.png", f"sdxl_image_high/{user.id}/j/1-0.png"):
        user.insert(reference_image_path=path, reference_strength=0.3)
    user.insert(reference_image_path=f"{user.id}/a b/!-_.*'()&$=@;:+,?.png", reference_strength=0.3)
    for path in (f"{user.id}/../x/cat.png", f"secrets/{user.id}/cat.png", "cat.png"):
        with pytest.raises(APIError, match="reference_image_path_is_in_your_own_folder"):
            user.insert(reference_image_path=path, reference_strength=0.3)


@pytest.mark.parametrize(
    "name", ["a%00.png", "a%ff.png", "%2e%2e/x.png", "a\n.png", "a\x7f.png", "é.png", "a\\b.png", "a#b.png", "a//b.png", "a/"]
)
def test_a_reference_that_storage_cannot_hold_is_refused(db: Database, user: User, name: str) -> None:
    with pytest.raises(APIError, match="reference_image_path_is_an_object_name"):
        user.insert(reference_image_path=f"{user.id}/{name}", reference_strength=0.3)


def test_an_idempotency_key_counts_once_for_each_user(db: Database, user: User, other: User) -> None:
    user.insert(idempotency_key="click-1")
    other.insert(idempotency_key="click-1")
    with pytest.raises(APIError, match="jobs_idempotency_key_is_unique_per_user"):
        user.insert(idempotency_key="click-1")


def test_too_many_active_jobs_are_429(db: Database, user: User) -> None:
    user.client.table("jobs").insert([PAINTABLE] * 200).execute()
    with pytest.raises(APIError, match="too many active jobs"):
        user.insert()


def test_who_has_not_signed_in_cannot_ask(db: Database, user: User) -> None:
    user.client.auth.sign_out()
    with pytest.raises(APIError, match="permission denied for table jobs"):
        user.insert()
