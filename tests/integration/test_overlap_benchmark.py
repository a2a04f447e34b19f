"""The benchmark of lanes runs the whole worker, which must find there what the database would give it."""

from typing import Any

import pytest

from benchmarks import overlap
from ourvidz_sdxl.engine import load_engine
from ourvidz_sdxl.settings import Settings
from tests.integration.test_engine import MODEL


def test_every_painting_is_timed_ours_and_the_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "ALONE", 2)
    engine: Any = load_engine(MODEL)
    paintings = overlap.Paintings(engine)
    with overlap.fake_supabase(upload_ms=20) as supabase:
        settings = Settings.from_env({"SUPABASE_URL": supabase.url, "SUPABASE_SERVICE_ROLE_KEY": "sb_secret_none"})
        found = overlap.measure(engine, paintings, settings, supabase, "sdxl_image_fast", 3)
    figures = list(overlap.figures(found, "15 steps", 3, 20))
    assert [figure["peer"] is not None for figure in figures] == [True, True, False, True, True]
    assert all(figure["ours"] > 0 for figure in figures)
    assert 0 < found["ours"]["busy"] <= 120, "more than all of the time only by the noise of the clock"
