"""The figures keep Prometheus' rules, tell nobody's secrets by their labels, and are all in docs/observability.md."""

from __future__ import annotations

import inspect
import os
import re
from itertools import pairwise
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from ourvidz_sdxl import errors, metrics
from ourvidz_sdxl.exporter import DATABASE_UP
from ourvidz_sdxl.host_probes import HostProbes
from ourvidz_sdxl.local import ROOT
from ourvidz_sdxl.metrics import REGISTRY, Stage, Wake
from ourvidz_sdxl.queue_figures import FAMILIES

PAGE = ROOT / "docs" / "observability.md"
BEGIN, END = "<!-- metrics: `make metrics-table` writes them -->\n", "<!-- metrics end -->"
UNITS = ("_seconds", "_bytes", "_total", "_jobs", "_workers", "_connected", "_ready", "_up", "_info")
LABELS = {  # every label there may be, and what bounds its values
    "job_type": "two",
    "outcome": "seven",
    "error_code": "the error tree",
    "code": "four",
    "event": "three",
    "stage": "eight",
    "batch_size": "1, 3 and 6",
    "i2i_mode": "three",
    "lane": "three",
    "source": "seven",
    "call": "eight",
    "reason": "unavailable, refused; died, silent, gpu_hung",
    "gpu": "GPUs of the host",
    "target_worker": "the worker's own; of the exporter, 100",
    "worker": "one a process",
    "version": "one a process",
    "model": "one a process",
    "model_hash": "one a process",
    "gpu_name": "one a process",
    "engine": "one a process",
}


def figures() -> list[tuple[str, str, tuple[str, ...], str]]:
    """Name, kind, labels and help of each figure of ours, as a host or the exporter exports it."""
    found: list[tuple[str, str, tuple[str, ...], str]] = []
    found += [(name, "gauge", ("target_worker",), text) for name, text in FAMILIES.values()]
    found.append((DATABASE_UP[0], "gauge", (), DATABASE_UP[1]))
    registries: list[tuple[CollectorRegistry, tuple[str, ...]]] = [(HostProbes([])._registry, ()), (REGISTRY, ("gpu",))]
    for registry, added in registries:
        for metric in registry._collector_to_names:
            if name := getattr(metric, "_name", ""):
                kind: str = metric._type  # type: ignore[attr-defined]
                labels: tuple[str, ...] = metric._labelnames  # type: ignore[attr-defined]
                suffix = "_total" if kind == "counter" else ""
                found.append((name + suffix, kind, added + labels, metric._documentation))  # type: ignore[attr-defined]
    return found


def table() -> str:
    lines = ["| figure | kind | labels | what it says |", "|---|---|---|---|"]
    lines += [f"| `{name}` | {kind} | {', '.join(labels)} | {text} |" for name, kind, labels, text in figures()]
    return "\n".join(lines) + "\n"


def test_the_page_lists_every_figure() -> None:
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    written, after = rest.split(END)
    if os.environ.get("WRITE_METRICS_TABLE"):
        PAGE.write_text(before + BEGIN + table() + END + after)
        return
    assert written == table(), "make metrics-table"


@pytest.mark.parametrize(("name", "kind", "labels", "text"), figures(), ids=[name for name, *_ in figures()])
def test_a_figure_keeps_the_rules(name: str, kind: str, labels: tuple[str, ...], text: str) -> None:
    assert re.fullmatch(r"sdxl_[a-z0-9_]+", name)
    assert name.endswith(UNITS), "a unit, or what is counted, at its end"
    assert (kind == "counter") == name.endswith("_total")
    assert {*labels} <= LABELS.keys(), "a new label needs a bound"
    assert text.endswith(".")


def test_histograms_can_tell_what_an_h100_and_a_cpu_need() -> None:
    for metric in (metrics.STAGE, metrics.GENERATION_TIME):
        bounds = metric._upper_bounds
        assert bounds[0] <= 0.005
        assert bounds[-2] >= 60
        assert all(later / earlier <= 2.5 for earlier, later in pairwise(bounds[:-1]))


def test_the_owners_performance_metrics_are_there() -> None:
    """worker, job_type, generation_time, batch_size, i2i_mode, vram_usage, timestamp: the last is Prometheus' own."""
    by_name = {name: labels for name, _, labels, _ in figures()}
    assert by_name["sdxl_generation_time_seconds"] == ("gpu", "job_type", "batch_size", "i2i_mode")
    assert "sdxl_vram_usage_bytes" in by_name
    assert "worker" in by_name["sdxl_worker_info"]


def test_outcomes_and_codes_are_few() -> None:
    codes = {kind.code for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.WorkerError)}
    assert len(codes) < 25
    assert len(Stage) == 8
    assert len(Wake) == 7


def test_what_did_not_happen_yet_is_zero_and_not_absent() -> None:
    fresh: Any = metrics.render()
    for stage in Stage:
        assert f'sdxl_stage_seconds_count{{stage="{stage}"}}' in fresh
    for event in ("generation_error", "slow_generation", "low_i2i_similarity"):
        assert f'sdxl_quality_events_total{{event="{event}"}}' in fresh
