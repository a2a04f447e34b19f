"""Known vulnerabilities of what we install, as a gate: `python -m tools.audit`, part of `make check`.

pip-audit asks OSV about the packages of this environment, and `npm audit` asks the npm registry about those of supabase/local. A
finding fails. An audit that cannot be made, for want of a network or of a registry that answers it, is told as such and does not
fail, so that one can work without either; AUDIT_REQUIRED=1 makes it fail, for machines that are known to have both.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import distributions
from typing import Any

from ourvidz_sdxl.local import ROOT, node

TIMEOUT_SECONDS = 120

# Advisories that were looked at and do not concern us, each with the reason: {"GHSA-…": "why"}.
ACCEPTED: dict[str, str] = {}


class AuditNotMade(Exception):
    """The audit could not be made, and why."""


@dataclass(frozen=True, kw_only=True)
class Audit:
    packages: int
    findings: Sequence[str]


def audit_python(environ: Mapping[str, str]) -> Audit:
    """By OSV, or by AUDIT_OSV_URL. PyPI's own service will not do: what a mirror does not know counts as sound there."""
    # pip is no dependency: it comes with Python, and only installs. Advisories do not know builds such as 2.13.0+cpu.
    packages = sorted(f"{d.name}=={d.version.partition('+')[0]}" for d in distributions() if d.name != "pip")
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as requirements:
        requirements.write("\n".join(packages))
        requirements.flush()
        command = [sys.executable, "-m", "pip_audit", "--requirement", requirements.name, "--no-deps", "--disable-pip"]
        command += ["--format", "json", "--progress-spinner", "off", "--vulnerability-service", "osv"]
        if url := environ.get("AUDIT_OSV_URL"):
            command += ["--osv-url", url]
        answer = ask(command, environ, awaited="dependencies")
    skipped = [package["name"] for package in answer["dependencies"] if "skip_reason" in package]
    if skipped:
        raise AuditNotMade(f"the service does not know {', '.join(skipped)}")
    findings = []
    for package in answer["dependencies"]:
        for found in package["vulns"]:
            names = [found["id"], *found["aliases"]]
            if not ACCEPTED.keys() & set(names):
                mended = ", ".join(found["fix_versions"]) or "no version"
                findings.append(f"{package['name']} {package['version']}: {', '.join(names)}, mended in {mended}")
    return Audit(packages=len(packages), findings=findings)


def audit_node(environ: Mapping[str, str]) -> Audit:
    """By the registry that npm is set to use."""
    npm = node().parent.parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    command = [str(node()), str(npm), "audit", "--json", "--prefix", str(ROOT / "supabase" / "local")]
    answer = ask(command, environ, awaited="vulnerabilities")
    advisories = {
        f"{name}: {via['url']}: {via['title']} ({via['severity']})"
        for name, found in answer["vulnerabilities"].items()
        for via in found["via"]
        if isinstance(via, dict) and via["url"].rpartition("/")[2] not in ACCEPTED
    }
    return Audit(packages=answer["metadata"]["dependencies"]["total"], findings=sorted(advisories))


def ask(command: list[str], environ: Mapping[str, str], *, awaited: str) -> dict[str, Any]:
    """The tool's report. Its exit status will not do: both tools end alike with findings and without an answer, or worse."""
    try:
        done = subprocess.run(command, env=dict(environ), capture_output=True, text=True, timeout=TIMEOUT_SECONDS)  # noqa: S603
        answer = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        raise AuditNotMade(f"no answer within {TIMEOUT_SECONDS} s") from None
    except ValueError:
        raise AuditNotMade((done.stderr.strip().splitlines() or ["no answer"])[-1]) from None
    if awaited not in answer:
        raise AuditNotMade(answer.get("message") or str(answer))
    return dict(answer)


def main(environ: Mapping[str, str]) -> int:
    failed = False
    for name, audit in (("pip-audit", audit_python), ("npm audit", audit_node)):
        try:
            report = audit(environ)
        except AuditNotMade as reason:
            print(f"{name}: NOT MADE, nothing is known about these packages: {reason}")
            failed |= environ.get("AUDIT_REQUIRED") == "1"
            continue
        for finding in report.findings:
            print(f"{name}: {finding}")
        print(f"{name}: {len(report.findings) or 'no'} known vulnerabilities in {report.packages} packages")
        failed |= bool(report.findings)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(os.environ))
