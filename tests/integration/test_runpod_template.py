"""`python -m tools.runpod_template` against RunPod's REST API as documented: what is sent, and what is refused in which words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ourvidz_sdxl.local import ROOT
from tests.fake_runpod import FakeRunPod, NewTemplate
from tools import runpod_template

IMAGE = "docker.io/somebody/ourvidz-sdxl:1"
POD = ROOT / "deploy" / "runpod" / "template.json"
SERVERLESS = ROOT / "deploy" / "runpod" / "serverless.json"


@pytest.fixture
def runpod(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRunPod]:
    with FakeRunPod() as running:
        monkeypatch.setenv("RUNPOD_API_KEY", running.key)
        monkeypatch.setenv("RUNPOD_REST_URL", running.rest_url)
        yield running


def changed(tmp_path: Path, **fields: Any) -> Path:
    """The template with other fields; None takes one out."""
    template = json.loads(POD.read_text()) | {"image": IMAGE} | fields
    file = tmp_path / "template.json"
    file.write_text(json.dumps({name: value for name, value in template.items() if value is not None}))
    return file


def put(*arguments: object) -> int:
    return runpod_template.main([str(argument) for argument in arguments])


def test_the_fields_are_those_that_runpod_documents() -> None:
    assert set(runpod_template.Template.model_fields) == set(NewTemplate.model_fields)


@pytest.mark.parametrize("file", [POD, SERVERLESS], ids=lambda file: file.stem)
def test_our_templates_are_sent_whole_and_hold_no_secret(
    runpod: FakeRunPod, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert put(file, "--image", IMAGE) == 0
    [template] = runpod.templates.values()
    assert template == template | json.loads(file.read_text()) | {"image": IMAGE}
    out, err = capsys.readouterr()
    assert out == f"{template['id']}\n", "and nothing else, so that a script can take it"
    assert err == f"made the template {template['name']}, for {IMAGE}\n"
    assert (template["startSsh"], template["startJupyter"], template["ports"]) == (False, False, []), "nobody else gets in"
    assert template["mounts"] == {}, "a network volume is the pod's own, and the container's disk is enough without"
    assert template["env"]["SUPABASE_SERVICE_ROLE_KEY"] == "{{ RUNPOD_SECRET_supabase_service_role_key }}"


def test_a_second_call_changes_the_first_ones_template(runpod: FakeRunPod, capsys: pytest.CaptureFixture[str]) -> None:
    put("--image", IMAGE, "--env", "MAX_CONCURRENT_JOBS=3")
    put("--image", f"{IMAGE}.1")
    [template] = runpod.templates.values()
    assert template["image"] == f"{IMAGE}.1"
    assert "MAX_CONCURRENT_JOBS" not in template["env"]
    assert "changed the template" in capsys.readouterr().err


def test_a_lost_reply_makes_no_second_template(runpod: FakeRunPod, capsys: pytest.CaptureFixture[str]) -> None:
    runpod.lose_next(1)
    assert put("--image", IMAGE) == 3
    assert "call again, which does no harm" in capsys.readouterr().err
    assert put("--image", IMAGE) == 0
    assert len(runpod.templates) == 1


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"dockerStartCmd": ["run"]}, "dockerStartCmd: RunPod's API has no such field"),
        ({"mounts": {"network": []}}, "mounts.network: RunPod's API has no such field"),
        ({"image": "YOUR-NAME/x"}, "image: this is not the name of an image; --image gives"),
        ({"name": None}, "name: Field required"),
        ({"disk": "40"}, "disk: Input should be a valid integer"),
        ({"ports": ["8000"]}, "ports.0: String should match"),
        ({"category": "TPU"}, "category: Input should be 'NVIDIA', 'AMD' or 'CPU'"),
        ({"env": {"MODLE_PATH": "/x"}}, "env.MODLE_PATH: the worker has no such setting"),
        ({"env": {"WORKER_ID": "one"}}, "env.WORKER_ID: all pods of the template would have the same"),
        ({"env": {"SUPABASE_SERVICE_ROLE_KEY": "sb_secret_x"}}, "env.SUPABASE_SERVICE_ROLE_KEY: a secret must not stand"),
        ({"env": {"SUPABASE_SERVICE_KEY": "sb_secret_x"}}, "env.SUPABASE_SERVICE_KEY: a secret must not stand"),
        ({"env": {"SUPABASE_URL": "{{RUNPOD_SECRET_url}}"}}, "env.SUPABASE_URL: a secret is named so"),
        ({"env": {"LEASE_SECONDS": "soon"}}, "env: LEASE_SECONDS: Input should be a valid integer"),
        ({"env": {}}, "env: SUPABASE_URL: Field required"),
        ({"env": {"MODEL_URL": "https://x.example/m"}}, "env: MODEL_URL needs MODEL_SHA256"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_what_is_wrong_is_told_before_runpod_is_asked(
    runpod: FakeRunPod, tmp_path: Path, fields: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "MODEL_URL" in fields.get("env", {}):
        fields = {"env": json.loads(POD.read_text())["env"] | fields["env"]}
    assert put(changed(tmp_path, **fields)) == 1
    err = capsys.readouterr().err
    assert words in err
    assert "sb_secret_x" not in err
    assert runpod.requests == []


@pytest.mark.parametrize("text", ["{", "[]"])
def test_what_is_no_template_at_all_is_told(runpod: FakeRunPod, tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    assert put(tmp_path / "x.json") == put(tmp_path / "missing.json") == 1
    assert runpod.requests == []


def test_a_dry_run_shows_what_would_be_sent_and_needs_no_key(
    runpod: FakeRunPod, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RUNPOD_API_KEY")
    assert put("--dry-run", "--image", IMAGE) == 0
    assert json.loads(capsys.readouterr().out)["image"] == IMAGE
    assert put("--image", IMAGE) == 1
    assert "RUNPOD_API_KEY is not set" in capsys.readouterr().err
    assert runpod.requests == []


def test_runpods_refusal_is_told_in_its_words(
    runpod: FakeRunPod, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runpod.fail_next(1, 500)
    assert put("--image", IMAGE) == 3
    assert "RunPod answered 500 to GET /templates: upstream request failed" in capsys.readouterr().err
    monkeypatch.setenv("RUNPOD_API_KEY", "rpa_another")
    assert put("--image", IMAGE) == 3
    err = capsys.readouterr().err
    assert err == "RunPod does not know this RUNPOD_API_KEY\n"
    monkeypatch.setenv("RUNPOD_REST_URL", "http://127.0.0.1:1")
    assert put("--image", IMAGE) == 3
    assert "could not be reached (ConnectionError)" in capsys.readouterr().err


def test_a_template_does_not_become_one_of_another_kind(
    runpod: FakeRunPod, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put("--image", IMAGE)
    assert put(changed(tmp_path, serverless=True)) == 3
    assert "for pods already" in capsys.readouterr().err
    assert [template["serverless"] for template in runpod.templates.values()] == [False]


def test_a_disk_that_runpod_would_keep_is_told_and_not_passed_over(
    runpod: FakeRunPod, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mounts = {"persistent": {"size": 40, "path": "/workspace"}}
    assert put(changed(tmp_path, mounts=mounts)) == put(changed(tmp_path, mounts=mounts, disk=20)) == 0
    assert put(changed(tmp_path)) == 3
    assert "has a disk of its own, which RunPod lets nobody take away" in capsys.readouterr().err
    assert [(template["mounts"], template["disk"]) for template in runpod.templates.values()] == [(mounts, 20)]


def test_the_words_of_a_refusal_name_the_fields(runpod: FakeRunPod) -> None:
    """Nothing that is sent is refused; so the tool is asked to send what it would not."""
    asking = runpod_template.RunPod(runpod.key, runpod.rest_url)
    with pytest.raises(runpod_template.Refused) as refused:
        asking._ask("POST", "/templates", {"name": "x", "imageName": "y", "disk": 0})
    assert str(refused.value).startswith("RunPod answered 422 to POST /templates: Request validation failed.; ")
    assert "$: missing property 'image'" in str(refused.value)
    assert "$: additional properties 'imageName' not allowed" in str(refused.value)
