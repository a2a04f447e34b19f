"""A whole worker with an engine that paints plain colours at once: for tests of everything but the painting.

STUB_STEP_SECONDS makes each denoising step last, so that a test can act in the middle of one. Some prompts are commands:

raise <ErrorName>   fails with that error of the tree, or of Python's, and "raise" alone with a RuntimeError
large               runs out of memory unless it is painted frugally
hang                never takes its second step
busy                computes on in Python, so that no other thread gets the interpreter for long
die                 the process kills itself

STUB_RAISES=<ErrorName> in the environment makes every job fail so, STUB_PROOF=<ErrorName> every proof painting, and
STUB_DIES_AT_START is for a GPU on which nothing comes up;
with STUB_RAISES or STUB_DIES_AT_START the supervisor makes no pauses. With --supervised it runs under the supervisor, as
`worker.py run` does.
"""

import builtins
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence

from PIL import Image

from ourvidz_sdxl import errors, supervisor
from ourvidz_sdxl.cli import end
from ourvidz_sdxl.engine import EngineChoice, OnStep
from ourvidz_sdxl.plan import Plan
from ourvidz_sdxl.settings import Settings
from ourvidz_sdxl.startup import run_worker
from ourvidz_sdxl.telemetry import set_up_logging


class StubEngine:
    native_size = 64
    model = "stub"
    model_hash = "0" * 64
    gpu = None
    vram_mb = None
    choice = EngineChoice(kind="stub")

    def __init__(self, step_seconds: float) -> None:
        self._step_seconds = step_seconds
        self._painting = False

    def warm_up(self) -> bool:
        return False

    def prove(self) -> None:
        if fault := os.environ.get("STUB_PROOF"):
            raise error_named(fault)

    def encode_prompts(self, plan: Plan) -> None:
        pass

    def paint(self, plan: Plan, reference: Image.Image | None, on_step: OnStep, *, frugal: bool = False) -> Sequence[Image.Image]:
        assert not self._painting, "two jobs were painted at once"
        self._painting = True
        try:
            if fault := os.environ.get("STUB_RAISES"):
                raise error_named(fault)
            if plan.prompt.startswith("raise"):
                raise error_named(plan.prompt.removeprefix("raise").strip())
            if plan.prompt == "large" and not frugal:
                raise errors.OutOfMemory
            for step in range(plan.painted_steps):
                time.sleep(self._step_seconds)
                on_step(step + 1, plan.painted_steps)
                while plan.prompt == "busy":
                    on_step(step + 1, plan.painted_steps)  # until it is cancelled
                if plan.prompt == "hang":
                    threading.Event().wait()
                if plan.prompt == "die":
                    os.kill(os.getpid(), signal.SIGKILL)
            return [reference or Image.new("RGB", (plan.width, plan.height), "teal") for _ in plan.seeds]
        finally:
            self._painting = False

    def preview(self, index: int) -> Image.Image | None:
        return Image.new("RGB", (8, 8), "teal")

    def peak_vram_mb(self) -> None:
        return None

    def reserved_vram_mb(self) -> None:
        return None


def error_named(name: str) -> type[Exception]:
    found: type[Exception] = getattr(errors, name, None) or getattr(builtins, name or "RuntimeError")
    return found


if __name__ == "__main__":
    settings = Settings.from_env(os.environ)
    set_up_logging(settings.log_format, settings.log_level)
    if "--supervised" in sys.argv:
        if os.environ.keys() & {"STUB_DIES_AT_START", "STUB_RAISES"}:
            supervisor.MAX_PAUSE_SECONDS = 0
        end(supervisor.supervise(settings, [sys.executable, "-m", "tests.stub_worker"]))
    if "STUB_DIES_AT_START" in os.environ:
        sys.exit(70)
    end(run_worker(settings, lambda: StubEngine(float(os.environ.get("STUB_STEP_SECONDS", "0")))))
