"""What one test allocated must not count against the next one's limit: engines are cycles, and keep their graphs' memory."""

import gc
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def memory_is_free() -> Iterator[None]:
    yield
    gc.collect()
    torch.cuda.empty_cache()
