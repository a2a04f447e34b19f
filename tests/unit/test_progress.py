"""What is told of a job while it paints: the newest step, and a small picture now and then."""

import base64
from io import BytesIO
from uuid import UUID, uuid4

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ourvidz_sdxl.progress import MIN_INTERVAL_SECONDS, PREVIEW_BYTES, PREVIEW_EDGE, Preview, Progress, State, payload, webp
from ourvidz_sdxl.settings import Settings

SETTINGS = Settings.from_env({"SUPABASE_URL": "http://127.0.0.1:1", "SUPABASE_SERVICE_ROLE_KEY": "sb_secret_x"})
JOB, OTHER = uuid4(), uuid4()
TEAL = Image.new("RGB", (16, 16), "teal")


class Told:
    """Progress whose thread does not run, at a time of the test's choice."""

    def __init__(self) -> None:
        self.seconds, self.made = 100.0, 0
        self.progress = Progress(SETTINGS, clock=lambda: self.seconds)

    def step(self, done: int, job: UUID = JOB) -> State:
        def preview() -> Preview:
            self.made += 1
            return self.made, TEAL

        self.progress.step(job, done, 25, preview)
        assert self.progress._newest
        return self.progress._newest


def test_a_preview_is_made_at_most_four_times_a_second_and_goes_with_the_newest_step() -> None:
    told = Told()
    assert told.step(1).preview == (1, TEAL)
    told.seconds += MIN_INTERVAL_SECONDS / 2
    state = told.step(2)
    assert (state.done, state.preview) == (2, (1, TEAL)), "the one that was not sent yet is kept"
    assert told.made == 1
    told.seconds += MIN_INTERVAL_SECONDS / 2
    assert told.step(3).preview == (2, TEAL)


def test_the_next_job_does_not_get_the_last_ones_preview() -> None:
    told = Told()
    told.step(1)
    assert told.step(1, OTHER).preview is None


def test_the_payload_says_the_step_and_has_the_picture_where_there_is_one() -> None:
    plain = payload(State(job_id=JOB, done=5, total=25, preview=None))
    assert plain == {"id": str(JOB), "step": 5, "steps": 25, "progress": 20}
    assert payload(State(job_id=JOB, done=5, total=25, preview=(2, None))) == plain
    preview = payload(State(job_id=JOB, done=5, total=25, preview=(2, TEAL)))["preview"]
    assert preview["index"] == 2
    image = Image.open(BytesIO(base64.b64decode(preview["webp"])))
    assert (image.format, image.size) == ("WEBP", (16, 16))


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 2**32 - 1))
def test_a_picture_is_small_even_where_it_is_all_noise(width: int, height: int, seed: int) -> None:
    noise = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))
    content = webp(noise)
    assert len(content) <= PREVIEW_BYTES
    small = Image.open(BytesIO(content))
    assert max(small.size) == min(PREVIEW_EDGE, max(width, height))
    assert noise.size == (width, height), "the engine's own is left as it is"


@pytest.mark.parametrize(("given", "expected"), [("", True), ("false", False)])
def test_an_operator_may_switch_previews_off(given: str, expected: bool) -> None:
    environ = {"SUPABASE_URL": "http://x", "SUPABASE_SERVICE_ROLE_KEY": "k", "PREVIEWS": given}
    assert Settings.from_env(environ).previews is expected
