"""What both phases of training share: how long they last, how they step, and the average of their weights."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

_WARM_UP_STEPS: Final = 200
_LAST_RATE: Final = 0.01  # of the highest
_AVERAGE_DECAY: Final = 0.999
_STEPS_AHEAD: Final = 20  # how far Python may run before the GPU, so that the clock means something
_TRIALS_BEFORE_CAPTURE: Final = 3  # https://pytorch.org/docs/stable/notes/cuda.html#cuda-graphs


@dataclass(frozen=True, kw_only=True)
class Budget:
    """A phase ends after so many steps or seconds, whichever comes first. Only steps make a run repeatable."""

    steps: int
    seconds: float = math.inf


@dataclass(frozen=True, kw_only=True)
class _Captured:
    """One whole step as a CUDA graph: fill `inputs`, replay, read `loss`."""

    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    loss: Tensor


class Learner:
    """AdamW with warm-up, a cosine to almost nothing, and a running average of the weights.

    On CUDA the loss is computed by a copy of the modules in bfloat16, the weights that learn stay in float32, and a whole
    step is one CUDA graph for each set of input shapes: models this small would otherwise wait for Python.
    """

    def __init__(self, modules: nn.ModuleList, loss: Callable[..., Tensor], *, rate: float, budget: Budget) -> None:
        """`loss(modules, *inputs)` gives a scalar; it must not look at values on the CPU."""
        first = next(modules.parameters())
        self._on_cuda = first.is_cuda
        self._loss = loss
        self._working = copy.deepcopy(modules).to(torch.bfloat16 if self._on_cuda else torch.float32)
        self.average = copy.deepcopy(modules).eval().requires_grad_(False)
        self._weights: list[Tensor] = list(modules.parameters())
        self._working_weights: list[Tensor] = list(self._working.parameters())
        self._average_weights: list[Tensor] = list(self.average.parameters())
        self._gradients = [torch.zeros_like(weight) for weight in self._weights]
        for weight, gradient in zip(self._weights, self._gradients, strict=True):
            weight.grad = gradient
        self._optimiser = torch.optim.AdamW(
            self._weights,
            lr=torch.tensor(0.0, device=first.device),  # a tensor, so that it can change inside a captured step
            betas=(0.9, 0.99),
            weight_decay=0.01,
            fused=self._on_cuda,
            capturable=self._on_cuda,
        )
        self._rate: Tensor = self._optimiser.param_groups[0]["lr"]
        self._blend = get_ema_multi_avg_fn(_AVERAGE_DECAY)  # type: ignore[no-untyped-call]
        self._captured: dict[tuple[torch.Size, ...], _Captured] = {}
        self._highest_rate = rate
        self._budget = budget
        self._started = time.monotonic()
        self.steps_done = 0

    @property
    def elapsed_seconds(self) -> float:
        return time.monotonic() - self._started

    @property
    def progress(self) -> float:
        """From 0 to 1, by steps or by time."""
        return min(max(self.steps_done / self._budget.steps, self.elapsed_seconds / self._budget.seconds), 1.0)

    def step(self, *inputs: Tensor) -> Tensor:
        """One step down the loss of these inputs. Gives the loss, which the next step may overwrite."""
        cosine = (1 + math.cos(math.pi * self.progress)) / 2
        warmth = min((self.steps_done + 1) / _WARM_UP_STEPS, 1.0)
        self._rate.fill_(self._highest_rate * warmth * (_LAST_RATE + (1 - _LAST_RATE) * cosine))
        loss = self._replay(inputs) if self._on_cuda else self._learn(*inputs)
        self.steps_done += 1
        if self._on_cuda and self.steps_done % _STEPS_AHEAD == 0:
            torch.cuda.synchronize()
        return loss

    def _learn(self, *inputs: Tensor) -> Tensor:
        with torch.no_grad():
            torch._foreach_copy_(self._working_weights, self._weights)
        loss = self._loss(self._working, *inputs)
        gradients = torch.autograd.grad(loss, self._working_weights, allow_unused=True)
        used = [(own, new) for own, new in zip(self._gradients, gradients, strict=True) if new is not None]
        torch._foreach_copy_([own for own, _ in used], [new for _, new in used])
        nn.utils.clip_grad_norm_(self._weights, 1.0)
        self._optimiser.step()
        with torch.no_grad():
            self._blend(self._average_weights, self._weights, self.steps_done)
        return loss.detach()

    def _replay(self, inputs: tuple[Tensor, ...]) -> Tensor:
        shapes = tuple(tensor.shape for tensor in inputs)
        if shapes not in self._captured:
            self._captured[shapes] = self._capture(inputs)
        captured = self._captured[shapes]
        for own, given in zip(captured.inputs, inputs, strict=True):
            own.copy_(given)
        captured.graph.replay()
        return captured.loss

    def _capture(self, inputs: tuple[Tensor, ...]) -> _Captured:
        """Record a step. The trials that have to come first are steps like any other, only uncounted."""
        own = tuple(tensor.clone() for tensor in inputs)
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_TRIALS_BEFORE_CAPTURE):
                self._learn(*own)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        pools = [captured.graph.pool() for captured in self._captured.values()]
        with torch.cuda.graph(graph, pool=pools[0] if pools else None):
            loss = self._learn(*own)
        return _Captured(graph=graph, inputs=own, loss=loss)
