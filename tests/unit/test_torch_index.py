"""Which PyTorch `make demo` installs: the small one wherever the large one would be of no use, and can be had."""

from __future__ import annotations

import pytest

from tools import torch_index


@pytest.mark.parametrize(
    ("system", "gpu", "reachable", "told"),
    [
        ("Linux", None, True, f"--extra-index-url {torch_index.INDEX}"),
        ("Linux", "/usr/bin/nvidia-smi", True, ""),
        ("Linux", None, False, ""),
        ("Darwin", None, True, ""),
    ],
)
def test_the_build_for_the_cpu(monkeypatch: pytest.MonkeyPatch, system: str, gpu: str | None, reachable: bool, told: str) -> None:
    monkeypatch.setattr("platform.system", lambda: system)
    monkeypatch.setattr("shutil.which", lambda _: gpu)
    monkeypatch.setattr(torch_index, "is_reachable", lambda _: reachable)
    assert torch_index.option() == told


def test_an_index_that_does_not_answer_is_not_used() -> None:
    assert not torch_index.is_reachable("http://127.0.0.1:9")
