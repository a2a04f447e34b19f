"""What every run of the tests shares."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from tests.preloaded import fork_server


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # else one of xdist's processes, which has the server of the process that started it
        running = ExitStack()
        running.enter_context(fork_server())
        config.add_cleanup(running.close)
