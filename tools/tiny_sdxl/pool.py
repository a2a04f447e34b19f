"""What training shows the model: scenes with captions, planned in blocks, described on the CPU, painted on the device.

A block holds scenes of one picture size, so that its pictures make one batch. Describing (sampling scenes, writing
captions, tokenizing) is Python and runs in processes of its own; painting is `raster.py`.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTokenizer

from tools.tiny_sdxl.captions import caption
from tools.tiny_sdxl.raster import coverage, free_scenes, paint
from tools.tiny_sdxl.shapes import PALETTE, SHAPES, sample_scene
from tools.tiny_sdxl.tokenizer import CONTEXT_LENGTH

SIZES: Final[dict[tuple[int, int], float]] = {
    (128, 128): 0.60,
    (168, 96): 0.06,
    (96, 168): 0.06,
    (152, 104): 0.06,
    (104, 152): 0.06,
    (192, 128): 0.04,
    (128, 192): 0.04,
    (192, 192): 0.04,
    (256, 256): 0.04,
}
"""(width, height) in pixels and its share of the blocks: eighths of SDXL's usual sizes, and some larger ones."""

BLOCK_LENGTH: Final = 512
_COLOUR_SPREAD: Final = 3.0  # standard deviation of 0..255 around the palette


@dataclass(frozen=True, kw_only=True)
class Block:
    """`count` scenes of one picture size. An `original` smaller than the picture means that it was scaled up from there."""

    seed: int
    count: int
    width: int
    height: int
    original_width: int
    original_height: int

    @property
    def time_ids(self) -> tuple[int, ...]:
        """SDXL's six numbers: original height and width, crop top and left, target height and width."""
        return (self.original_height, self.original_width, 0, 0, self.height, self.width)


@dataclass(frozen=True, kw_only=True)
class Described:
    """A block's scenes as arrays of `count` rows. Colours are in [-1, 1], centres in fractions, `ids` are tokens."""

    block: Block
    shape: npt.NDArray[np.int64]
    colour: npt.NDArray[np.float32]
    background: npt.NDArray[np.float32]
    centre: npt.NDArray[np.float32]
    radius: npt.NDArray[np.float32]
    ids: npt.NDArray[np.uint16]


def plan_blocks(scenes: int, seed: int) -> list[Block]:
    """Blocks for so many scenes, every size among them.

    One block in ten is scaled up from a smaller original and one in ten down from a larger one (which looks like any
    other), so that the original size means to this model what it means to SDXL.
    """
    rng = random.Random(seed)
    blocks: list[Block] = []
    total = max(scenes // BLOCK_LENGTH, len(SIZES))
    for index in range(total):
        sizes = list(SIZES)
        width, height = sizes[index] if index < len(sizes) else rng.choices(sizes, list(SIZES.values()))[0]
        kind = rng.random()
        zoom = rng.uniform(0.4, 0.8) if kind < 0.1 else rng.uniform(1.0, 8.0) if kind < 0.2 else 1.0
        blocks.append(
            Block(
                seed=rng.getrandbits(48),
                count=min(BLOCK_LENGTH, scenes),
                width=width,
                height=height,
                original_width=round(width * zoom),
                original_height=round(height * zoom),
            )
        )
    return blocks


def describe(block: Block, tokenizer: Path) -> Described:
    """Sample the block's scenes and write and tokenize their captions. The block's seed decides everything."""
    rng = random.Random(block.seed)
    scenes = [sample_scene(rng) for _ in range(block.count)]
    texts = [caption(scene, rng) for scene in scenes]
    tokens = _tokenizer(tokenizer)(texts, padding="max_length", max_length=CONTEXT_LENGTH, truncation=True, return_tensors="np")
    noise = np.random.default_rng(block.seed)
    colours = [PALETTE[scene.combination.colour] for scene in scenes]
    backgrounds = [PALETTE[scene.combination.background] for scene in scenes]
    return Described(
        block=block,
        shape=np.array([SHAPES.index(scene.combination.shape) for scene in scenes], dtype=np.int64),
        colour=_spread(colours, noise),
        background=_spread(backgrounds, noise),
        centre=np.array([scene.centre for scene in scenes], dtype=np.float32),
        radius=np.array([scene.radius for scene in scenes], dtype=np.float32),
        ids=tokens.input_ids.astype(np.uint16),
    )


@dataclass(frozen=True, kw_only=True)
class Shelf:
    """All scenes of one picture size, on the device.

    `pictures` and `free_pictures` (for the autoencoder alone) are (n, 3, height, width) in 0..255, `ids` are the first
    tokenizer's tokens (n, 77), `time_ids` (n, 6).
    """

    pictures: Tensor
    free_pictures: Tensor
    ids: Tensor
    time_ids: Tensor


def fill_shelves(described: Iterable[Described], *, free_share: float, generator: torch.Generator) -> list[Shelf]:
    """Paint every scene once, and a share of free scenes beside them. One shelf for each of `SIZES`, in order."""
    by_size: dict[tuple[int, int], list[Shelf]] = {size: [] for size in SIZES}
    for item in described:
        block = item.block
        free = free_scenes(round(block.count * free_share), width=block.width, height=block.height, generator=generator)
        by_size[block.width, block.height].append(
            Shelf(
                pictures=_to_bytes(picture(item, generator.device)),
                free_pictures=_to_bytes(free),
                ids=torch.from_numpy(item.ids.astype(np.int32)).to(generator.device),
                time_ids=torch.tensor([block.time_ids], dtype=torch.float32, device=generator.device).repeat(block.count, 1),
            )
        )
    return [
        Shelf(
            pictures=torch.cat([part.pictures for part in parts]),
            free_pictures=torch.cat([part.free_pictures for part in parts]),
            ids=torch.cat([part.ids for part in parts]),
            time_ids=torch.cat([part.time_ids for part in parts]),
        )
        for parts in by_size.values()
    ]


def picture(described: Described, device: torch.device) -> Tensor:
    """The block's pictures as (count, 3, height, width) in [-1, 1]."""
    block = described.block
    width, height = min(block.width, block.original_width), min(block.height, block.original_height)
    alpha = coverage(
        torch.from_numpy(described.shape).to(device),
        torch.from_numpy(described.centre).to(device) * torch.tensor([width, height], device=device),
        torch.from_numpy(described.radius).to(device) * min(width, height),
        width=width,
        height=height,
    )
    background = torch.from_numpy(described.background).to(device)[:, :, None, None].expand(-1, -1, height, width)
    painted = paint(background, torch.from_numpy(described.colour).to(device), alpha)
    return functional.interpolate(painted, size=(block.height, block.width), mode="bilinear")


def from_bytes(pictures: Tensor) -> Tensor:
    """0..255 to [-1, 1], in the layout that convolutions like best."""
    return (pictures.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def _to_bytes(pictures: Tensor) -> Tensor:
    return ((pictures + 1) * 127.5).round().clamp(0, 255).byte()


@cache
def _tokenizer(folder: Path) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(folder)


def _spread(colours: list[tuple[int, int, int]], noise: np.random.Generator) -> npt.NDArray[np.float32]:
    rgb = np.array(colours) + noise.normal(0, _COLOUR_SPREAD, (len(colours), 3))
    return (rgb.clip(0, 255) / 127.5 - 1).astype(np.float32)
