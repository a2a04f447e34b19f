"""The simulated fleet works on the real queue as workers do, and its yardstick for fairness measures what it says."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fleet import Plan, play, write
from benchmarks.fleet_fairness import Arrival, fair_ends
from benchmarks.fleet_figures import Scene
from benchmarks.plot_fleet import stale
from tests.processes import scratch_supabase

TINY = Plan(
    finished=300,
    waiting=120,
    users=20,
    sizes=(6,),
    warm_up_seconds=0.5,
    seconds=3,
    burst=30,
    burst_seconds=3,  # on a loaded machine, too, some job is claimed in these
    herds=1,
    lease_seconds=2,
)


@pytest.fixture(scope="module")
def scenes() -> dict[str, Scene]:
    with scratch_supabase() as supabase:
        return asyncio.run(play(supabase, TINY))


def finished(scene: Scene) -> list[str]:
    return [job.id for job in scene.jobs if job.completed is not None]


def test_every_scene_claims_and_none_is_refused(scenes: dict[str, Scene]) -> None:
    assert list(scenes) == ["steady 6", "herd", "burst", "backlog", "saturated"]
    assert all(any(claim.full for claim in scene.claims()) for scene in scenes.values())
    assert all(not scene.calls.refused for scene in scenes.values())


def test_no_job_is_claimed_by_two(scenes: dict[str, Scene]) -> None:
    """As many claims found a job as jobs were begun; the leases of the dead end, and their jobs are claimed once more."""
    scene = scenes["burst"]
    assert sum(claim.full for claim in scene.claims()) == sum(job.started is not None for job in scene.jobs)
    assert scenes["backlog"].more["jobs of dead workers"][0] > 0


def test_jobs_are_finished(scenes: dict[str, Scene]) -> None:
    assert len(finished(scenes["saturated"])) > 6


def test_a_wake_reaches_each_worker(scenes: dict[str, Scene]) -> None:
    """One job, six idle workers: one finds it, and the others have looked twice, as after every wake."""
    herd = scenes["herd"]
    assert herd.watched.events["wake", "worker:herd"] == TINY.herds
    assert len(herd.claims()) >= 1 + 2 * (TINY.sizes[0] - 1)


def test_what_is_written_has_every_scene_and_the_plots_series(scenes: dict[str, Scene], tmp_path: Path) -> None:
    write(scenes, tmp_path)
    content: dict[str, Any] = json.loads((tmp_path / "fleet.json").read_text())
    names = {figure["name"].partition(": ")[0] for figure in content["figures"]}
    assert names == {"6 workers", "herd", "burst of 30", "120 waiting", "as fast as it goes"}
    assert set(content["series"]) == {"fair", "waiting"}


def test_two_users_share_a_machine_and_a_late_one_gets_half() -> None:
    def arrival(job: str, at: float, cost: float) -> Arrival:
        return Arrival(job=job, user=job[0], at=at, cost=cost)

    at_once = [arrival("a1", 0, 1), arrival("a2", 0, 1), arrival("b1", 0, 1)]
    assert fair_ends(at_once, 1) == {"a1": 2, "b1": 2, "a2": 3}
    late = [arrival("a1", 0, 1), arrival("b1", 5, 2), arrival("a2", 6, 1)]
    assert fair_ends(late, 1) == pytest.approx({"a1": 1, "b1": 8, "a2": 8})
    assert fair_ends(late, 2) == pytest.approx({"a1": 0.5, "b1": 6, "a2": 6.5})


def test_the_plots_show_the_figures_as_they_are() -> None:
    assert stale() == [], "make plot"
