"""The worker's end of the pipe to its supervisor: what this process holds, once a second and whenever it changes.

Whatever kills the process, the supervisor then knows which leases to give back, and which job was on the GPU. The other way round,
a supervisor that is gone shows as a broken pipe.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

TICK_SECONDS = 1.0
PIPE_VARIABLE = "SUPERVISOR_PIPE"  # the number of the pipe's file descriptor, in the environment of a supervised process


@dataclass(frozen=True, kw_only=True)
class Sign:
    """One sign of life. `held` is the lease token of each job; `steps` grows while the GPU paints.

    `error` says why this worker stops claiming, and `faulty` that it never completed a job (`Gpu.faulty`).
    """

    held: Mapping[str, str] = field(default_factory=dict)
    painting: str | None = None
    steps: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    faulty: bool = False

    def to_line(self) -> bytes:
        return json.dumps(vars(self)).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Sign:
        return cls(**json.loads(line))


class Lifeline:
    """Without a supervisor it says nothing. `sign` is called from this thread and from whoever calls `tell`."""

    def __init__(self, sign: Callable[[], Sign], on_orphaned: Callable[[], None], pipe: int | None = None) -> None:
        self._sign = sign
        self._on_orphaned = on_orphaned
        self._pipe = pipe
        self._lock = threading.Lock()
        self._over = threading.Event()

    def __enter__(self) -> Lifeline:
        if self._pipe is not None:
            os.set_blocking(self._pipe, False)
            threading.Thread(target=self._tick, name="lifeline", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def tell(self) -> None:
        """Says at once what is held now."""
        if self._pipe is None:
            return
        with self._lock:  # so that two signs arrive in their order
            try:
                os.write(self._pipe, self._sign().to_line())  # at most a few KB: whole or not at all
            except BlockingIOError:
                return  # the supervisor is slow; the next sign says it all again
            except OSError:
                self._pipe = None
                self._on_orphaned()

    def _tick(self) -> None:
        while self._pipe is not None and not self._over.wait(TICK_SECONDS):
            self.tell()


def pipe_from_environment() -> int | None:
    """Taken out of the environment, so that no child of this process believes it has one too."""
    number = os.environ.pop(PIPE_VARIABLE, None)
    return None if number is None else int(number)
