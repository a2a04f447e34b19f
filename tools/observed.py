"""What a real Prometheus saw of a real worker: `python -m tools.observed` runs it, `make dashboard` draws it, too.

A worker with the bundled model paints for some minutes what several users ask for, with faults on the way: references that are not
there, replies that get lost, a job that is cancelled, a worker that is killed. Prometheus (Debian's package `prometheus`) scrapes
it, each expression of deploy/grafana/dashboard.json is evaluated through its HTTP API, and one job's spans are kept as they came
over OTLP. All of it goes to docs/observability/observed.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil  # type: ignore[import-untyped]

from ourvidz_sdxl.local import ROOT

DASHBOARD = ROOT / "deploy" / "grafana" / "dashboard.json"
OBSERVED = ROOT / "docs" / "observability" / "observed.json"
SCRAPE_SECONDS = 2
RATE_INTERVAL = "30s"
STEP_SECONDS = 3
COLOURS, SHAPES = ("red", "green", "blue", "yellow"), ("circle", "square", "triangle", "star")


def without_variables(expression: str, rate_interval: str = "5m") -> str:
    """As Grafana sends it, with all hosts chosen."""
    return expression.replace("$__rate_interval", rate_interval).replace("$instance", ".+")


def expressions(dashboard: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Title, expression and legend of each target."""
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"], target["legendFormat"]


@contextmanager
def prometheus(target: str) -> Iterator[str]:
    """Its URL. Raises SystemExit where it is not installed."""
    program = shutil.which("prometheus")
    if program is None:
        raise SystemExit("Prometheus is missing: apt-get install prometheus")
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "prometheus.json"  # JSON is YAML, too
        scrape = {"job_name": "sdxl-workers", "static_configs": [{"targets": [target], "labels": {"instance": "host-1"}}]}
        config.write_text(json.dumps({"global": {"scrape_interval": f"{SCRAPE_SECONDS}s"}, "scrape_configs": [scrape]}))
        address = f"127.0.0.1:{free_port()}"
        command = [program, f"--config.file={config}", f"--storage.tsdb.path={folder}/data", f"--web.listen-address={address}"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603
        url = f"http://{address}"
        try:
            wait_until_ready(f"{url}/-/ready")
            yield url
        finally:
            process.terminate()
            process.wait(30)


def free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def wait_until_ready(url: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if httpx.get(url).is_success:
                return
        except httpx.TransportError:
            pass
        if time.monotonic() > deadline:
            raise SystemExit(f"{url} never answered")
        time.sleep(0.2)


def ask(url: str, dashboard: Mapping[str, Any], start: float, end: float) -> list[dict[str, Any]]:
    """Each target's series: labels, legend and points."""
    answers = []
    for title, expression, legend in expressions(dashboard):
        query = without_variables(expression, RATE_INTERVAL)
        window = {"start": start, "end": end, "step": STEP_SECONDS}
        answer = httpx.get(f"{url}/api/v1/query_range", params={"query": query, **window}).raise_for_status().json()
        series = [
            {"labels": one["metric"], "points": [[round(t - start, 1), float(f"{float(v):.4g}")] for t, v in one["values"]]}
            for one in answer["data"]["result"]
        ]
        answers.append({"panel": title, "legend": legend, "series": series})
    return answers


def observe(minutes: float) -> dict[str, Any]:
    from tests.fault_proxy import FaultProxy
    from tests.integration.conftest import sign_up
    from tests.otlp_receiver import OtlpReceiver
    from tests.processes import REAL, WorkerProcess, scratch_supabase

    draw = random.Random(7)
    with scratch_supabase() as supabase, FaultProxy(supabase.url) as proxy, OtlpReceiver() as receiver:
        users = [sign_up(supabase) for _ in range(3)]
        settings: dict[str, Any] = {
            "http_port": free_port(),
            "otel_exporter_otlp_endpoint": receiver.url,
            "worker_id": "host-1",
            "slow_generation_seconds": 1.5,
        }
        with (
            WorkerProcess(supabase, REAL, supabase_url=proxy.url, **settings) as worker,
            prometheus(f"127.0.0.1:{settings['http_port']}") as url,
        ):
            start = time.time()

            def share() -> float:
                return (time.time() - start) / (60 * minutes)

            told, killed = False, False
            while share() < 1:
                user = draw.choice(users)
                wish: dict[str, Any] = {
                    "job_type": draw.choice(["sdxl_image_fast", "sdxl_image_fast", "sdxl_image_high"]),
                    "batch_size": draw.choice([1, 1, 3]),
                    "prompt": f"a {draw.choice(COLOURS)} {draw.choice(SHAPES)} on a white background",
                }
                if draw.random() < 0.1:
                    wish |= {"reference_image_path": f"{user.id}/gone.png", "reference_strength": 0.5}
                    wish["fallback_to_text"] = draw.random() < 0.5
                job = user.insert(**wish)
                if draw.random() < 0.05:
                    user.client.table("jobs").update({"cancel_requested_at": "now()"}).eq("id", job["id"]).execute()
                if not told and share() > 0.4:
                    told = True
                    proxy.answer("POST /storage", 503, times=6)
                    proxy.lose_replies("POST /rest/v1/rpc/finish_job", times=2)
                    proxy.close_sockets(1006)
                if not killed and share() > 0.7:
                    killed = True
                    for child in psutil.Process(worker.process.pid).children():
                        os.kill(child.pid, signal.SIGKILL)
                # busier in the second third: jobs come faster than they are painted
                time.sleep(draw.expovariate(1.6 if 0.33 < share() < 0.6 else 0.6))
            end = time.time()
            answers = ask(url, json.loads(DASHBOARD.read_text()), start, end)
            waited = {span.trace_id for span in receiver.spans if span.name == "wait" and span.end - span.start > 1}
            good = {"job.batch_size": 3, "job.outcome": "completed", "job.has_reference": False}
            jobs = (span for span in receiver.spans if span.name == "job" and span.trace_id in waited)
            shown = next(span for span in jobs if good.items() <= span.attributes.items())
            spans = [vars(span) for span in receiver.trace(shown.trace_id)]
    return {"seconds": round(end - start), "answers": answers, "trace": spans}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=4)
    observed = observe(parser.parse_args().minutes)
    OBSERVED.parent.mkdir(parents=True, exist_ok=True)
    OBSERVED.write_text(json.dumps(observed, separators=(",", ":")) + "\n")
    empty = sorted({answer["panel"] for answer in observed["answers"]} - {a["panel"] for a in observed["answers"] if a["series"]})
    print(f"{OBSERVED.relative_to(ROOT)} written; panels without a series: {', '.join(empty) or 'none'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
