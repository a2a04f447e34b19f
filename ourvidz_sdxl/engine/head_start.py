"""What a start can do while Python is busy importing torch and diffusers, which takes 4 to 10 s."""

from __future__ import annotations

import contextlib
import glob
import os
import threading
from functools import partial
from pathlib import Path


def head_start(model_path: Path) -> None:
    """Returns at once. Whatever fails here is found, and named, by whoever needs it."""
    keep_kernels(model_path.parent)
    for work in (partial(read_ahead, model_path), wake_gpu):
        threading.Thread(target=work, daemon=True).start()


def read_ahead(model_path: Path) -> None:
    """Asks the system for what will be loaded: the weights that were kept, else the model. It comes from the disk meanwhile."""
    pattern = f"{glob.escape(model_path.name)}.*.runtime"
    kept = sorted(model_path.parent.glob(pattern), key=lambda path: path.stat().st_mtime)
    for file in kept[-1:] or [model_path, *model_path.glob("*/*.safetensors")]:
        if file.is_file():
            with file.open("rb") as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def wake_gpu() -> None:
    """Has CUDA, cuBLAS and cuDNN load what the first multiplication, convolution and attention would wait a second for."""
    import torch
    from torch.nn import functional

    if torch.cuda.is_available():
        with contextlib.suppress(RuntimeError):  # whatever is wrong with the GPU, the engine says it better
            image = torch.ones(1, 64, 8, 8, device="cuda", dtype=torch.float16).contiguous(memory_format=torch.channels_last)
            functional.conv2d(image, image)
            functional.scaled_dot_product_attention(image, image, image)
            torch.mm(image[0, 0], image[0, 0])


def keep_kernels(folder: Path) -> None:
    """Has Triton keep compiled kernels beside the model, on a disk that outlives a container; unless the operator named a place."""
    if os.access(folder, os.W_OK):
        os.environ.setdefault("TRITON_CACHE_DIR", str(folder / ".triton"))
