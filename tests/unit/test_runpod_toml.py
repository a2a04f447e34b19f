"""runpod.toml holds every key without which RunPod's tool panics, in the types that it expects."""

import tomllib
from pathlib import Path
from typing import Any

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


def test_every_required_key() -> None:
    toml = tomllib.loads((ROOT / "runpod.toml").read_text())
    for key, kind in REQUIRED.items():
        value: Any = toml
        for part in key.split("."):
            assert part in value, f"{key} is missing"
            value = value[part]
        assert isinstance(value, kind), key
    assert all(isinstance(value, str) for value in toml["project"]["env_vars"].values())
    for path in ("handler_path", "requirements_path"):
        assert (ROOT / toml["runtime"][path]).is_file()


def test_no_secret_in_it() -> None:
    text = (ROOT / "runpod.toml").read_text()
    assert "sb_secret_" not in text
    assert "{{ RUNPOD_SECRET_supabase_service_role_key }}" in text
