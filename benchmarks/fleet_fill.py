"""A database that has been in use: users, a million finished jobs with their pictures and history, a hundred thousand waiting ones.

Written by SQL alone, without triggers; vacuumed and analysed afterwards, as autovacuum would have done meanwhile.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import psycopg

QUOTA = 200  # active jobs that a user may have: private.jobs_before_insert
BACKLOG = "backlog"  # the target of the waiting jobs
SIZES = (1, 3, 6), (60, 25, 15)  # batch sizes and their weights; an assumption
TYPES = {"sdxl_image_fast": 15, "sdxl_image_high": 25}  # steps

Connection = psycopg.Connection[Any]


@dataclass(frozen=True, kw_only=True)
class Order:
    """What somebody asks for."""

    user: str
    job_type: str
    batch_size: int

    @property
    def cost(self) -> float:
        """As private.jobs_enqueue reckons it."""
        return self.batch_size * TYPES[self.job_type] / 25


def order(user: str, chance: random.Random) -> Order:
    return Order(user=user, job_type=chance.choice(list(TYPES)), batch_size=chance.choices(*SIZES)[0])


def zipf(users: Sequence[str], jobs: int, chance: random.Random) -> list[str]:
    """Whose each of `jobs` is: the n-th user has 1/n of what the first has, but nobody more than the quota; shuffled."""
    counts = [0] * len(users)
    left = min(jobs, QUOTA * len(users))
    while left:  # what the quota cuts off goes to the others, in the same manner
        open_places = [place for place, count in enumerate(counts) if count < QUOTA]
        for place in chance.choices(open_places, [1 / (1 + place) for place in open_places], k=left):
            counts[place] += counts[place] < QUOTA
        left = min(jobs, QUOTA * len(users)) - sum(counts)
    owners = [user for user, count in zip(users, counts, strict=True) for _ in range(count)]
    chance.shuffle(owners)
    return owners


def users(db: Connection, group: str, number: int) -> list[str]:
    db.execute(
        "insert into auth.users (id, email) select gen_random_uuid(), %s || n || '@fleet.example' from generate_series(1, %s) n",
        (group, number),
    )
    rows = db.execute("select id from auth.users where email like %s || '%%@fleet.example' order by id", (group,))
    return [str(user) for (user,) in rows]


def finished(db: Connection, number: int) -> None:
    """Finished jobs of all users, one picture each, three lines of history each."""
    with db.transaction():
        db.execute("set local session_replication_role = replica")
        db.execute("set local synchronous_commit = off")
        db.execute("set local maintenance_work_mem = '512MB'")
        indexes = without_indexes(db)
        db.execute(
            """
            insert into public.jobs (user_id, job_type, prompt, status, progress, attempts,
                                     created_at, started_at, completed_at, metrics)
            select u.ids[1 + n %% cardinality(u.ids)], case n %% 2 when 0 then 'sdxl_image_fast' else 'sdxl_image_high' end,
                   'a lighthouse on a cliff above a stormy sea, oil on canvas, dramatic light, number ' || n,
                   'completed', 100, 1,
                   t.at, t.at + interval '2 s', t.at + interval '9 s',
                   '{"generation_time": 6.5, "vram_usage": 9000, "i2i_mode": "text", "steps": 25}'
              from generate_series(1, %s) n, (select array_agg(id) as ids from auth.users) u,
                   lateral (select now() - interval '1 hour' - n * interval '2 s' as at) t
            """,
            (number,),
        )
        db.execute(
            """
            insert into private.leases (job_id, state, user_id, target_worker, job_type, priority, run_at, cost, fair_key,
                                        token, worker, claims)
            select j.id, 'ended', j.user_id, j.target_worker, j.job_type, j.priority, j.run_at, 1, 1,
                   gen_random_uuid(), 'worker-' || floor(1000 * random()), 1
              from public.jobs j where j.status = 'completed'
            """
        )
        db.execute(
            """
            insert into public.job_images
                   (job_id, index, bucket, path, thumbnail_path, seed, width, height, mime_type, bytes, sha256)
            select j.id, 0, j.job_type, j.user_id || '/' || j.id || '/1-0.png', j.user_id || '/' || j.id || '/1-0.thumb.webp',
                   7, 1024, 1024, 'image/png', 1400000, repeat('0', 64)
              from public.jobs j where j.status = 'completed'
            """
        )
        db.execute(
            """
            insert into public.job_events (job_id, status, attempt, worker, created_at)
            select j.id, s.status, 1, l.worker, j.created_at
              from public.jobs j join private.leases l on l.job_id = j.id,
                   unnest(array['queued', 'processing', 'completed']) s (status)
             where j.status = 'completed'
            """
        )
        for definition in indexes:
            db.execute(definition.encode())


def without_indexes(db: Connection) -> list[str]:
    """Drops those indexes of the four tables that no constraint needs: built at the end, they take less time. Returns how to."""
    rows = db.execute(
        """
        select i.indexrelid::regclass::text, pg_get_indexdef(i.indexrelid) from pg_index i
         where i.indrelid = any (array['public.jobs', 'private.leases', 'public.job_images', 'public.job_events']::regclass[])
           and not exists (select from pg_constraint c where c.conindid = i.indexrelid)
        """
    ).fetchall()
    for name, _ in rows:
        db.execute(f"drop index {name}".encode())
    return [definition for _, definition in rows]


def waiting(db: Connection, orders: Sequence[Order]) -> None:
    """The backlog: all of it asked for at once, so that each user's jobs begin, in virtual time, where the one before ends."""
    ends: dict[str, float] = {}
    with db.transaction():
        db.execute("set local session_replication_role = replica")
        ids = [str(uuid4()) for _ in orders]
        columns = "(id, user_id, target_worker, job_type, prompt, batch_size)"
        with db.cursor().copy(f"copy public.jobs {columns} from stdin".encode()) as copy:
            for id_, one in zip(ids, orders, strict=True):
                copy.write_row((id_, one.user, BACKLOG, one.job_type, "a lighthouse on a cliff", one.batch_size))
        columns = "(job_id, user_id, target_worker, job_type, priority, run_at, cost, fair_key)"
        with db.cursor().copy(f"copy private.leases {columns} from stdin".encode()) as copy:
            for id_, one in zip(ids, orders, strict=True):
                ends[one.user] = end = ends.get(one.user, 0.0) + one.cost
                copy.write_row((id_, one.user, BACKLOG, one.job_type, 100, "now", one.cost, end))


def settle(db: Connection) -> None:
    for table in ("public.jobs", "private.leases", "public.job_images", "public.job_events"):
        db.execute(f"vacuum analyze {table}".encode())
    db.execute("checkpoint")
