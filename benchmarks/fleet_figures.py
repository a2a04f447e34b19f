"""What the scenes of benchmarks/fleet.py come to: figures for the tables, and series for the plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.fleet_fairness import Arrival, fair_ends
from benchmarks.fleet_rest import Call, Calls
from benchmarks.fleet_watch import Watched
from benchmarks.fleet_workers import UPLOAD_SECONDS, Fleet

CLAIM_BAR_MS = 50
FAIR_BAR = 2
PROGRESS_PER_SECOND = 4  # ourvidz_sdxl.progress, at most; one browser watches each job


@dataclass(frozen=True, kw_only=True)
class Done:
    """One job of a scene, with seconds since its beginning; None for what did not happen yet."""

    id: str
    user: str
    cost: float
    worker: str | None
    created: float
    started: float | None
    completed: float | None
    again: bool  # its worker died, and another one claimed it; or nobody did yet

    @property
    def asked(self) -> float:
        """Those that waited already are as if asked for when the scene began."""
        return max(0.0, self.created)


@dataclass(kw_only=True)
class Scene:
    """What came of one; `measured_from` is where the measured stretch begins, in seconds since the beginning."""

    name: str
    fleet: Fleet
    watched: Watched
    measured_from: float = 0.0
    measured_until: float = 0.0
    painting: int = 0  # workers at work when the stretch ends
    calls: Calls = field(default_factory=Calls)
    jobs: list[Done] = field(default_factory=list)
    more: dict[str, tuple[float, str]] = field(default_factory=dict)  # other figures, with their units

    def claims(self) -> list[Call]:
        return self.calls.made["claim_jobs"]

    def waits(self) -> list[float]:
        """Seconds from insert to claim, of what was asked for while it was measured."""
        return [job.started - job.created for job in self.jobs if job.started is not None and job.created >= self.measured_from]

    def shares(self, *, by_the_queue: bool = False) -> list[tuple[Done, float, float]]:
        """Each job with the seconds that it took, and that it would have taken by its fair share. One that is not done counts with
        the time so far, once that is more than its share. Those whose worker died are left out: they wait for the lease to end.

        With `by_the_queue` only the wait for a claim is the job's own, and what came after it as in the fair share.
        """
        speed = {worker.name: worker.seconds_per_unit for worker in self.fleet.everybody}
        mean = len(speed) / sum(1 / one for one in speed.values())
        ends = fair_ends(
            [Arrival(job=job.id, user=job.user, at=job.asked, cost=job.cost) for job in self.jobs], self.fleet.capacity
        )
        found = []
        for job in self.jobs:
            took = (self.measured_until if job.completed is None else job.completed) - job.asked
            alone = job.cost * speed.get(job.worker or "", mean) + UPLOAD_SECONDS
            fair = ends[job.id] - job.asked + alone
            if by_the_queue and job.started is not None:
                took = job.started - job.asked + alone
            if not job.again and (job.completed is not None or took > fair):
                found.append((job, took, fair))
        return found

    def users(self, *, by_the_queue: bool = False) -> dict[str, float]:
        """How long each user waited for all jobs together, as a multiple of the fair share."""
        took: dict[str, float] = {}
        fair: dict[str, float] = {}
        for job, seconds, share in self.shares(by_the_queue=by_the_queue):
            took[job.user] = took.get(job.user, 0.0) + seconds
            fair[job.user] = fair.get(job.user, 0.0) + share
        return {user: seconds / fair[user] for user, seconds in took.items()}


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def figure(name: str, unit: str, ours: float, *, better: str = "lower", bar: float | None = None) -> dict[str, Any]:
    rounded = round(ours, 1) if ours >= 10 else round(ours, 2)
    return {"name": name, "unit": unit, "ours": rounded, "peer": None, "peer_name": None, "bar": bar, "better": better}


def scene_figures(scene: Scene, *, with_waits: bool = True, fair: bool = True) -> list[dict[str, Any]]:
    """The same for every scene, so that they can stand side by side."""
    watched, made = scene.watched, scene.calls.made
    claims, listeners = scene.claims(), {topic: len(workers) for topic, workers in scene.fleet.listeners().items()}
    inside, whole = [claim.inside_ms for claim in claims], [claim.whole_ms for claim in claims]
    a_second = 1 / watched.seconds

    def messages(to_users: bool) -> float:
        return a_second * sum(
            number * (1 if to_users else listeners.get(topic, 0))
            for (_, topic), number in watched.events.items()
            if (topic == "user") == to_users
        )

    found: list[tuple[str, str, float, dict[str, Any]]] = [
        ("jobs finished", "1/s", len(made["finish_job"]) * a_second, {"better": "higher"}),
        ("claims", "1/s", len(claims) * a_second, {"better": "higher"}),
        ("claims that found a job", "1/s", sum(claim.full for claim in claims) * a_second, {"better": "higher"}),
        ("all calls to PostgREST", "1/s", sum(map(len, made.values())) * a_second, {}),
        ("claim in Postgres, median", "ms", quantile(inside, 0.5), {}),
        ("claim in Postgres, p95", "ms", quantile(inside, 0.95), {}),
        ("claim in Postgres, p99", "ms", quantile(inside, 0.99), {"bar": CLAIM_BAR_MS}),
        ("claim with connection and commit, median", "ms", quantile(whole, 0.5), {}),
        ("claim with connection and commit, p99", "ms", quantile(whole, 0.99), {}),
        ("finish in Postgres, p99", "ms", quantile([call.inside_ms for call in made["finish_job"]], 0.99), {}),
        ("insert in Postgres, p99", "ms", quantile([call.inside_ms for call in made["insert"]], 0.99), {}),
        ("refused for want of a connection", "", scene.calls.refused.get("504", 0), {}),
        ("Realtime, to workers", "1/s", messages(to_users=False), {}),
        ("Realtime, to users", "1/s", messages(to_users=True), {}),
        ("Realtime, progress at most", "1/s", PROGRESS_PER_SECOND * scene.painting, {}),
        ("commits", "1/s", watched.commits, {}),
        ("write-ahead log", "MB/s", watched.wal_bytes / 1e6, {}),
        ("heap-only updates", "%", watched.hot_percent, {"better": "higher"}),
        ("dead rows in jobs at the end", "", watched.dead_rows, {}),
        ("pages not in Postgres' cache", "%", watched.read_percent, {}),
        ("connections that wait for a lock", "", watched.waits.get("Lock", 0), {}),
        ("connections that wait for the log or the disk", "", watched.waits.get("LWLock", 0) + watched.waits.get("IO", 0), {}),
        ("Postgres", "cores", watched.postgres_cores, {}),
        ("Realtime's gateway", "cores", watched.gateway_cores, {}),
        ("the simulator", "cores", watched.simulator_cores, {}),
        ("load average of the machine", "", watched.load, {}),
    ]
    if with_waits and (waits := scene.waits()):
        found += [
            ("insert to claim, median", "s", quantile(waits, 0.5), {}),
            ("insert to claim, p99", "s", quantile(waits, 0.99), {}),
        ]
    if fair and (users := list(scene.users().values())):
        jobs = [seconds / share for _, seconds, share in scene.shares()]
        found += [
            ("beside the fair share, median user", "times", quantile(users, 0.5), {}),
            ("beside the fair share, 99 of 100 users", "times", quantile(users, 0.99), {}),
            ("beside the fair share, unluckiest user", "times", max(users), {"bar": FAIR_BAR}),
            ("the same by the queue alone", "times", max(scene.users(by_the_queue=True).values()), {"bar": FAIR_BAR}),
            ("beside the fair share, 99 of 100 jobs", "times", quantile(jobs, 0.99), {}),
            ("beside the fair share, unluckiest job", "times", max(jobs), {}),
        ]
    found += [(name, unit, ours, {}) for name, (ours, unit) in scene.more.items()]
    return [figure(f"{scene.name}: {name}", unit, ours, **more) for name, unit, ours, more in found]


def waiting_by_second(scene: Scene) -> list[int]:
    """How many jobs wait at each second of the scene."""
    end = max((job.completed or job.started or job.created for job in scene.jobs), default=0.0)
    return [
        sum(job.asked <= second and (job.started is None or job.started > second) for job in scene.jobs)
        for second in range(int(end) + 2)
    ]


def series(scenes: Mapping[str, Scene]) -> dict[str, dict[str, list[float]]]:
    """For the plots: percentiles of what users waited beside their fair share, by scene; and jobs waiting, by second."""
    percentiles = [place / 100 for place in range(101)]
    fair = {}
    for key, scene in scenes.items():
        if key != "saturated" and (users := list(scene.users().values())):
            fair[scene.name] = [round(quantile(users, place), 3) for place in percentiles]
    return {"fair": fair, "waiting": {scenes["burst"].name: [float(count) for count in waiting_by_second(scenes["burst"])]}}
