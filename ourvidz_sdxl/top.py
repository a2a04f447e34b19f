"""`worker.py top`: the queue and the fleet, live in a terminal. It reads two views and changes nothing."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

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
        yield Group(queue_table(self.queues), Text(), fleet_table(self.workers, max(3, room)), self._last_line())

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


def queue_table(queues: Sequence[Row]) -> Table:
    table = Table(title="queue", title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("target", style="bold")
    times = ("oldest", "wait p50", "wait p95", "run p50")
    for name in ("waiting", "put off", "running", "workers", "coming", *times, "done/h", "failed/h", "cancelled/h"):
        table.add_column(name, justify="right")
    table.add_column("RunPod", no_wrap=True, overflow="ellipsis", style="bold red")
    for row in queues:
        oldest = row["oldest_waiting_seconds"]
        stands = row["waiting"] and not row["live_workers"]
        table.add_row(
            row["target_worker"],
            Text(str(row["waiting"]), style="bold red" if stands else ""),
            str(row["delayed"]),
            str(row["running"]),
            Text(str(row["live_workers"]), style="bold red" if stands else ""),
            str(row["starting_workers"]),
            Text(span(oldest), style="yellow" if (oldest or 0) > SLOW_WAIT_SECONDS else ""),
            span(row["wait_seconds_p50"]),
            span(row["wait_seconds_p95"]),
            span(row["run_seconds_p50"]),
            str(row["completed_last_hour"]),
            Text(str(row["failed_last_hour"]), style="red" if row["failed_last_hour"] else ""),
            str(row["cancelled_last_hour"]),
            row["runpod_error"] or "",
        )
    if not queues:
        table.add_row(Text("no jobs yet", style="dim"))
    return table


def fleet_table(workers: Sequence[Row], room: int) -> Table:
    table = Table(title="fleet", title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("worker", "target", "state", "jobs", "seen", "GPU", "model", "version", "last error"):
        table.add_column(name, justify="right" if name in ("jobs", "seen") else "left", no_wrap=True, overflow="ellipsis")
    shown = workers if len(workers) <= room else workers[: room - 1]
    for row in shown:
        state = row["state"] if row["is_live"] or row["state"] in ("stopped", "failed") else "gone"
        table.add_row(
            row["id"],
            row["target_worker"],
            Text(state, style=COLOURS.get(state, "red")),
            str(row["running"]),
            span(row["seen_seconds_ago"]),
            row["gpu"] or "CPU",
            row["model"] or "",
            row["version"],
            Text(row["error"] or "", style="dim"),
            style="" if row["is_live"] else "dim",
        )
    if len(shown) < len(workers):
        table.add_row(Text(f"and {len(workers) - len(shown)} more", style="dim"))
    if not workers:
        table.add_row(Text("no worker yet", style="dim"))
    return table


def span(seconds: float | None) -> str:
    """A length of time in at most four signs and a unit."""
    if seconds is None:
        return "-"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
