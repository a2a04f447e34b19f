"""An SDXL in diffusers' layout -> one `.safetensors` file in SDXL's original layout.

    python tools/single_file.py --from models/tiny-sdxl --out X.safetensors
    python tools/single_file.py --random --seed 0 --dtype float16 --out X.safetensors

The second form makes a full-size SDXL base of random weights (6.9 GB in float16), to show that such a file loads and
paints. It makes and writes one tensor at a time, so it needs little memory.

The names are those of `ourvidz_sdxl.engine.original_names`; every number and shape is derived from the configuration.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs as a script, too

import torch

from ourvidz_sdxl.engine.load import MODELS, SDXL_BASE, empty_model, load_components
from ourvidz_sdxl.engine.original_names import MODULES, PREFIXES, original_name

FORMAT_NAMES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.int64: "I64"}
Models = Mapping[str, Any]
Value = Callable[[str, torch.Tensor], torch.Tensor]  # a parameter's name, the parameter -> what the file gets


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One tensor of the file; `make` is called when its turn to be written comes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], torch.Tensor]


def entries(models: Models, dtype: torch.dtype, value: Value) -> Iterator[Entry]:
    """Every tensor of the file. `value` says what a parameter becomes; the models may be on the meta device."""
    for part, model in models.items():
        modules = MODULES[part](model.config)
        parameters = dict(model.named_parameters())
        for name, parameter in parameters.items():
            original, shape = original_name(part, modules, name), tuple(parameter.shape)
            make = partial(value, name, parameter)
            if part == "text_encoder_2" and re.search(r"\.[kv]_proj\.", name):
                continue  # they go with q_proj
            if part == "text_encoder_2" and ".q_proj." in name:
                original = original.replace("self_attn.q_proj.", "attn.in_proj_")
                shape = (3 * shape[0], *shape[1:])
                rows = [name.replace(".q_proj.", f".{one}_proj.") for one in "qkv"]
                make = partial(_stacked, [partial(value, row, parameters[row]) for row in rows])
            elif name == "text_projection.weight":  # OpenCLIP multiplies by it from the right
                shape, make = shape[::-1], partial(_transposed, make)
            elif part == "vae" and ".attentions." in name and len(shape) == 2:  # 1x1 convolutions in the original
                shape = (*shape, 1, 1)
            yield Entry(name=original, dtype=dtype, shape=shape, make=make)
    # Two tensors that no diffusers model has, but the published file does.
    positions = torch.arange(models["text_encoder"].config.max_position_embeddings)[None]
    name = f"{PREFIXES['text_encoder']}embeddings.position_ids"
    yield Entry(name=name, dtype=torch.int64, shape=tuple(positions.shape), make=lambda: positions)
    scale = torch.tensor(math.log(100), dtype=dtype)  # where CLIP's training clips it
    yield Entry(name=f"{PREFIXES['text_encoder_2']}logit_scale", dtype=dtype, shape=(), make=lambda: scale)


def _stacked(rows: Iterable[Callable[[], torch.Tensor]]) -> torch.Tensor:
    return torch.cat([row() for row in rows])


def _transposed(make: Callable[[], torch.Tensor]) -> torch.Tensor:
    return make().T


def random_value(seed: int, dtype: torch.dtype, device: str = "cpu") -> Value:
    """Random weights of a scale that keeps the spread of what passes through them, so that float16 does not overflow.

    They are drawn on `device`: minutes on some CPUs, seconds on a GPU, which draws other numbers from the same seed.
    """
    generator = torch.Generator(device).manual_seed(seed)

    def value(name: str, parameter: torch.Tensor) -> torch.Tensor:
        tensor = torch.empty(parameter.shape, dtype=dtype, device=device)
        if name.endswith("bias"):
            return tensor.zero_().cpu()
        if tensor.ndim == 1:  # the gain of a normalisation
            return tensor.fill_(1).cpu()
        fan_in = tensor.numel() // tensor.shape[0]
        return tensor.normal_(0, 0.02 if "embeddings." in name else fan_in**-0.5, generator=generator).cpu()

    return value


def write(file: Path, tensors: Iterable[Entry]) -> int:
    """Writes a safetensors file one tensor at a time; returns how many. The format is that of safetensors 0.8's README."""
    ordered = sorted(tensors, key=lambda entry: (-entry.dtype.itemsize, entry.name))  # wide types first: all are aligned
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in ordered:
        begin, end = end, end + math.prod(entry.shape) * entry.dtype.itemsize
        header[entry.name] = {
            "dtype": FORMAT_NAMES[entry.dtype],
            "shape": entry.shape,
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    unfinished = file.with_name(f"{file.name}.unfinished")
    with unfinished.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little"))
        stream.write(text)
        for entry in ordered:
            tensor = entry.make().to(entry.dtype).contiguous().reshape(-1)
            if tensor.numel() != math.prod(entry.shape):
                raise ValueError(f"{entry.name} has {tensor.numel()} values where its shape is {entry.shape}")
            stream.write(tensor.view(torch.uint8).numpy().data)
    unfinished.replace(file)
    return len(ordered)


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes an SDXL as one .safetensors file in the original layout.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--from", dest="folder", type=Path, metavar="FOLDER", help="an SDXL in diffusers' layout")
    source.add_argument("--random", action="store_true", help="a full-size SDXL base of random weights")
    parser.add_argument("--seed", type=int, default=0, help="for the random weights")
    parser.add_argument("--device", default="cpu", help="where the random weights are drawn")
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="float16")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    arguments = parser.parse_args()
    dtype: torch.dtype = getattr(torch, arguments.dtype)
    began = time.monotonic()
    if arguments.random:
        models = {part: empty_model(part, SDXL_BASE) for part in MODELS}
        tensors = entries(models, dtype, random_value(arguments.seed, dtype, arguments.device))
    else:
        loaded = load_components(arguments.folder, device="cpu", dtype=dtype, vae_dtype=dtype)
        tensors = entries({part: getattr(loaded, part) for part in MODELS}, dtype, lambda _, parameter: parameter)
    count = write(arguments.out, tensors)
    size = arguments.out.stat().st_size / 1e9
    print(f"{arguments.out}: {count} tensors, {size:.2f} GB, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
