"""RunPod as its REST API v2 and its serverless endpoints show it, with its errors and delays: a real HTTP server on this machine.

By https://api.runpod.io/v2/openapi.json (the bodies below, statuses, the shape of errors and answers) and, for the address that
requests to an endpoint go to, https://docs.runpod.io/serverless/endpoints/operation-reference.
"""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

Record = dict[str, Any]
Name = Annotated[str, Field(min_length=1)]
CudaVersion = Annotated[str, Field(pattern=r"^\d+\.\d+$")]
AtLeastOne = Annotated[int, Field(ge=1)]
AtLeastNone = Annotated[int, Field(ge=0)]


class Body(BaseModel):
    """What RunPod takes in a body, or in an object within one. What has no name here is refused, and so is null."""

    model_config = ConfigDict(alias_generator=to_camel, extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _no_null(cls, given: Any) -> Any:
        nulls = [name for name, value in given.items() if value is None and name != "registry"] if isinstance(given, dict) else ()
        if nulls:
            raise ValueError(f"got null, want a value: {', '.join(nulls)}")
        return given


class PersistentMount(Body):
    size: Annotated[int, Field(ge=10)]
    path: str


class NetworkMount(Body):
    volume_id: str
    path: str


class TemplateMounts(Body):
    persistent: PersistentMount | None = None


class Mounts(TemplateMounts):
    network: Annotated[list[NetworkMount], Field(max_length=1)] = []


class Cuda(Body):
    allowed_cuda_versions: list[CudaVersion] = []
    min_cuda_version: CudaVersion | None = None


class PodGpu(Cuda):
    id: str
    count: AtLeastOne = 1


class EndpointGpu(Cuda):
    pools: Annotated[list[str], Field(min_length=1)]
    excluded_types: list[Annotated[str, Field(pattern=r"^\s*[^-\s]")]] = []
    count: AtLeastOne = 1


class Cpu(Body):
    id: str
    vcpu_count: AtLeastOne


class Container(Body):
    args: str = ""
    disk: AtLeastOne = 20
    env: dict[str, str] = {}
    image: str | None = None
    ports: list[str] = []
    registry: str | None = None


class NewPod(Container):
    name: Name
    cloud: Literal["SECURE", "COMMUNITY"] = "SECURE"
    cpu: Cpu | None = None
    data_center_ids: list[str] = []
    global_networking: bool = False
    gpu: PodGpu | None = None
    mounts: Mounts = Mounts()
    start_jupyter: bool = False
    start_ssh: bool = False
    template_id: Name | None = None


class TemplateChange(Container):
    allowed_cuda_versions: list[CudaVersion] = []
    category: Literal["CPU", "NVIDIA", "AMD"] = "NVIDIA"
    mounts: TemplateMounts = TemplateMounts()
    name: Name | None = None
    public: bool = False
    serverless: bool = False
    start_jupyter: bool = True
    start_ssh: bool = True


class NewTemplate(TemplateChange):
    name: Name
    image: str


class Workers(Body):
    min: AtLeastNone = 0
    max: AtLeastNone = 3
    idle_timeout: Annotated[int, Field(ge=1, le=3600)] = 10


class QueueDelay(Body):
    type: Literal["QUEUE_DELAY"]
    queue_delay: Annotated[float, Field(ge=0.5)]


class RequestCount(Body):
    type: Literal["REQUEST_COUNT"]
    request_count: AtLeastOne


class EndpointChange(Container):
    cpu: list[Cpu] = []
    data_center_ids: list[str] = []
    flashboot: Literal["OFF", "FLASHBOOT", "PRIORITY_FLASHBOOT"] = "OFF"
    gpu: EndpointGpu | None = None
    name: Name | None = None
    network_volumes: list[str] = []
    scaling: Annotated[QueueDelay | RequestCount, Field(discriminator="type")] | None = None
    template_id: Name | None = None
    timeout: int = 0  # documented as 300000
    workers: Workers = Workers()


class NewEndpoint(EndpointChange):
    name: Name
    scaling: Annotated[QueueDelay | RequestCount, Field(discriminator="type")]
    type: Literal["QUEUE", "LOAD_BALANCER"]


# `detail` of an error. A GPU type of which none is free is a 400, with nothing but these words to tell it from other mistakes.
DETAILS = {
    400: "There are no longer any instances available with the requested specifications. Please refresh and try again.",
    401: "missing bearer token",
    402: "insufficient balance",
    403: "access denied",
    404: "resource not found",
    422: "Request validation failed.",
    429: "rate limit exceeded for the minute window",
}
CONTAINER = ("image", "args", "disk", "ports", "env", "registry")


@dataclass(frozen=True)
class Asked:
    method: str
    path: str  # with the query
    body: Any = None


class Refused(Exception):
    def __init__(self, status: int, detail: str = "", errors: list[str] | None = None) -> None:
        self.status = status
        self.problem: Record = {"title": HTTPStatus(status).phrase, "status": status, "detail": detail or DETAILS[status]}
        if errors:
            self.problem["errors"] = errors


@dataclass(kw_only=True)
class FakeRunPod:
    """`with FakeRunPod() as runpod:` listens; `runpod.rest_url` is the REST API, `runpod.serverless_url` takes requests.

    There is a template "tpl" from the beginning. `gpus` has the GPU types with which pods are refused, each with the status.
    """

    key: str = "rpa_test"
    delay_seconds: float = 0.0
    retry_after_seconds: int = 1
    requests: list[Asked] = field(default_factory=list)
    gpus: dict[str, int] = field(default_factory=dict)
    pods: dict[str, Record] = field(default_factory=dict)
    templates: dict[str, Record] = field(default_factory=dict)
    endpoints: dict[str, Record] = field(default_factory=dict)
    endpoints_called: list[tuple[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._failures: list[int] = []
        self._lost = 0
        self._numbers: defaultdict[str, Iterator[int]] = defaultdict(lambda: count(1))
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
    def rest_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v2"

    @property
    def serverless_url(self) -> str:
        """Another host at RunPod, with the same path."""
        return self.rest_url

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
            self.retry_after_seconds = 1
            self.gpus.clear()

    def asked(self, method: str, path: str) -> list[Asked]:
        """Requests of that method to that path of the REST API."""
        return [asked for asked in self.requests if asked.method == method and asked.path == f"/v2{path}"]

    def answer(self, method: str, path: str, body: Any, authorization: str | None) -> tuple[int, Any] | None:
        """Status and body of the answer, or None where the reply is lost."""
        with self._lock:
            self.requests.append(Asked(method, path, body))
            failure = self._failures.pop(0) if self._failures else None
        time.sleep(self.delay_seconds)
        try:
            if failure:
                raise Refused(failure, DETAILS.get(failure, "upstream request failed"))
            if authorization != f"Bearer {self.key}":
                raise Refused(401)
            with self._lock:
                answer = self._do(method, path.partition("?")[0].strip("/").split("/"), body)
                if method != "GET" and self._lost:
                    self._lost -= 1
                    return None
                return answer
        except Refused as refused:
            return refused.status, refused.problem

    def _do(self, method: str, parts: list[str], body: Any) -> tuple[int, Any]:
        match method, parts:
            case "POST", ["v2", "pods"]:
                return 201, self._make_pod(body)
            case "GET", ["v2", "pods"]:  # a query is not looked at
                return 200, {"pods": list(self.pods.values())}
            case "GET", ["v2", "pods", pod_id]:
                return 200, _found(self.pods, pod_id)
            case "DELETE", ["v2", "pods", pod_id]:
                _found(self.pods, pod_id)
                del self.pods[pod_id]
                return 204, None
            case "POST", ["v2", "templates"]:
                return 201, self._make_template(body)
            case "GET", ["v2", "templates"]:
                return 200, {"templates": list(self.templates.values())}
            case "PATCH", ["v2", "templates", template_id]:
                template, changes = _found(self.templates, template_id), _read(TemplateChange, body)
                if not changes.get("mounts"):
                    changes.pop("mounts", None)  # what is left out stays, and {} takes nothing away
                return 200, _put(template, changes)
            case "POST", ["v2", "serverless"]:
                return 201, self._make_endpoint(body)
            case "PATCH", ["v2", "serverless", endpoint_id]:
                endpoint, changes = _found(self.endpoints, endpoint_id), _read(EndpointChange, body)
                container = self._container(changes, serverless=True)
                changes.pop("templateId", None)
                return 200, _put(endpoint, changes | container)
            case "POST", ["v2", endpoint_id, "run"]:
                if not isinstance(body, dict) or not body.get("input"):
                    raise Refused(400, "input is required")
                self.endpoints_called.append((endpoint_id, body))
                return 200, {"id": self._new("request"), "status": "IN_QUEUE"}
        raise Refused(404)

    def _make_pod(self, body: Any) -> Record:
        asked = _read(NewPod, body)
        if ("gpu" in asked) == ("cpu" in asked):
            raise Refused(400, "exactly one of gpu and cpu must be set")
        gpu = _cuda_checked(asked.get("gpu", {}))
        if asked.get("mounts", {}).get("persistent") and asked["mounts"].get("network"):
            raise Refused(400, "mounts.persistent and mounts.network are mutually exclusive")
        pod = self._container(asked, serverless=False)
        if "image" not in pod:
            raise Refused(422, errors=["$: missing property 'image'"])
        if refusal := self.gpus.get(gpu.get("id", "")):
            raise Refused(refusal)
        new = {
            **Container().model_dump(),
            **pod,
            "id": self._new("pod"),
            "name": asked["name"],
            "status": "PROVISIONING",
            "actions": ["start", "terminate"],
            "mounts": pod.get("mounts", {}),
            **({"gpu": {"id": gpu["id"], "count": gpu.get("count", 1)}} if gpu else {"cpu": asked["cpu"]}),
            "cloud": asked.get("cloud", "SECURE"),
            "dataCenterId": (asked.get("dataCenterIds") or ["EU-RO-1"])[0],
            "cudaVersion": gpu.get("minCudaVersion"),
            "ssh": {"proxy": None, "direct": None},
            "template": None,  # what came from it is the pod's own
            "cost": 0.74,
            "locked": False,
            "globalNetworking": {"enabled": False},
            "runtime": None,
            "createdAt": "2026-11-28T12:00:00Z",
            "startedAt": None,
        }
        self.pods[new["id"]] = new
        return new

    def _make_template(self, body: Any) -> Record:
        _read(NewTemplate, body)
        new = {"id": self._new("template")} | NewTemplate.model_validate(body).model_dump(by_alias=True)
        if any(other["name"] == new["name"] for other in self.templates.values()):
            raise Refused(400, "Template name must be unique.")  # not in the schema
        new["mounts"] = {kind: mount for kind, mount in new["mounts"].items() if mount}
        self.templates[new["id"]] = new
        return new

    def _make_endpoint(self, body: Any) -> Record:
        asked = _read(NewEndpoint, body)
        if ("gpu" in asked) == ("cpu" in asked):
            raise Refused(400, "exactly one of gpu and cpu must be set")
        if "gpu" in asked:
            asked["gpu"] = {"allowedCudaVersions": [], "minCudaVersion": None} | _cuda_checked(asked["gpu"])
        container = self._container(asked, serverless=True)
        if "image" not in container:
            raise Refused(422, errors=["$: missing property 'image'"])
        asked.pop("templateId", None)
        defaults = EndpointChange().model_dump(by_alias=True, exclude={"cpu", "template_id"})
        new = defaults | asked | container | {"id": self._new("endpoint"), "createdAt": "2026-11-28T12:00:00Z"}
        self.endpoints[new["id"]] = new
        return new

    def _container(self, asked: Record, *, serverless: bool) -> Record:
        """The template's settings with the body's over them; env is merged name by name."""
        template: Record = {}
        if (template_id := asked.get("templateId")) == "tpl" and not serverless:
            template = {"image": "docker.io/somebody/ourvidz-sdxl:1", "env": {}}
        elif template_id:
            template = _found(self.templates, template_id)
            if template["serverless"] != serverless:
                raise Refused(422, f"template {template_id} is for {'pods' if serverless else 'serverless endpoints'}")
        names = CONTAINER if serverless else (*CONTAINER, "mounts")
        settings = {name: source[name] for source in (template, asked) for name in names if name in source}
        if "env" in settings:
            settings["env"] = template.get("env", {}) | asked.get("env", {})
        return settings

    def _new(self, kind: str) -> str:
        return f"{kind}-{next(self._numbers[kind])}"


def _read(kind: type[Body], body: Any) -> Record:
    """What stands in the body. Raises Refused with all that is wrong in it, in RunPod's words."""
    try:
        return kind.model_validate(body).model_dump(by_alias=True, exclude_unset=True)
    except ValidationError as error:
        raise Refused(422, errors=[_told(fault) for fault in error.errors()]) from None


def _told(fault: Any) -> str:
    *place, name = ("$", *map(str, fault["loc"]))
    match fault["type"]:
        case "extra_forbidden":
            return f"{'.'.join(place)}: additional properties '{name}' not allowed"
        case "missing":
            return f"{'.'.join(place)}: missing property '{name}'"
    return f"{'.'.join((*place, name))}: {fault['msg']}"


def _cuda_checked(gpu: Record) -> Record:
    if gpu.get("allowedCudaVersions") and "minCudaVersion" in gpu:
        raise Refused(400, "allowedCudaVersions and minCudaVersion are mutually exclusive")
    return gpu


def _put(record: Record, changes: Record) -> Record:
    record.update(changes)
    return record


def _found(records: dict[str, Record], key: str) -> Record:
    if key not in records:
        raise Refused(404)
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
            self.send_header("Content-Type", "application/problem+json" if status >= 400 else "application/json")
            self.send_header("Content-Length", str(len(content)))
            if status == 429:
                self.send_header("Retry-After", str(fake.retry_after_seconds))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PATCH = do_DELETE = answer  # noqa: N815  the names that http.server looks for

        def log_message(self, *_: object) -> None:
            pass

        def handle(self) -> None:
            with suppress(ConnectionError):  # the caller lost its patience
                super().handle()

    return Handler
