"""A template on RunPod, made or brought up to date: `python -m tools.runpod_template [FILE] --image IMAGE`.

FILE (default: deploy/runpod/template.json) is the body that RunPod's REST API v2 wants; it is checked first, the worker's settings
in it as the worker itself would. A template of that name is changed, else one is made, so that a second call does no harm, whatever
became of the first. The template's id is all that it prints on standard output. Secrets are named, never written, in a template.

Exit status: 0 done, 1 the file or a setting is wrong and RunPod was not asked, 2 a wrong option, 3 RunPod did not do it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import requests
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from ourvidz_sdxl.errors import SettingsInvalid
from ourvidz_sdxl.settings import OLDER_NAMES, Settings

FILE = Path(__file__).parents[1] / "deploy" / "runpod" / "template.json"
REST_URL = "https://api.runpod.io/v2"
TIMEOUT_SECONDS = 30
WORDS = 300  # characters of RunPod's answer that are shown

# https://docs.runpod.io/pods/templates/secrets
SECRET = re.compile(r"\{\{ RUNPOD_SECRET_\w+ \}\}")
# Each pod has its own: RunPod sets the first, and the second says which worker a row of public.workers is.
NOT_SHARED = {"RUNPOD_POD_ID", "WORKER_ID"}
# What else libraries read.
OTHERS = ("OTEL_", "CUDA_", "NVIDIA_", "PYTORCH_", "TRITON_")

Lines = list[str]


class Wrong(Exception):
    """Something that the operator must mend; nothing was asked of RunPod."""


class Refused(Exception):
    """RunPod did not do it, in its own words."""


class _Part(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


class PersistentMount(_Part):
    """A disk of the pod's own, beside the container's: it outlives the container, and not the pod. RunPod advises against it."""

    size: Annotated[int, Field(ge=10)]  # GB
    path: Annotated[str, Field(pattern=r"^/.+")]


class Mounts(_Part):
    persistent: PersistentMount


class Template(_Part):
    """The fields of CreateTemplateRequest in https://api.runpod.io/v2/openapi.json, under their own names; no others are taken.

    What RunPod would start in the container besides (sshd, Jupyter) is off unless the file says otherwise; its own default is on.
    """

    name: Annotated[str, Field(min_length=1)]
    # Docker's own rule: a repository's name is in small letters
    image: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._/:-]*(:[\w.-]+)?(@sha256:[0-9a-f]{64})?$")]
    allowed_cuda_versions: list[Annotated[str, Field(pattern=r"^\d+\.\d+$")]] = []
    args: str = ""
    category: Literal["NVIDIA", "AMD", "CPU"] = "NVIDIA"
    disk: Annotated[int, Field(ge=1)] = 60  # GB
    env: dict[str, str] = {}
    mounts: Mounts | None = None
    ports: list[Annotated[str, Field(pattern=r"^\d{1,5}/(http|tcp)$")]] = []
    public: bool = False
    registry: str | None = None
    serverless: bool = False
    start_jupyter: bool = False
    start_ssh: bool = False

    @property
    def body(self) -> dict[str, Any]:
        """All fields, also those that the file leaves out, so that an older template's values do not stay."""
        return self.model_dump(by_alias=True, exclude=set() if self.mounts else {"mounts"})


def read_template(text: str, image: str | None = None, env: Mapping[str, str] | None = None) -> Template:
    """Raises Wrong with all that is wrong in it, by the names of the fields, without the values."""
    try:
        given = json.loads(text)
    except ValueError as error:
        raise Wrong(f"this is no JSON: {error}") from None
    if not isinstance(given, dict):
        raise Wrong("this is no JSON object")
    if image:
        given["image"] = image
    if env and isinstance(given.setdefault("env", {}), dict):
        given["env"] |= env
    try:
        template = Template.model_validate(given)
    except ValidationError as error:
        raise Wrong("\n".join(_told(fault) for fault in error.errors())) from None
    if faults := faults_of(template.env):
        raise Wrong("\n".join(faults))
    return template


def _told(fault: Any) -> str:
    place = ".".join(map(str, fault["loc"]))
    if fault["type"] == "extra_forbidden":
        return f"{place}: RunPod's API has no such field"
    if place == "image" and fault["type"] == "string_pattern_mismatch":
        return "image: this is not the name of an image; --image gives the one that was pushed"
    return f"{place}: {fault['msg']}"


def faults_of(env: Mapping[str, str]) -> Lines:
    """What is wrong with a worker's environment in a template, one line each."""
    faults: Lines = []
    fields = {name.upper(): field for name, field in Settings.model_fields.items()}
    fields |= {older: fields[name.upper()] for name, older in OLDER_NAMES.items()}
    for name, value in env.items():
        if name in NOT_SHARED:
            faults.append(f"env.{name}: all pods of the template would have the same")
        elif name not in fields and not name.startswith(OTHERS):
            faults.append(f"env.{name}: the worker has no such setting")
        elif name in fields and "SecretStr" in str(fields[name].annotation) and value and not SECRET.fullmatch(value):
            faults.append(
                f"env.{name}: a secret must not stand in a template; keep it in RunPod's secrets: {{{{ RUNPOD_SECRET_name }}}}"
            )
        elif "{{" in value and not SECRET.fullmatch(value):
            faults.append(f"env.{name}: a secret is named so, and is the whole value: {{{{ RUNPOD_SECRET_name }}}}")
    try:
        Settings.from_env({name: _stand_in(name) if SECRET.fullmatch(value) else value for name, value in env.items()})
    except SettingsInvalid as error:
        faults += [f"env: {line.strip().removeprefix('Value error, ')}" for line in str(error).splitlines()[1:]]
    return faults


def _stand_in(name: str) -> str:
    """What a secret might be: its value is RunPod's to know."""
    return "https://secret.example" if name.endswith("_URL") else "secret"


class RunPod:
    """As much of the REST API as a template needs. Every method raises Refused."""

    def __init__(self, key: str, url: str) -> None:
        self._key, self._url = key, url.rstrip("/")

    def put(self, template: Template) -> tuple[str, bool]:
        """The template's id, and whether it is a new one."""
        there = next((one for one in self._list() if one.get("name") == template.name), None)
        if there is None:
            return self._id_of(self._ask("POST", "/templates", template.body)), True
        if there.get("serverless") is not template.serverless:
            kind = "serverless" if there.get("serverless") else "pods"
            raise Refused(f"there is a template {template.name} for {kind} already, which would be lost; choose another name")
        if (there.get("mounts") or {}).get("persistent") and not template.mounts:
            raise Refused(
                f"the template {template.name} has a disk of its own, which RunPod lets nobody take away; delete it and call again,"
                " and mind that its id is another one then"
            )
        self._ask("PATCH", f"/templates/{self._id_of(there)}", template.body)
        return self._id_of(there), False

    def _list(self) -> list[dict[str, Any]]:
        answer = self._ask("GET", "/templates")
        found = answer.get("templates") if isinstance(answer, dict) else None
        if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
            raise Refused("RunPod's list of templates is not what its documentation says")
        return found

    def _id_of(self, answer: Any) -> str:
        found = answer.get("id") if isinstance(answer, dict) else None
        if not isinstance(found, str) or not found:
            raise Refused("RunPod said yes and named no template; call again, which changes the one that there may be")
        return found

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        try:
            answer = requests.request(
                method,
                self._url + path,
                json=body,
                headers={"Authorization": f"Bearer {self._key}"},
                timeout=TIMEOUT_SECONDS,
                allow_redirects=False,
            )
            if answer.ok:
                return answer.json()
        except requests.JSONDecodeError:
            raise Refused(f"what {self._url} answered to {method} {path} is no JSON") from None
        except requests.RequestException as error:
            raise Refused(f"{self._url} could not be reached ({type(error).__name__}); call again, which does no harm") from None
        if answer.status_code == 401:
            raise Refused("RunPod does not know this RUNPOD_API_KEY")
        raise Refused(f"RunPod answered {answer.status_code} to {method} {path}: {_words(answer)}")


def _words(answer: requests.Response) -> str:
    """The explanation of an ErrorResponse, and what is wrong with each field, where the answer is one."""
    try:
        said = answer.json()
    except requests.JSONDecodeError:
        return answer.text[:WORDS]
    if not isinstance(said, dict) or "detail" not in said:
        return answer.text[:WORDS]
    return "; ".join(map(str, [said["detail"], *(said.get("errors") or [])]))[:WORDS]


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Z][A-Z0-9_]*", name):
        raise argparse.ArgumentTypeError("write NAME=VALUE")
    return name, value


def _key(environ: Mapping[str, str]) -> str:
    key = environ.get("RUNPOD_API_KEY", "").strip()
    if not re.fullmatch(r"[!-~]+", key):
        raise Wrong("RUNPOD_API_KEY is not set, or is no key: RunPod's console makes one under Settings, API Keys")
    return key


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.runpod_template", description="Makes a template on RunPod, or changes it."
    )
    parser.add_argument("file", nargs="?", type=Path, default=FILE, help="the template (default: deploy/runpod/template.json)")
    parser.add_argument("--image", help="the image, in place of the file's")
    parser.add_argument(
        "--env", action="append", type=_assignment, default=[], metavar="NAME=VALUE", help="a setting of the worker's more"
    )
    parser.add_argument("--dry-run", action="store_true", help="print what RunPod would be told, and ask nothing of it")
    options = parser.parse_args(arguments)
    try:
        template = read_template(options.file.read_text(), options.image, dict(options.env))
        if options.dry_run:
            print(json.dumps(template.body, indent=2))
            return 0
        runpod = RunPod(_key(os.environ), os.environ.get("RUNPOD_REST_URL") or REST_URL)
    except OSError as error:
        print(f"{options.file}: {error.strerror}", file=sys.stderr)
        return 1
    except Wrong as wrong:
        print(f"{options.file} is not sent:\n{wrong}", file=sys.stderr)
        return 1
    try:
        template_id, is_new = runpod.put(template)
    except Refused as refused:
        print(refused, file=sys.stderr)
        return 3
    print(f"{'made' if is_new else 'changed'} the template {template.name}, for {template.image}", file=sys.stderr)
    print(template_id)
    return 0


if __name__ == "__main__":
    sys.exit(main())
