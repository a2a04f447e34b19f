"""A denoising step, and the VAE, as CUDA graphs: captured once a shape in well under a second, replayed by one launch.

A graph replays the same kernels on the same addresses. So each owns the tensors that it reads and those that it leaves results in;
a job copies its values in. Only numbers of the shape are part of a graph: steps, noise levels, guidance scale, prompts and weights
are not (weights changed in place, by a LoRA say, are in the next replay).

All graphs share one pool of memory: none needs what another left there, and no two run at once. On the CPU nothing is captured,
and replaying means calling.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from ourvidz_sdxl.engine.fast import kernels
from ourvidz_sdxl.engine.fast.unet import FastUNet
from ourvidz_sdxl.engine.fast.vae import FastDecoder, FastEncoder, as_bytes

GRAPHS_KEPT = 24  # four sizes in three batch sizes, with and without guidance; a graph's own nodes take some 10 MB
# The pool's first piece: what the VAE and a batch of 6 need at 1024 x 1024. Without it, they took 1 GB more, in fragments.
ARENA_BYTES = 1792 << 20
LEAST_ROOM_BYTES = 1 << 30  # on top of that, for what the usual batches differ in, whatever the limit

G = TypeVar("G")


@dataclass(frozen=True, kw_only=True)
class StepShape:
    """What a step's graph is captured for. `height` and `width` are the latents'; `tokens` the prompt's, 77 for a short one.

    `euler`: the step ends with the new latents; otherwise with the prediction, for a scheduler outside of the graph.
    `unet`: which of the engine's.
    """

    images: int
    height: int
    width: int
    tokens: int
    guided: bool
    euler: bool
    unet: int = 0


class Pool:
    """Where graphs are captured: one stream and one pool of memory for all, so that each reuses what the others leave free."""

    def __init__(self) -> None:
        self._memory = torch.cuda.MemPool()
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._stream), torch.cuda.use_mem_pool(self._memory):
            torch.empty(ARENA_BYTES, dtype=torch.uint8, device="cuda")  # given back at once: one piece, to be cut as needed

    def captured(self, body: Callable[[], None]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream), torch.cuda.use_mem_pool(self._memory):
            with kernels.compiled_ahead():
                body()
            body()  # cuDNN and cuBLAS choose their algorithms
        # Other threads encode and upload meanwhile, and may call CUDA: only this thread's calls are looked at.
        pool: Any = self._memory.id
        with torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"):
            body()
        return graph


class Replayable:
    """A function of no arguments, run as a graph where there is a pool for graphs, and as it is elsewhere."""

    def __init__(self, body: Callable[[], None], pool: Pool | None) -> None:
        self.replay: Callable[[], None] = body if pool is None else pool.captured(body).replay


class Step(Replayable):
    """One denoising step of all images of a job.

    Inputs: `latents` fp32 [images, 4, h, w]; `texts` and `times` as FastUNet makes them, the latter of one step; `numbers`.
    Replaying leaves the guided prediction in `prediction`, and with `shape.euler` the next latents in `latents`.
    """

    NUMBERS = ("input_scale", "keep", "change", "guidance_scale")
    """The network sees latents x input_scale; the next latents are latents x keep + prediction x change."""

    def __init__(self, unet: FastUNet, shape: StepShape, pool: Pool | None) -> None:
        prompts = 2 if shape.guided else 1
        self.latents = torch.randn(shape.images, unet.latent_channels, shape.height, shape.width, device=unet.device)
        self.prediction = torch.empty_like(self.latents)
        self.texts = torch.zeros(prompts, shape.tokens, unet.text_width, dtype=unet.dtype, device=unet.device)
        self.times = torch.zeros(prompts, unet.time_width, dtype=unet.dtype, device=unet.device)
        self.numbers = torch.zeros(len(self.NUMBERS), device=unet.device)

        def body() -> None:
            input_scale, keep, change, guidance_scale = self.numbers.unbind()
            rows = (self.latents * input_scale).to(unet.dtype).repeat(prompts, 1, 1, 1)
            prediction = unet(rows, self.texts, self.times).float()
            if shape.guided:
                unguided, guided = prediction.chunk(2)
                prediction = unguided + guidance_scale * (guided - unguided)
            self.prediction.copy_(prediction)
            if shape.euler:
                self.latents.copy_(self.latents * keep + prediction * change)

        super().__init__(body, pool)


class Decode(Replayable):
    """`latents` fp32 [1, 4, h, w] -> `pixels` 8-bit [8 h, 8 w, 3], and `sound`: whether they are numbers, and not all black."""

    def __init__(self, decoder: FastDecoder, height: int, width: int, pool: Pool | None) -> None:
        self.latents = torch.randn(1, decoder.latent_channels, height, width, device=decoder.device)
        edges = (height * decoder.scale, width * decoder.scale)
        self.pixels = torch.empty(*edges, 3, dtype=torch.uint8, device=decoder.device)
        self.sound = torch.empty((), dtype=torch.bool, device=decoder.device)

        def body() -> None:
            pixels = decoder(self.latents)
            low, high = torch.aminmax(pixels)  # both are NaN if any pixel is
            self.sound.copy_(low.isfinite() & high.isfinite() & (high > -1))
            self.pixels.copy_(as_bytes(pixels))

        super().__init__(body, pool)


class Encode(Replayable):
    """`pixels` fp32 [height, width, 3] in -1..1 -> `latents` fp32 [1, 4, height / 8, width / 8] as the UNet has them."""

    def __init__(self, encoder: FastEncoder, height: int, width: int, pool: Pool | None) -> None:
        self.pixels = torch.zeros(height, width, 3, device=encoder.device)
        shape = (1, encoder.latent_channels, height // encoder.scale, width // encoder.scale)
        self.latents = torch.empty(shape, device=encoder.device)

        def body() -> None:
            self.latents.copy_(encoder(self.pixels))

        super().__init__(body, pool)


class Graphs:
    """The graphs of the shapes that were used last. Not for several threads."""

    def __init__(
        self,
        unets: Sequence[FastUNet],
        encoder: FastEncoder,
        decoder: FastDecoder,
        *,
        beside: threading.Lock,
        limit_bytes: float = math.inf,
        captured: bool = True,
    ) -> None:
        """`beside` is held by other threads while they use the GPU.

        `limit_bytes`: of the GPU's memory, weights included. Beyond it all graphs go, and those in use are captured again.
        A job that needs more for itself gets it all the same.
        """
        self._device = unets[0].device
        self._beside = beside
        self._captured = captured and self._device.type == "cuda"
        self._unets, self._encoder, self._decoder = unets, encoder, decoder
        weights = torch.cuda.memory_allocated(self._device) if self._captured else 0
        self._room_bytes = max(limit_bytes - weights - ARENA_BYTES, LEAST_ROOM_BYTES)
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()
        self._pool: Pool | None = None
        self._pool_bytes = 0

    def step(self, shape: StepShape) -> Step:
        return self._get(shape, lambda: Step(self._unets[shape.unet], shape, self._pool))

    def decode(self, height: int, width: int) -> Decode:
        """Of latents of this size."""
        return self._get(("decode", height, width), lambda: Decode(self._decoder, height, width, self._pool))

    def encode(self, height: int, width: int) -> Encode:
        """Of an image of this size."""
        return self._get(("encode", height, width), lambda: Encode(self._encoder, height, width, self._pool))

    def _get(self, key: Hashable, make: Callable[[], G]) -> G:
        if key not in self._kept:
            if self._pool_bytes > self._room_bytes:
                self.forget()
            if self._pool is None and self._captured:
                self._pool = Pool()
            reserved = self._reserved()
            self._kept[key] = make()
            self._pool_bytes += self._reserved() - reserved
        self._kept.move_to_end(key)
        if len(self._kept) > GRAPHS_KEPT:
            self._kept.popitem(last=False)
        return self._kept[key]  # type: ignore[no-any-return]

    def uncaptured(self) -> Graphs:
        """The same functions, called each time: slower, and without memory of their own."""
        return Graphs(self._unets, self._encoder, self._decoder, beside=self._beside, captured=False)

    def forget(self) -> None:
        """Lets go of every graph and of their memory, which the next `empty_cache` gives back."""
        self._kept.clear()
        if self._pool is not None:
            with self._beside:  # whoever multiplies there has a workspace, too
                torch._C._cuda_clearCublasWorkspaces()  # one of them is a piece of the pool, and would keep the whole of it
        self._pool, self._pool_bytes = None, 0

    def _reserved(self) -> int:
        if self._pool is None:
            return 0
        torch.cuda.empty_cache()  # so that only what is in use counts
        return torch.cuda.memory_reserved(self._device)
