"""What the exit status of a worker says to whoever started it."""

from enum import IntEnum


class ExitCode(IntEnum):
    DRAINED = 0
    SETTINGS = 1  # the operator must mend the settings or the model; starting again would change nothing
    BROKEN = 70  # EX_SOFTWARE of sysexits.h: the GPU is unusable, or the worker's fault is unknown; a new process may do better
