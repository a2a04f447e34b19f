"""How long each job took, beside the fair share: when it would have been done if the fleet were one machine that all users who
have work share equally, at every moment (generalised processor sharing).

That machine cannot be built, since a picture is not painted by a thousand GPUs at once; it is what self-clocked fair queueing
approximates (Golestani, 1994). So the fair share of a job is that machine's time plus what the job takes on its own GPU.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """A job that somebody asked for, in seconds from the beginning."""

    job: str
    user: str
    at: float
    cost: float


def fair_ends(arrivals: Sequence[Arrival], capacity: float) -> dict[str, float]:
    """When each job would be done by the machine that is shared equally; `capacity` is its cost a second.

    Virtual time is what each user with work has received since the beginning: it passes at capacity / users.
    """
    marks: list[tuple[float, float]] = [(0.0, 0.0)]  # of virtual and real time, where the rate changes
    last: dict[str, float] = {}  # where each user's work ends, in virtual time
    busy: list[tuple[float, str]] = []
    ends: dict[str, float] = {}
    users = 0

    def advance(until: float | None) -> None:
        nonlocal users
        while busy:
            virtual, real = marks[-1]
            end, user = busy[0]
            if last[user] > end:  # more came in the meantime
                heapq.heapreplace(busy, (last[user], user))
                continue
            reached = real + (end - virtual) * users / capacity
            if until is not None and reached > until:
                marks.append((virtual + (until - real) * capacity / users, until))
                return
            marks.append((end, reached))
            heapq.heappop(busy)
            del last[user]
            users -= 1
        if until is not None:
            marks.append((marks[-1][0], until))

    for arrival in sorted(arrivals, key=lambda one: one.at):
        if arrival.at > marks[-1][1]:
            advance(arrival.at)
        virtual = marks[-1][0]
        if arrival.user not in last:
            users += 1
            heapq.heappush(busy, (virtual + arrival.cost, arrival.user))
        last[arrival.user] = ends[arrival.job] = max(virtual, last.get(arrival.user, 0.0)) + arrival.cost
    advance(None)
    virtuals = [virtual for virtual, _ in marks]
    return {job: real_time(marks, virtuals, end) for job, end in ends.items()}


def real_time(marks: Sequence[tuple[float, float]], virtuals: Sequence[float], virtual: float) -> float:
    after = min(bisect_left(virtuals, virtual - 1e-9), len(marks) - 1)
    (v0, t0), (v1, t1) = marks[max(0, after - 1)], marks[after]
    return t1 if v1 <= v0 else t0 + (t1 - t0) * min(1.0, (virtual - v0) / (v1 - v0))
