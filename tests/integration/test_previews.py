"""Pictures of what is being painted: like the painting, the same for both engines, and without any effect on it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from ourvidz_sdxl.engine.fast.engine import FastEngine
from ourvidz_sdxl.engine.sdxl import SdxlEngine
from ourvidz_sdxl.job import Scheduler
from ourvidz_sdxl.plan import Plan
from tests.integration.test_fast_engine import BUNDLED, REFERENCE, plan, reference

JOBS: dict[str, dict[str, Any]] = {
    "text": {},
    "batch of 3": {"batch_size": 3},
    "no guidance": {"guidance_scale": 1.0},
    "modify": {**REFERENCE, "reference_strength": 0.2},
    "another size": {"width": 128, "height": 192},
    "dpmpp_2m": {"scheduler": Scheduler.DPMPP_2M},
}


@pytest.fixture(scope="module", params=[SdxlEngine, FastEngine])
def engine(request: pytest.FixtureRequest) -> Any:
    return request.param.load(BUNDLED)


def watched(engine: SdxlEngine, asked: Plan, **options: Any) -> tuple[list[list[Image.Image | None]], list[Image.Image]]:
    """The previews after each step, one for each image of the batch; and the painting."""
    seen: list[list[Image.Image | None]] = []

    def look(_done: int, _total: int) -> None:
        seen.append([engine.preview(index) for index in range(asked.batch_size)])

    given = reference(engine.native_size) if asked.mode != "none" else None
    return seen, engine.paint(asked, given, look, **options)


def likeness(preview: Image.Image, image: Image.Image) -> float:
    """Correlation of the pixels, of the image as small as the preview."""
    small = image.resize(preview.size, Image.Resampling.BOX)
    return float(np.corrcoef(np.asarray(preview).ravel(), np.asarray(small).ravel())[0, 1])


@pytest.mark.parametrize("columns", JOBS.values(), ids=JOBS)
def test_previews_are_like_their_own_image_and_change_nothing(engine: SdxlEngine, columns: dict[str, Any]) -> None:
    asked = plan(engine.native_size, **columns)
    seen, images = watched(engine, asked)
    assert len(seen) == asked.painted_steps
    given = reference(engine.native_size) if asked.mode != "none" else None
    assert engine.paint(asked, given, lambda *_: None) == images
    for index, image in enumerate(images):
        last = seen[-1][index]
        assert last
        assert last.size == (asked.width // engine._latent_scale, asked.height // engine._latent_scale)
        others = [likeness(last, other) for other in images]
        assert likeness(last, image) == max(others) > 0.9


def test_long_before_the_end_the_picture_can_be_told(engine: SdxlEngine) -> None:
    seen, images = watched(engine, plan(engine.native_size, steps=20))
    early, raw = seen[4][0], seen[0][0]
    assert early
    assert raw
    assert likeness(early, images[0]) > 0.8


def test_there_is_none_outside_of_a_step_nor_where_images_are_painted_one_by_one(engine: SdxlEngine) -> None:
    assert engine.preview(0) is None
    seen, _ = watched(engine, plan(engine.native_size, batch_size=3, steps=2), frugal=True)
    assert all(preview is None for previews in seen for preview in previews)
    assert engine.preview(0) is None


def test_the_projection_is_the_checkpoints_own(engine: SdxlEngine) -> None:
    for colour in ((220, 40, 40), (40, 60, 200), (250, 250, 250), (10, 10, 10)):
        flat = Image.new("RGB", (engine.native_size,) * 2, colour)
        shown = np.asarray(engine._projection(engine._encode(flat)[0]))[4:-4, 4:-4].mean(axis=(0, 1))
        assert np.abs(shown - colour).max() < 40
