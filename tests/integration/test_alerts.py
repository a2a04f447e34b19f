"""The alerts of deploy/prometheus, as Prometheus reads and evaluates them: `promtool check` and `promtool test rules`."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from ourvidz_sdxl.local import ROOT
from tests.pace import TIMEOUT_SECONDS
from tools.promtool import promtool

FOLDER = ROOT / "deploy" / "prometheus"
GROUPS = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
ALERTS: list[str] = [rule["alert"] for group in GROUPS for rule in group["rules"]]
WITH_TIME: list[str] = [rule["alert"] for group in GROUPS for rule in group["rules"] if "for" in rule]
CASES: list[dict[str, Any]] = yaml.safe_load((FOLDER / "alerts.test.yml").read_text())["tests"]

needs_promtool = pytest.mark.skipif(
    promtool() is None, reason="promtool is missing: `python -m tools.promtool` fetches it, on Debian as root"
)


def run_promtool(*arguments: str, folder: Path = FOLDER) -> subprocess.CompletedProcess[str]:
    program = promtool()
    assert program
    return subprocess.run([program, *arguments], cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)


def without_a_case(alerts: Sequence[str], cases: Sequence[Mapping[str, Any]]) -> list[str]:
    """Alerts that lack a case of their own in which they fire, or one in which they do not."""

    def expected(alert: str, prefix: str) -> list[bool]:
        own = [case for case in cases if case["name"].startswith(prefix)]
        tests = [test for case in own for test in case["alert_rule_test"] if test["alertname"] == alert]
        return [bool(test["exp_alerts"]) for test in tests]

    return [
        alert for alert in alerts if not any(expected(alert, f"{alert}: ")) or set(expected(alert, f"{alert}, not: ")) != {False}
    ]


@needs_promtool
def test_prometheus_takes_the_configuration_and_the_rules() -> None:
    for arguments in (["check", "rules", "alerts.yml"], ["check", "config", "prometheus.yml"]):
        done = run_promtool(*arguments)
        assert done.returncode == 0, done.stderr


@needs_promtool
def test_each_alert_fires_when_it_should_and_only_then() -> None:
    done = run_promtool("test", "rules", "alerts.test.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_its_cases() -> None:
    assert len(ALERTS) == len(set(ALERTS))
    assert without_a_case(ALERTS, CASES) == []


def test_an_alert_without_its_cases_is_found() -> None:
    assert without_a_case([*ALERTS, "New"], CASES) == ["New"]
    fires = {"name": "New: x", "alert_rule_test": [{"alertname": "New", "exp_alerts": [{}]}]}
    silent = {"name": "New, not: x", "alert_rule_test": [{"alertname": "New", "exp_alerts": []}]}
    assert without_a_case(["New"], [fires]) == without_a_case(["New"], [silent]) == ["New"]
    assert without_a_case(["New"], [fires, silent]) == []
    of_another = {"name": "Other: x", "alert_rule_test": fires["alert_rule_test"]}
    assert without_a_case(["New"], [of_another, silent]) == ["New"], "a case of its own"


def spoilt(folder: Path, alert: str, change: Mapping[str, Any]) -> subprocess.CompletedProcess[str]:
    """The cases, performed on rules in which this alert is another."""
    groups = [group | {"rules": [rule | change if rule["alert"] == alert else rule for rule in group["rules"]]} for group in GROUPS]
    (folder / "alerts.yml").write_text(yaml.safe_dump({"groups": groups}))
    shutil.copy(FOLDER / "alerts.test.yml", folder)
    return run_promtool("test", "rules", "alerts.test.yml", folder=folder)


@needs_promtool
@pytest.mark.parametrize("alert", ALERTS)
def test_the_cases_notice_an_alert_that_never_fires_or_has_other_labels(alert: str, tmp_path: Path) -> None:
    for change in ({"expr": "vector(0) > 0"}, {"labels": {"severity": "none"}}):
        done = spoilt(tmp_path, alert, change)
        assert done.returncode == 1
        assert f"alertname: {alert}," in done.stdout + done.stderr


@needs_promtool
@pytest.mark.parametrize("alert", WITH_TIME)
def test_the_cases_notice_an_alert_that_does_not_wait(alert: str, tmp_path: Path) -> None:
    done = spoilt(tmp_path, alert, {"for": "0s"})
    assert done.returncode == 1
    assert f"alertname: {alert}," in done.stdout + done.stderr
