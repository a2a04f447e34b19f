"""What one test allocated, or allowed itself, must not count for the next: engines are cycles, and keep their graphs' memory."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full-size SDXL in its own folder; `python tools/single_file.py --random --device cuda --out X.safetensors` makes one."""
    named = os.environ.get("CHECKPOINT")
    if not named or not Path(named).is_file():
        pytest.skip("needs a full-size SDXL as one file: CHECKPOINT names none")
    link = tmp_path_factory.mktemp("model") / "random.safetensors"
    link.symlink_to(Path(named).resolve())
    return link


@pytest.fixture(autouse=True)
def memory_is_free() -> Iterator[None]:
    yield
    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(1.0)
        gc.collect()
        torch.cuda.empty_cache()
