"""The Grafana dashboard and the alerts ask only for what workers and the exporter export, and Grafana can read the dashboard."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml  # type: ignore[import-untyped]
from prometheus_client import CollectorRegistry

from ourvidz_sdxl.exporter import DATABASE_UP
from ourvidz_sdxl.host_probes import HostProbes
from ourvidz_sdxl.local import ROOT
from ourvidz_sdxl.metrics import REGISTRY
from ourvidz_sdxl.queue_figures import FAMILIES
from tools.draw_observed import FOLDER, rows, stamp
from tools.observed import OBSERVED, expressions, without_variables

DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy" / "grafana" / "dashboard.json").read_text())
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yml"
RULES = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
PROMETHEUS_OWN = {"instance", "job"}
GENERAL = {"process_resident_memory_bytes": {"gpu"}}  # of prometheus_client, for every process


def exported() -> dict[str, set[str]]:
    """Every series that a host or the exporter exports, with its labels."""
    series = {name: {"target_worker"} for name, _ in FAMILIES.values()} | GENERAL | {DATABASE_UP[0]: set()}
    registries: list[tuple[CollectorRegistry, set[str]]] = [(REGISTRY, {"gpu"}), (HostProbes([])._registry, set())]
    for registry, added in registries:
        for metric in list(registry._collector_to_names):
            labels = {*getattr(metric, "_labelnames", ())} | added
            kind, name = getattr(metric, "_type", ""), getattr(metric, "_name", "")
            suffixes = {"histogram": ("_bucket", "_count", "_sum"), "counter": ("_total",), "gauge": ("",)}.get(kind, ())
            series |= {f"{name}{suffix}": labels | ({"le"} if suffix == "_bucket" else set()) for suffix in suffixes}
    return series


def walk(expression: Any) -> Iterator[Any]:
    yield expression
    for name in ("expr", "lhs", "rhs", "param", "vector_selector"):
        if (below := getattr(expression, name, None)) is not None:
            yield from walk(below)
    for argument in getattr(expression, "args", ()):
        yield from walk(argument)


def strangers(text: str, series: Mapping[str, set[str]]) -> list[str]:
    """What the expression asks for and nobody exports: metrics, and labels that none of its metrics has."""
    nodes = list(walk(promql_parser.parse(without_variables(text))))
    names = {node.name for node in nodes if isinstance(node, promql_parser.VectorSelector)}
    unknown = [name or "" for name in names if name not in series]
    labels = set[str]()
    for node in nodes:
        if isinstance(node, promql_parser.VectorSelector):
            labels |= {matcher.name for matcher in node.matchers.matchers}
        modifier = getattr(node, "modifier", None)
        labels |= {*(getattr(modifier, "labels", None) or ())}
    known = PROMETHEUS_OWN.union(*(series.get(name or "", set()) for name in names))
    return unknown + sorted(labels - known)


ASKED = [(f"{title}: {expression}", expression) for title, expression, _ in expressions(DASHBOARD)]
ASKED += [(f"{rule['alert']}: {rule['expr']}", rule["expr"]) for rule in RULES]


@pytest.mark.parametrize("expression", [expression for _, expression in ASKED], ids=[name[:60] for name, _ in ASKED])
def test_each_expression_asks_for_what_there_is(expression: str) -> None:
    assert strangers(expression, exported()) == []


@pytest.mark.parametrize(
    ("expression", "found"),
    [
        ("rate(sdxl_images_totals[5m])", ["sdxl_images_totals"]),
        ('sum by (colour) (rate(sdxl_images_total{job_type="x"}[5m]))', ["colour"]),
        ("histogram_quantile(0.5, sum by (le) (rate(sdxl_step_seconds[5m])))", ["sdxl_step_seconds", "le"]),
    ],
)
def test_an_expression_that_asks_for_something_else_is_found(expression: str, found: list[str]) -> None:
    assert strangers(expression, exported()) == found


def test_every_figure_of_ours_is_on_the_dashboard() -> None:
    asked = " ".join(expression for _, expression in ASKED)
    ours = {re.sub("_(bucket|sum|count)$", "", name) for name in exported() if name.startswith("sdxl_")}
    # what is running in all is the sum of what the lanes show
    assert {name for name in ours if name not in asked} == {"sdxl_queue_running_jobs"}


def test_grafana_finds_what_its_schema_needs() -> None:
    assert DASHBOARD["schemaVersion"] >= 36
    assert DASHBOARD["uid"]
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert variables == {"datasource", "instance"}
    for panel in PANELS:
        assert panel["description"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert [target["refId"] for target in panel["targets"]] == [*"ABC"[: len(panel["targets"])]]
        assert all(target["datasource"] == panel["datasource"] and target["expr"] for target in panel["targets"])
        assert panel["fieldConfig"]["defaults"]["unit"]
    assert [title for title, _ in rows(DASHBOARD)] == ["Queue", "Fleet", "Speed", "Failures", "GPU"]


def test_panels_lie_side_by_side_and_not_on_each_other() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        for place in ((x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])):
            assert taken.setdefault(place, panel["title"]) == panel["title"]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"]["summary"].endswith(".")
    for path in (word.strip(";,.") for word in rule["annotations"]["description"].split() if word.startswith("supabase/")):
        assert (ROOT / path).exists() or (ROOT / f"{path}.sql").exists() or Path(path).suffix == ".sql"


def test_what_was_observed_is_of_this_dashboard() -> None:
    observed = json.loads(OBSERVED.read_text())
    asked = [(title, legend) for title, _, legend in expressions(DASHBOARD)]
    assert [(answer["panel"], answer["legend"]) for answer in observed["answers"]] == asked, "make dashboard"
    seen = {answer["panel"] for answer in observed["answers"] if answer["series"]}
    assert {panel["title"] for panel in PANELS} == seen, "a panel that showed nothing shows nothing of itself"


@pytest.mark.parametrize("name", ["queue", "fleet", "speed", "failures", "gpu", "trace"])
def test_the_pictures_are_of_what_was_observed(name: str) -> None:
    picture = (FOLDER / f"{name}.svg").read_text()
    assert stamp(OBSERVED.read_bytes()) in picture, "make dashboard"
    for panel in {title.lower(): panels for title, panels in rows(DASHBOARD)}.get(name, []):
        assert panel["title"] in picture
