"""runpod.toml holds every key without which RunPod's tool panics, in the types that it expects; the Hub's files hold theirs."""

import json
import tomllib
from pathlib import Path
from typing import Any

from ourvidz_sdxl.settings import Settings
from tools.runpod_template import faults_of

ROOT = Path(__file__).parents[2]
REQUIRED = {
    "name": str,
    "project.uuid": str,
    "project.base_image": str,
    "project.gpu_types": list,
    "project.gpu_count": int,
    "project.volume_mount_path": str,
    "project.ports": str,
    "project.container_disk_size_gb": int,
    "runtime.python_version": str,
    "runtime.handler_path": str,
    "runtime.requirements_path": str,
}
# https://docs.runpod.io/hub/publishing-guide, https://docs.runpod.io/references/gpu-types#gpu-pools
HUB = {
    "title": str,
    "description": str,
    "type": str,
    "category": str,
    "config.runsOn": str,
    "config.containerDiskInGb": int,
    "config.gpuCount": int,
    "config.gpuIds": str,
    "config.allowedCudaVersions": list,
    "config.env": list,
}
GPU_POOLS = {"AMPERE_16", "AMPERE_24", "ADA_24", "AMPERE_48", "ADA_48_PRO", "AMPERE_80", "ADA_80_PRO", "HOPPER_141"}
INPUT_FIELDS = {
    "name",
    "type",
    "description",
    "default",
    "required",
    "advanced",
    "options",
    "min",
    "max",
    "trueValue",
    "falseValue",
}


def check(document: dict[str, Any], required: dict[str, Any]) -> None:
    for key, kind in required.items():
        value: Any = document
        for part in key.split("."):
            assert part in value, f"{key} is missing"
            value = value[part]
        assert isinstance(value, kind), key


def hub(name: str) -> Any:
    return json.loads((ROOT / ".runpod" / name).read_text())


def test_every_required_key() -> None:
    toml = tomllib.loads((ROOT / "runpod.toml").read_text())
    check(toml, REQUIRED)
    env = toml["project"]["env_vars"]
    assert all(isinstance(value, str) for value in env.values())
    assert faults_of(env) == []
    assert toml["runtime"]["handler_path"] == "handler.py"
    for path in ("handler_path", "requirements_path"):
        assert (ROOT / toml["runtime"][path]).is_file()


def test_no_secret_in_it() -> None:
    text = (ROOT / "runpod.toml").read_text()
    assert "sb_secret_" not in text
    assert "{{ RUNPOD_SECRET_supabase_service_role_key }}" in text


def test_the_hubs_files_are_as_it_documents_them() -> None:
    listing = hub("hub.json")
    check(listing, HUB)
    assert (listing["type"], listing["category"], listing["config"]["runsOn"]) == ("serverless", "image", "GPU")
    assert set(listing["config"]["gpuIds"].split(",")) <= GPU_POOLS
    asked = {one["key"]: one["input"] for one in listing["config"]["env"]}
    assert all(set(wanted) <= INPUT_FIELDS for wanted in asked.values())
    given = {
        key: str(wanted["default"]).lower() if wanted["type"] == "boolean" else wanted["default"] for key, wanted in asked.items()
    }
    assert faults_of(given | {"SUPABASE_URL": "https://project.example"}) == []
    for name in ("handler.py", "README.md"):
        assert (ROOT / name).is_file() or (ROOT / ".runpod" / name).is_file()


def test_the_hubs_tests_start_from_settings_that_the_worker_takes() -> None:
    """There is no Supabase then: a request ends after its time with no job done, which is a 200 all the same."""
    tests = hub("tests.json")
    assert all(isinstance(test["name"], str) and isinstance(test["input"], dict) and test["timeout"] > 0 for test in tests["tests"])
    settings = Settings.from_env({one["key"]: one["value"] for one in tests["config"]["env"]})
    assert (ROOT / settings.model_path).is_dir()
    assert tests["config"]["allowedCudaVersions"] == hub("hub.json")["config"]["allowedCudaVersions"]
