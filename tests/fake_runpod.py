"""RunPod as its REST API v1 and its serverless endpoints show it, with its errors and delays: a real HTTP server on this machine.

By https://docs.runpod.io/api-reference (paths, status codes, fields of a pod and a template) and
https://docs.runpod.io/serverless/endpoints/operation-reference.
"""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any
from urllib.parse import parse_qs, urlsplit

Record = dict[str, Any]
# What it takes in a body, of https://docs.runpod.io/api-reference/openapi.json; anything else is a mistake of the caller's.
POD_FIELDS = {
    "allowedCudaVersions", "cloudType", "computeType", "containerDiskInGb", "containerRegistryAuthId", "countryCodes",
    "cpuFlavorIds", "cpuFlavorPriority", "dataCenterIds", "dataCenterPriority", "dockerEntrypoint", "dockerStartCmd", "env",
    "globalNetworking", "gpuCount", "gpuTypeIds", "gpuTypePriority", "imageName", "interruptible", "locked",
    "minDiskBandwidthMBps", "minDownloadMbps", "minRAMPerGPU", "minUploadMbps", "minVCPUPerGPU", "name", "networkVolumeId",
    "ports", "supportPublicIp", "templateId", "vcpuCount", "volumeInGb", "volumeMountPath",
}  # fmt: skip
TEMPLATE_FIELDS = {
    "category", "containerDiskInGb", "containerRegistryAuthId", "dockerEntrypoint", "dockerStartCmd", "env", "imageName",
    "isPublic", "isServerless", "name", "ports", "readme", "volumeInGb", "volumeMountPath",
}  # fmt: skip


@dataclass(frozen=True)
class Asked:
    method: str
    path: str  # with the query
    body: Any = None


class Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        self.status, self.message = status, message


@dataclass(kw_only=True)
class FakeRunPod:
    """`with FakeRunPod() as runpod:` listens at `runpod.url`; REST is at `url + "/v1"`, serverless at `url + "/v2"`."""

    key: str = "rpa_test"
    delay_seconds: float = 0.0
    requests: list[Asked] = field(default_factory=list)
    pods: dict[str, Record] = field(default_factory=dict)
    templates: dict[str, Record] = field(default_factory=dict)
    endpoints_called: list[tuple[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._failures: list[int] = []
        self._lost = 0
        self._numbers = count(1)
        self._lock = threading.Lock()

    def __enter__(self) -> FakeRunPod:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def fail_next(self, n: int, status: int) -> None:
        """The next `n` requests are answered with `status`, and have no effect."""
        with self._lock:
            self._failures += [status] * n

    def lose_next(self, n: int) -> None:
        """The next `n` requests that change something have their effect, and the connection breaks before the reply."""
        with self._lock:
            self._lost += n

    def heal(self) -> None:
        with self._lock:
            self._failures.clear()
            self._lost = 0
            self.delay_seconds = 0.0

    def asked(self, method: str, path: str) -> list[Asked]:
        """Requests of that method whose path, without the query, is that one."""
        return [asked for asked in self.requests if asked.method == method and asked.path.partition("?")[0] == path]

    def answer(self, method: str, path: str, body: Any, authorization: str | None) -> tuple[int, Any] | None:
        """Status and body of the answer, or None where the reply is lost."""
        with self._lock:
            self.requests.append(Asked(method, path, body))
            failure = self._failures.pop(0) if self._failures else None
        time.sleep(self.delay_seconds)
        if failure:
            return failure, {"error": "There are no longer any instances available with the requested specifications."}
        if authorization != f"Bearer {self.key}":
            return 401, {"error": "Unauthorized"}
        with self._lock:
            try:
                answer = self._do(method, urlsplit(path).path.strip("/").split("/"), parse_qs(urlsplit(path).query), body)
            except Refused as refused:
                return refused.status, {"error": refused.message}
            if method != "GET" and self._lost:
                self._lost -= 1
                return None
            return answer

    def _do(self, method: str, parts: list[str], query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        match method, parts:
            case "POST", ["v1", "pods"]:
                return 201, self._make_pod(body)
            case "GET", ["v1", "pods"]:
                named = query.get("name")
                return 200, [pod for pod in self.pods.values() if not named or pod["name"] == named[0]]
            case "GET", ["v1", "pods", pod_id]:
                return 200, _found(self.pods, pod_id)
            case "DELETE", ["v1", "pods", pod_id]:
                _found(self.pods, pod_id)
                del self.pods[pod_id]
                return 204, None
            case "POST", ["v1", "pods", pod_id, ("stop" | "start") as action]:
                _found(self.pods, pod_id)["desiredStatus"] = "EXITED" if action == "stop" else "RUNNING"
                return 200, self.pods[pod_id]
            case "POST", ["v1", "templates"]:
                record = {"id": f"tpl{next(self._numbers)}"} | _checked(body, TEMPLATE_FIELDS, {"name", "imageName"})
                if any(other["name"] == record["name"] for other in self.templates.values()):
                    raise Refused(400, "Template name must be unique.")
                self.templates[record["id"]] = record
                return 201, record
            case "GET", ["v1", "templates"]:
                return 200, list(self.templates.values())
            case "GET", ["v1", "templates", template_id]:
                return 200, _found(self.templates, template_id)
            case (("PATCH" | "POST"), ["v1", "templates", template_id, *_]):
                _found(self.templates, template_id).update(_checked(body, TEMPLATE_FIELDS - {"category", "isServerless"}))
                return 200, self.templates[template_id]
            case "DELETE", ["v1", "templates", template_id]:
                _found(self.templates, template_id)
                del self.templates[template_id]
                return 204, None
            case "POST", ["v2", endpoint, "run"]:
                if not isinstance(body, dict) or not body.get("input"):
                    raise Refused(400, "input is required")
                self.endpoints_called.append((endpoint, body))
                return 200, {"id": f"request-{next(self._numbers)}", "status": "IN_QUEUE"}
        raise Refused(404, "not found")

    def _make_pod(self, body: Any) -> Record:
        asked = _checked(body, POD_FIELDS)
        if "templateId" not in asked and "imageName" not in asked:
            raise Refused(400, "imageName or templateId is required")
        if asked.get("templateId", "tpl") not in {"tpl", *self.templates}:  # "tpl" is always there
            raise Refused(400, "template not found")
        pod = {"name": "my pod", **asked, "id": f"pod{next(self._numbers)}", "desiredStatus": "RUNNING", "costPerHr": 0.74}
        self.pods[pod["id"]] = pod
        return pod


def _checked(body: Any, fields: set[str], needed: set[str] | None = None) -> Record:
    if not isinstance(body, dict):
        raise Refused(400, "the body must be an object")
    if unknown := set(body) - fields:
        raise Refused(400, f"unknown fields: {', '.join(sorted(unknown))}")
    if missing := (needed or set()) - set(body):
        raise Refused(400, f"missing: {', '.join(sorted(missing))}")
    return dict(body)


def _found(records: dict[str, Record], key: str) -> Record:
    if key not in records:
        raise Refused(404, "not found")
    return records[key]


def _handler(fake: FakeRunPod) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            answered = fake.answer(self.command, self.path, json.loads(text) if text else None, self.headers["Authorization"])
            if answered is None:
                self.close_connection = True
                return
            status, body = answered
            content = b"" if body is None else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PATCH = do_DELETE = answer  # noqa: N815  the names that http.server looks for

        def log_message(self, *_: object) -> None:
            pass

        def handle(self) -> None:
            with suppress(ConnectionError):  # the caller lost its patience
                super().handle()

    return Handler
