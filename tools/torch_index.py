"""pip's option for PyTorch's builds for the CPU, or nothing: 200 MB instead of several GB of CUDA libraries that go unused.

    pip install $(python tools/torch_index.py) -r requirements.txt

On Linux alone: elsewhere PyPI has no other build. Nothing where an NVIDIA GPU is there, or where PyTorch's own index cannot be
reached. Needs the standard library only.
"""

from __future__ import annotations

import platform
import shutil
import urllib.request

INDEX = "https://download.pytorch.org/whl/cpu"  # https://pytorch.org/get-started/locally/
TIMEOUT_SECONDS = 5


def is_reachable(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/torch/", timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310  https, and ours
            return bool(answer.status == 200)
    except OSError:
        return False


def option() -> str:
    wanted = platform.system() == "Linux" and not shutil.which("nvidia-smi") and is_reachable(INDEX)
    return f"--extra-index-url {INDEX}" if wanted else ""


if __name__ == "__main__":
    print(option())
