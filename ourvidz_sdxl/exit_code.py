"""What the exit status of a worker says to whoever started it."""

from enum import IntEnum


class ExitCode(IntEnum):
    DRAINED = 0
    SETTINGS = 1  # the operator must mend the settings or the model; starting again would change nothing
    BROKEN = (
        70  # EX_SOFTWARE of sysexits.h: this process cannot paint (`Gpu.unusable_because`), or met an unknown error; a new one may
    )
