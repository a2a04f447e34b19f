"""`worker.py top`: the queue and the fleet, live in a terminal. It reads two views and changes nothing."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import httpx
from postgrest.exceptions import APIError
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ourvidz_sdxl.connection import connect
from ourvidz_sdxl.settings import Settings

PATIENCE_SECONDS = 5.0  # with one look at the queue, so that a Supabase that hangs does not stop the clock for long
MAX_WORKERS = 200  # that are asked for; those who live come first
OTHER_LINES = 8  # of the screen: headings, and the line at the bottom
SLOW_WAIT_SECONDS = 60.0
GAP = 2  # between columns
CUT_WIDTH = 24

Row = Mapping[str, Any]
COLOURS = {"ready": "green", "starting": "yellow", "draining": "yellow", "failed": "red", "stopped": "dim"}


@dataclass(frozen=True, kw_only=True)
class View:
    """What was seen last, and why there is nothing newer, if there is not. Times are on the monotonic clock."""

    queues: Sequence[Row] = ()
    workers: Sequence[Row] = ()
    seen_at: float | None = None
    problem: str = ""
    now: float = field(default_factory=time.monotonic)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room = (options.height or options.max_height or 50) - len(self.queues) - OTHER_LINES if options.is_terminal else MAX_WORKERS
        width = options.max_width
        yield Group(queue_table(self.queues, width), Text(), fleet_table(self.workers, max(3, room), width), self._last_line())

    def _last_line(self) -> Text:
        if not self.problem:
            return Text("Ctrl-C ends it.", style="dim")
        age = f"; what stands above is {self.now - self.seen_at:.0f} s old" if self.seen_at is not None else ""
        return Text(f"{self.problem}{age}", style="bold red")


def top(settings: Settings, *, once: bool, every_seconds: float) -> int:
    """Shows it until Ctrl-C, or once where `once` is set or nobody sits at a terminal: 1 when there was nothing to show."""
    settings = settings.model_copy(update={"request_timeout_seconds": PATIENCE_SECONDS})
    console, client = Console(highlight=False), connect(settings)

    def rows(view: str, *order: str) -> list[Row]:
        query = client.table(view).select("*").limit(MAX_WORKERS)
        for column in order:
            query = query.order(column, desc=column.startswith("is_"))
        return cast("list[Row]", query.execute().data)

    def look(before: View) -> View:
        try:
            queues = rows("queue_health", "target_worker")
            return View(queues=queues, workers=rows("fleet", "is_live", "target_worker", "id"), seen_at=time.monotonic())
        except (APIError, httpx.HTTPError) as error:
            return View(queues=before.queues, workers=before.workers, seen_at=before.seen_at, problem=in_words(error))

    view = look(View())
    if once or not console.is_terminal:
        console.print(view)
        return 1 if view.problem else 0
    ended = False

    def end(*_: object) -> None:
        nonlocal ended
        ended = True  # the exception alone may be lost: Python drops what is raised while a finaliser runs
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, end)
    try:
        with Live(view, console=console, screen=True, auto_refresh=False) as live:
            while not ended:
                live.update(view, refresh=True)
                time.sleep(every_seconds)
                view = look(view)
    except KeyboardInterrupt:
        pass
    return 0


def in_words(error: APIError | httpx.HTTPError) -> str:
    if isinstance(error, httpx.HTTPError):
        return "Supabase does not answer"
    if error.code in ("PGRST205", "42P01"):
        return "The database has no such view: run `supabase db push`"
    if error.code == "42501" or "API key" in str(error.message):
        return "This key may not read it: run `worker.py doctor`"
    return f"Supabase answers {error.code}"


@dataclass(frozen=True, kw_only=True)
class Column:
    """`rank` says which go first where the screen is narrow: the highest."""

    name: str
    rank: int
    cell: Callable[[Row], str | Text]
    right: bool = True
    cut: bool = False


def warned(text: object, style: str, when: object) -> Text:
    return Text(str(text), style=style if when else "")


def stands(row: Row) -> bool:
    return bool(row["waiting"] and not row["live_workers"])


def state_of(row: Row) -> str:
    return str(row["state"] if row["is_live"] or row["state"] in ("stopped", "failed") else "gone")


QUEUE = (
    Column(name="target", rank=0, cell=lambda row: Text(row["target_worker"], style="bold"), right=False),
    Column(name="waiting", rank=0, cell=lambda row: warned(row["waiting"], "bold red", stands(row))),
    Column(name="put off", rank=5, cell=lambda row: str(row["delayed"])),
    Column(name="running", rank=1, cell=lambda row: str(row["running"])),
    Column(name="workers", rank=0, cell=lambda row: warned(row["live_workers"], "bold red", stands(row))),
    Column(name="coming", rank=2, cell=lambda row: str(row["starting_workers"])),
    Column(
        name="oldest",
        rank=1,
        cell=lambda row: warned(
            span(row["oldest_waiting_seconds"]), "yellow", (row["oldest_waiting_seconds"] or 0) > SLOW_WAIT_SECONDS
        ),
    ),
    Column(name="wait p50", rank=7, cell=lambda row: span(row["wait_seconds_p50"])),
    Column(name="wait p95", rank=6, cell=lambda row: span(row["wait_seconds_p95"])),
    Column(name="run p50", rank=8, cell=lambda row: span(row["run_seconds_p50"])),
    Column(name="done/h", rank=4, cell=lambda row: str(row["completed_last_hour"])),
    Column(name="failed/h", rank=2, cell=lambda row: warned(row["failed_last_hour"], "red", row["failed_last_hour"])),
    Column(name="cancelled/h", rank=9, cell=lambda row: str(row["cancelled_last_hour"])),
    Column(name="RunPod", rank=3, cell=lambda row: Text(row["runpod_error"] or "", style="bold red"), right=False, cut=True),
)
FLEET = (
    Column(name="worker", rank=0, cell=lambda row: row["id"], right=False, cut=True),
    Column(name="target", rank=3, cell=lambda row: row["target_worker"], right=False),
    Column(name="state", rank=0, cell=lambda row: Text(state_of(row), style=COLOURS.get(state_of(row), "red")), right=False),
    Column(name="jobs", rank=1, cell=lambda row: str(row["running"])),
    Column(name="seen", rank=1, cell=lambda row: span(row["seen_seconds_ago"])),
    Column(name="GPU", rank=2, cell=lambda row: row["gpu"] or "CPU", right=False, cut=True),
    Column(name="model", rank=6, cell=lambda row: row["model"] or "", right=False, cut=True),
    Column(name="engine", rank=5, cell=lambda row: row["engine"] or "", right=False),
    Column(name="why not faster", rank=7, cell=lambda row: Text(row["engine_note"] or "", style="dim"), right=False, cut=True),
    Column(name="version", rank=8, cell=lambda row: row["version"], right=False),
    Column(name="last error", rank=0, cell=lambda row: Text(row["error"] or "", style="dim"), right=False, cut=True),
)


def fitted(title: str, columns: Sequence[Column], rows: Sequence[Row], width: int, more: str) -> Table:
    """As many of the columns as the width has room for; those that may be cut have CUT_WIDTH of it at least.

    `more` is the last line.
    """
    cells = {column.name: [column.cell(row) for row in rows] for column in columns}
    whole = {name: max(len(text) for text in (name, *texts)) for name, texts in cells.items()}
    least = {column.name: min(whole[column.name], CUT_WIDTH) if column.cut else whole[column.name] for column in columns}
    shown = [column for column in columns if not column.cut or column.rank == 0 or any(cells[column.name])]
    while (spare := width - sum(least[column.name] + GAP for column in shown)) < 0:
        last = max(shown, key=lambda column: column.rank)
        if not last.rank:
            break
        shown.remove(last)
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, GAP, 0, 0))
    for column in shown:
        more_width = max(0, min(spare, whole[column.name] - least[column.name]))
        spare -= more_width
        justify: Literal["left", "right"] = "right" if column.right else "left"
        fixed = least[column.name] + more_width
        table.add_column(column.name, justify=justify, no_wrap=True, overflow="ellipsis", width=fixed)
    for index, row in enumerate(rows):
        table.add_row(*(cells[column.name][index] for column in shown), style="" if row.get("is_live", True) else "dim")
    table.caption, table.caption_justify = more, "left"
    return table


def queue_table(queues: Sequence[Row], width: int) -> Table:
    return fitted("queue", QUEUE, queues, width, "" if queues else "no jobs yet")


def fleet_table(workers: Sequence[Row], room: int, width: int) -> Table:
    shown = workers if len(workers) <= room else workers[: room - 1]
    more = f"and {len(workers) - len(shown)} more" if len(shown) < len(workers) else "" if workers else "no worker yet"
    return fitted("fleet", FLEET, shown, width, more)


def span(seconds: float | None) -> str:
    """A length of time in at most four signs and a unit."""
    if seconds is None:
        return "-"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
