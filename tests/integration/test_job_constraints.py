"""The worker's own bounds on a job, held against the database's constraints on generated rows."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql
from psycopg.types.json import Jsonb

from ourvidz_sdxl.errors import JobInvalid
from ourvidz_sdxl.job import Job, JobType, OutputFormat, Scheduler
from ourvidz_sdxl.prompts import is_blank
from tests.integration.conftest import Database

USER = "22222222-2222-4222-8222-222222222222"
OTHER = "33333333-3333-4333-8333-333333333333"
GOOD = {
    "id": "11111111-1111-4111-8111-111111111111",
    "user_id": USER,
    "job_type": "sdxl_image_fast",
    "claims": 1,
    "prompt": "a cat",
    "negative_prompt": "",
    "batch_size": 1,
    "output_format": "png",
    "exact_copy_mode": False,
    "enhance_prompt": False,
    "fallback_to_text": False,
    "metadata": {},
}


def near(*edges: int) -> st.SearchStrategy[int]:
    return st.sampled_from(edges).flatmap(lambda edge: st.integers(edge - 1, edge + 1)) | st.sampled_from(edges)


NAMES = ["cat.png", "a%00.png", "a%ff.png", "%2e%2e/x.png", "..", "../x", ".", "a/./b", "a//b", "", "a/", "a b&$=@;:+,?-!*'().png"]
NAMES += ["a\n", "a\nb", "a\tb", "é.png", "a\\b", "a#b", "a|b", "...", "a..b/c", " ", "a\u00a0b", "x" * 980, "x" * 990]
PATHS = st.tuples(
    st.sampled_from(["", "", "reference_images/", "sdxl_image_fast/", "sdxl_image_high/", "secrets/", "/"]),
    st.sampled_from([USER, USER, OTHER, USER.upper(), USER[:-1], ""]),
    st.sampled_from(["/", "/", "//", ""]),
    st.sampled_from(NAMES) | st.text("ab/.%é \n", max_size=6),
).map("".join)
AUTHORITIES = ["a.test", "A.TEST", "bücher.test", "a.test:443", "a.test:4430", "a.test:80", "a.test:", "u@a.test", "u:p@a.test:443"]
AUTHORITIES += ["[::1]", "[::1]:443", "[::1]:8443", "[::1", "", "@", ":443", "a\\@b", "a.test%40b", "1.2.3.4"]
URLS = st.tuples(
    st.sampled_from(["https://", "https://", "https://", "http://", "HTTPS://", " https://", "https:/", "ftp://", ""]),
    st.sampled_from(AUTHORITIES),
    st.sampled_from(["", "/x.png", "?a=b", "#f", "/@", "/:80", "\\@b:80", "/a b", "/a\n", "/\x7f", "/\u0085", "/\u00a0", "/\u3000"])
    | st.sampled_from(["/é", "/\u200b", "/%20", "/" + "x" * 2030, "/" + "x" * 2050])
    | st.text(max_size=5).filter(lambda text: "\0" not in text and text.isprintable()),
).map("".join)
BLANKS = ["", " ", "\t\r\n", "\u00a0\u3000", "\u200b", "\ufeff\u2800", "\x1f\x85", "\u200b.", "\U000e0041"]
COLUMNS: dict[str, st.SearchStrategy[Any]] = {
    "job_type": st.sampled_from([*JobType, "video"]),
    "prompt": st.sampled_from(BLANKS) | st.sampled_from(["x" * 4000, "x" * 4001, "🎨" * 4000]),
    "negative_prompt": st.sampled_from(["", "x" * 4000, "x" * 4001]),
    "batch_size": near(1, 3, 6),
    "width": near(64, 128, 1000, 1024, 1344, 2048) | st.integers(0, 40).map(lambda n: 64 * n),
    "height": near(64, 128, 768, 1024, 1536, 2048) | st.integers(0, 40).map(lambda n: 64 * n),
    "steps": near(1, 50, 100) | st.integers(1, 100),
    "guidance_scale": st.floats(-1, 31) | near(0, 30),
    "seed": near(0, 2**31 - 1),
    "scheduler": st.sampled_from([*Scheduler, "plms"]),
    "output_format": st.sampled_from([*OutputFormat, "gif"]),
    "reference_image_url": URLS,
    "reference_image_path": PATHS,
    "reference_strength": st.floats(-0.5, 1.5) | near(0, 1),
    "exact_copy_mode": st.booleans(),
    "metadata": st.fixed_dictionaries(
        {},
        optional={
            "fit": st.sampled_from(["cover", "contain", "stretch", "Cover", None, 1]),
            "private_metadata": st.sampled_from([True, False, "yes", "true", 1, None]),
            "note": st.text(max_size=5).filter(lambda text: "\0" not in text),
        },
    )
    | st.sampled_from([[], "text", 1]),
}
ROWS = st.lists(st.sampled_from(sorted(COLUMNS)), max_size=5, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: st.none() | COLUMNS[name] for name in names}).map(lambda some: GOOD | some)
)
COUNTED_BY_THE_QUEUE = {"claims", "attempts", "max_attempts"}  # columns that no client may write
SIZE_AND_REFERENCE = ["width", "height", "reference_image_url", "reference_image_path", "reference_strength", "exact_copy_mode"]
SCHEDULE = ["scheduler", "steps"]
TOGETHER = [
    st.fixed_dictionaries({}, optional={name: COLUMNS[name] for name in names}).map(lambda some: GOOD | some)
    for names in (SIZE_AND_REFERENCE, SCHEDULE)
]
ALONE = st.sampled_from(sorted(COLUMNS)).flatmap(lambda name: COLUMNS[name].map(lambda value: GOOD | {name: value}))


def constraints(db: Database) -> dict[str, str]:
    """Name and rule of each constraint that speaks of nothing but columns that the worker reads; NOT NULL, too."""
    rows = db.execute(
        """select c.conname as name, pg_get_expr(c.conbin, c.conrelid) as rule
             from pg_constraint c join pg_attribute a on a.attrelid = c.conrelid and a.attnum = any (c.conkey)
            where c.conrelid = 'public.jobs'::regclass and c.contype = 'c'
            group by c.oid having array_agg(a.attname::text) <@ %(read)s
            union select attname, attname || ' is not null' from pg_attribute
            where attrelid = 'public.jobs'::regclass and attnotnull and attname = any (%(read)s)""",
        {"read": [name for name in Job.model_fields if name not in COUNTED_BY_THE_QUEUE]},
    )
    return {row["name"]: row["rule"] for row in rows}


def test_the_worker_refuses_the_jobs_that_the_database_refuses_and_no_others(db: Database) -> None:
    rules = constraints(db)
    assert len(rules) >= 30
    names = sql.SQL(", ").join(
        sql.SQL("case when not ({}) then {} end").format(sql.SQL(rule.replace("%", "%%")), name) for name, rule in rules.items()
    )
    broken = sql.SQL("select array_remove(array[{}], null) as names from jsonb_populate_record(null::public.jobs, %s)").format(
        names
    )
    met: set[str] = set()

    @settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True)
    @given(st.one_of(ROWS, ALONE, *TOGETHER))
    def compare(row: dict[str, Any]) -> None:
        answer = db.execute(broken, [Jsonb(row)], prepare=True).fetchone()
        assert answer
        met.update(answer["names"])
        with pytest.raises(JobInvalid) if answer["names"] else nullcontext():
            Job.from_row(row)

    compare()
    assert rules.keys() - met == {"id", "user_id", "enhance_prompt", "fallback_to_text"} & rules.keys()  # never absent


def test_the_same_characters_are_blank_in_the_worker_and_in_the_database(db: Database) -> None:
    rule = constraints(db)["prompt_is_required_unless_exact_copy_mode"]
    blank = db.execute(
        sql.SQL(
            """select code from (select code, chr(code) as prompt, false as exact_copy_mode from generate_series(1, 1114111) code
                                  where code not between 55296 and 57343) each where not ({})"""
        ).format(sql.SQL(rule))
    )
    codes = {row["code"] for row in blank}
    assert len(codes) > 4000
    assert codes == {code for code in (*range(1, 0xD800), *range(0xE000, 0x110000)) if is_blank(chr(code))}
