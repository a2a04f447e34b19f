"""What will happen in one run, drawn from its seed: which jobs are asked for and when, and what is struck, how and when.

Pure: the same seed, number of jobs and number of workers give the same schedule. What follows from it in real processes does not
repeat to the millisecond; that is why a strike waits for its victim's next claim and counts its delay from there.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Literal
from uuid import UUID

JOBS_PER_WORKER_SECOND = 1.2  # nearly all that they can do while they are being struck, so that whoever is struck has work in hand
FIRST_STRIKE_SECONDS = 2.0
LEASE_SECONDS = 10  # the smallest that a worker accepts
STALL_BEYOND_LEASE_SECONDS = (2.5, 5.0)
MAX_DELAY_SECONDS = {"claim": 0.7, "upload": 0.06}  # while most jobs are prepared and painted; while they are delivered
UPLOAD_SHARE = {"kill": 0.3, "stall": 0.6, "cut": 0.6}  # a stall in the delivery is what makes late writes
MOMENT_WAIT_SECONDS = 5.0


class Kind(StrEnum):
    """What a user asks for, by what must come of it."""

    PLAIN = "plain"
    REFERENCE = "reference"
    LARGE = "large"  # the GPU runs out of memory: painted in small pieces
    CANCELLED = "cancelled"  # its user asks to stop, at once or a moment later
    DELETED = "deleted"  # its user deletes it: while it waits or runs, or when it is over
    MISSING_REFERENCE = "missing_reference"
    INVALID = "invalid"  # fails for good at the first attempt
    UNFORESEEN = "unforeseen"  # fails at every attempt
    GPU = "gpu"  # makes the GPU unusable
    DIE = "die"  # kills its worker
    HANG = "hang"  # stops the GPU


PROMPTS = {
    Kind.LARGE: "large",
    Kind.INVALID: "raise JobInvalid",
    Kind.UNFORESEEN: "raise",
    Kind.GPU: "raise GpuUnusable",
    Kind.DIE: "die",
    Kind.HANG: "hang",
}

# out of 1,000; the rest is plain
SHARES = {
    Kind.REFERENCE: 100,
    Kind.CANCELLED: 100,
    Kind.DELETED: 100,
    Kind.LARGE: 30,
    Kind.MISSING_REFERENCE: 20,
    Kind.INVALID: 20,
    Kind.UNFORESEEN: 10,
}


@dataclass(frozen=True, kw_only=True)
class Wish:
    """One job of one user. `key` makes the insert safe to repeat by an idempotency key, else the id that the user chooses does."""

    number: int
    at_seconds: float
    user: int
    kind: Kind
    id: UUID
    key: str | None
    job_type: str
    batch_size: int
    steps: int
    end_after_seconds: float | None  # until its user cancels or deletes it


class Fault(StrEnum):
    KILL_CHILD = "kill_child"
    KILL_SUPERVISOR = "kill_supervisor"  # its worker lives on and drains
    KILL_POD = "kill_pod"  # both at once: nobody is left to give anything back
    STALL_CHILD = "stall_child"
    STALL_POD = "stall_pod"
    CUT_OFF = "cut_off"  # from the network; what it said meanwhile arrives when its lease is over
    STOP_POSTGRES = "stop_postgres"  # orderly, with SIGINT
    CRASH_POSTGRES = "crash_postgres"

    @property
    def kills(self) -> bool:
        return self in {Fault.KILL_CHILD, Fault.KILL_SUPERVISOR, Fault.KILL_POD}

    @property
    def stalls(self) -> bool:
        return self in {Fault.STALL_CHILD, Fault.STALL_POD}


@dataclass(frozen=True, kw_only=True)
class Strike:
    """At `at_seconds` wait for the victim's next claim or upload, and strike `delay_seconds` after it. Postgres at once."""

    number: int
    at_seconds: float
    fault: Fault
    victim: int | None = None
    moment: Literal["claim", "upload"] = "claim"
    delay_seconds: float = 0.0
    stall_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Schedule:
    seed: int
    workers: int
    users: int
    wishes: tuple[Wish, ...]
    strikes: tuple[Strike, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def draw(seed: int, jobs: int, workers: int, users: int = 8) -> Schedule:
    """For 1,500 jobs: 48 kills, 14 stalls, 7 cuts and 4 restarts of Postgres; always at least three, one, none and one."""
    dice = random.Random(f"chaos {seed} {jobs} {workers}")
    seconds = jobs / (JOBS_PER_WORKER_SECOND * workers)
    wishes = _wishes(dice, jobs, seconds, users)
    strikes = _strikes(
        dice,
        seconds,
        workers,
        kills=max(3, round(jobs * 0.032)),
        stalls=max(1, round(jobs * 0.009)),
        cuts=jobs // 200,
        restarts=max(1, jobs // 375),
    )
    return Schedule(seed=seed, workers=workers, users=users, wishes=wishes, strikes=strikes)


def _wishes(dice: random.Random, jobs: int, seconds: float, users: int) -> tuple[Wish, ...]:
    planted = [Kind.DIE] * max(1, jobs // 400) + [Kind.GPU] * max(1, jobs // 500) + [Kind.HANG] * (jobs // 700)
    kinds = list(Kind)
    weights = [SHARES.get(kind, 0) for kind in kinds]
    weights[kinds.index(Kind.PLAIN)] = 1000 - sum(weights)
    drawn = planted + dice.choices(kinds, weights, k=jobs - len(planted))
    dice.shuffle(drawn)
    wishes = []
    for number, (kind, at) in enumerate(zip(drawn, sorted(dice.uniform(0, seconds) for _ in drawn), strict=True)):
        wishes.append(
            Wish(
                number=number,
                at_seconds=round(at, 3),
                user=dice.randrange(users),
                kind=kind,
                id=UUID(int=dice.getrandbits(128), version=4),
                key=f"wish {number}" if dice.random() < 0.5 else None,
                job_type=dice.choice(["sdxl_image_fast", "sdxl_image_high"]),
                batch_size=dice.choice([1, 1, 3]),
                steps=dice.randint(2, 10),
                end_after_seconds=_end_after(dice, kind),
            )
        )
    return tuple(wishes)


def _end_after(dice: random.Random, kind: Kind) -> float | None:
    if kind is Kind.CANCELLED:
        return round(dice.choice([0.0, dice.uniform(0, 1.5)]), 3)
    # most wait for long beside so many others, and are to be met while they run and when they are over, too
    return round(dice.choice([0.0, dice.uniform(0, 10), dice.uniform(10, 120)]), 3) if kind is Kind.DELETED else None


def _strikes(
    dice: random.Random, seconds: float, workers: int, *, kills: int, stalls: int, cuts: int, restarts: int
) -> tuple[Strike, ...]:
    """A worker that stands still is left alone until it runs again, so that each stall outlives its lease."""
    moments = [(_spread(dice, i, stalls, seconds), "stall") for i in range(stalls)]
    moments += [(_spread(dice, i, kills, seconds), "kill") for i in range(kills)]
    moments += [(_spread(dice, i, cuts, seconds), "cut") for i in range(cuts)]
    moments += [(_spread(dice, i, restarts, seconds), "restart") for i in range(restarts)]
    strikes: list[Strike] = []
    free_at = [0.0] * workers
    for at, what in sorted(moments):
        if what == "restart":
            fault = Fault.STOP_POSTGRES if sum(strike.victim is None for strike in strikes) % 2 else Fault.CRASH_POSTGRES
            strikes.append(Strike(number=len(strikes), at_seconds=at, fault=fault))
            continue
        victim = dice.choice([worker for worker in range(workers) if free_at[worker] <= at] or [free_at.index(min(free_at))])
        at = max(at, free_at[victim])
        moment: Literal["claim", "upload"] = "upload" if dice.random() < UPLOAD_SHARE[what] else "claim"
        delay = round(dice.uniform(0, MAX_DELAY_SECONDS[moment]), 3)
        stall_seconds = 0.0
        if what in ("stall", "cut"):
            fault = Fault.CUT_OFF if what == "cut" else dice.choice([Fault.STALL_CHILD, Fault.STALL_CHILD, Fault.STALL_POD])
            stall_seconds = round(LEASE_SECONDS + dice.uniform(*STALL_BEYOND_LEASE_SECONDS), 3)
        else:
            fault = dice.choices([Fault.KILL_CHILD, Fault.KILL_SUPERVISOR, Fault.KILL_POD], [6, 2, 2])[0]
        free_at[victim] = at + MOMENT_WAIT_SECONDS + delay + stall_seconds + 1
        strikes.append(
            Strike(
                number=len(strikes),
                at_seconds=round(at, 3),
                fault=fault,
                victim=victim,
                moment=moment,
                delay_seconds=delay,
                stall_seconds=stall_seconds,
            )
        )
    return tuple(sorted(strikes, key=lambda strike: strike.at_seconds))


def _spread(dice: random.Random, i: int, n: int, seconds: float) -> float:
    return round(FIRST_STRIKE_SECONDS + (i + dice.random()) / n * max(1.0, seconds - FIRST_STRIKE_SECONDS), 3)
