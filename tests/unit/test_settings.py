"""Settings come from the environment, all mistakes at once, and never show a secret."""

from pathlib import Path

import pytest

from ourvidz_sdxl.errors import SettingsInvalid
from ourvidz_sdxl.job import JobType
from ourvidz_sdxl.settings import LUSTIFY, Settings

ENOUGH = {"SUPABASE_URL": "https://abc.supabase.co", "SUPABASE_SERVICE_ROLE_KEY": "sb_secret_hush"}


def test_two_variables_are_enough_and_the_rest_are_the_owners_defaults() -> None:
    settings = Settings.from_env(ENOUGH)
    assert settings.model_path == LUSTIFY
    assert settings.max_concurrent_jobs == 2
    assert settings.poll_interval_seconds == 2
    assert settings.job_types == (JobType.FAST, JobType.HIGH)
    assert settings.target_worker == "sdxl"
    assert settings.worker_id


def test_the_old_name_of_the_key_is_known_too() -> None:
    settings = Settings.from_env({"SUPABASE_URL": "https://abc.supabase.co", "SUPABASE_SERVICE_KEY": "sb_secret_old"})
    assert settings.supabase_service_role_key.get_secret_value() == "sb_secret_old"


def test_values_are_parsed() -> None:
    settings = Settings.from_env(
        ENOUGH | {"JOB_TYPES": "sdxl_image_high, ", "MODEL_PATH": "/m/x.safetensors", "LEASE_SECONDS": "80", "WORKER_ID": " "}
    )
    assert settings.job_types == (JobType.HIGH,)
    assert settings.model_path == Path("/m/x.safetensors")
    assert settings.heartbeat_seconds == 20
    assert settings.worker_id.strip(), "an empty variable counts as absent"


def test_the_url_may_end_with_a_slash() -> None:
    assert Settings.from_env(ENOUGH | {"SUPABASE_URL": "https://abc.supabase.co/"}).supabase_url == "https://abc.supabase.co"


def test_all_mistakes_are_told_together_without_their_values() -> None:
    with pytest.raises(SettingsInvalid) as caught:
        Settings.from_env(
            {
                "SUPABASE_URL": "abc",
                "MAX_CONCURRENT_JOBS": "none-at-all",
                "JOB_TYPES": "video",
                "SUPABASE_SERVICE_KEY": "sb_publishable_1234",
            }
        )
    told = str(caught.value)
    assert all(name in told for name in ("SUPABASE_URL", "MAX_CONCURRENT_JOBS", "JOB_TYPES", "SUPABASE_SERVICE_ROLE_KEY"))
    assert "none-at-all" not in told
    assert "1234" not in told


def test_the_key_is_masked_wherever_settings_are_printed() -> None:
    settings = Settings.from_env(ENOUGH)
    assert "hush" not in repr(settings) + str(settings) + settings.model_dump_json()


def test_a_local_enhancer_needs_its_model() -> None:
    with pytest.raises(SettingsInvalid, match="ENHANCER_MODEL_PATH"):
        Settings.from_env(ENOUGH | {"ENHANCER": "local"})


def test_accelerations_are_off_unless_set() -> None:
    settings = Settings.from_env(ENOUGH)
    assert settings.guidance_interval == (0.0, 1.0)
    assert settings.fast_lora_path is None


@pytest.mark.parametrize(("value", "interval"), [("0.1-0.8", (0.1, 0.8)), (" 0 - .5 ", (0, 0.5)), ("0.25-1", (0.25, 1))])
def test_a_guidance_interval_is_two_shares(value: str, interval: tuple[float, float]) -> None:
    assert Settings.from_env(ENOUGH | {"GUIDANCE_INTERVAL": value}).guidance_interval == interval


@pytest.mark.parametrize("value", ["0.5", "0.8-0.1", "0.5-0.5", "10-80", "-0.1-0.5", "0.1-0.5-0.8", "nan-1", "early"])
def test_what_is_no_part_of_a_schedule_is_refused_with_an_example(value: str) -> None:
    with pytest.raises(SettingsInvalid, match=r"GUIDANCE_INTERVAL: .*two shares of its steps, such as 0\.1-0\.8"):
        Settings.from_env(ENOUGH | {"GUIDANCE_INTERVAL": value})


def test_a_few_step_lora_has_2_to_16_steps_or_else_8() -> None:
    assert Settings.from_env(ENOUGH).fast_lora_steps == 8
    assert Settings.from_env(ENOUGH | {"FAST_LORA_STEPS": "4"}).fast_lora_steps == 4
    for steps in ("1", "17"):
        with pytest.raises(SettingsInvalid, match="FAST_LORA_STEPS"):
            Settings.from_env(ENOUGH | {"FAST_LORA_STEPS": steps})


def test_default_steps_and_guidance_are_within_a_jobs_bounds() -> None:
    assert (Settings.from_env(ENOUGH).default_steps, Settings.from_env(ENOUGH).default_guidance) == (None, None)
    turbo = Settings.from_env(ENOUGH | {"DEFAULT_STEPS": "1", "DEFAULT_GUIDANCE": "0"})
    assert (turbo.default_steps, turbo.default_guidance) == (1, 0)
    for wrong in ({"DEFAULT_STEPS": "0"}, {"DEFAULT_STEPS": "101"}, {"DEFAULT_GUIDANCE": "-1"}, {"DEFAULT_GUIDANCE": "nan"}):
        with pytest.raises(SettingsInvalid, match=next(iter(wrong))):
            Settings.from_env(ENOUGH | wrong)


def test_every_setting_is_explained_to_the_operator() -> None:
    example = (Path(__file__).parents[2] / ".env.example").read_text()
    for name in Settings.model_fields:
        assert f"{name.upper()}=" in example, f"{name.upper()} is missing in .env.example"
