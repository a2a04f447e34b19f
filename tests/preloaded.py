"""Python processes of the tests that need not import torch, diffusers and our modules each for itself: 15 seconds of a slow core.

A server (`python -m tests.preloaded SOCKET`, one for the whole run of pytest) imports them once, when it is first asked, and forks
for each process that a test starts. `Popen` has the interface and the meaning of `subprocess.Popen`, except that the parent of what
it starts is the server. Where no server runs (elsewhere than on Linux, or without pytest) it is `subprocess.Popen`.
"""

from __future__ import annotations

import fcntl
import functools
import gc
import inspect
import json
import os
import runpy
import select
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ourvidz_sdxl.local import ROOT
from tests.pace import TIMEOUT_SECONDS

VARIABLE = "FORK_SERVER"  # the server's socket
HIGH = 512  # descriptors from here on are in no child's way
MOST_DESCRIPTORS = 16
MOST_BYTES = 1 << 18


class Popen(subprocess.Popen[Any]):
    """subprocess.Popen for `python script …` and `python -m module …` in a process that has imported everything already.

    It overrides what subprocess.Popen is made of in every Python from 3.11 on: to start, to look, and to wait.
    """

    _server: socket.socket | None = None  # says the process's id, and its exit status when it ends

    def _execute_child(self, *arguments: Any) -> None:
        if not os.environ.get(VARIABLE):
            super()._execute_child(*arguments)  # type: ignore[misc]
            return
        asked = inspect.signature(subprocess.Popen._execute_child).bind(self, *arguments).arguments  # type: ignore[attr-defined]
        standard = [asked["p2cread"], asked["c2pwrite"], asked["errwrite"]]
        descriptors = {number: fd if fd >= 0 else number for number, fd in enumerate(standard)} | {
            fd: fd for fd in asked["pass_fds"]
        }
        request = {
            "arguments": [os.fspath(argument) for argument in asked["args"]],
            "environment": (os.environ if asked["env"] is None else asked["env"]) | {VARIABLE: os.environ[VARIABLE]},
            "folder": os.fspath(asked["cwd"] or Path.cwd()),
            "descriptors": list(descriptors),
            "process_group": asked["process_group"],
            "new_session": asked["start_new_session"],
        }
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._server.connect(os.environ[VARIABLE])
            socket.send_fds(self._server, [json.dumps(request).encode()], list(descriptors.values()))
            self.pid = int(self._server.recv(MOST_BYTES) or -1)
        finally:
            self._close_pipe_fds(*(asked[name] for name in PIPES))  # type: ignore[attr-defined]
        if self.pid < 0:
            raise ChildProcessError("the fork server ended")
        self._child_created = True

    def _internal_poll(self, *arguments: Any, **keywords: Any) -> int | None:
        if self._server is None:
            return super()._internal_poll(*arguments, **keywords)  # type: ignore[misc,no-any-return]
        with suppress(subprocess.TimeoutExpired):
            self._wait(0)
        return self.returncode

    def _wait(self, timeout: float | None) -> int:
        if self._server is None:
            return super()._wait(timeout)  # type: ignore[misc,no-any-return]
        with self._waitpid_lock:  # type: ignore[attr-defined]
            if self.returncode is None:
                if not select.select([self._server], [], [], timeout)[0]:
                    raise subprocess.TimeoutExpired(self.args, timeout or 0)
                self.returncode = int(self._server.recv(MOST_BYTES) or -signal.SIGKILL)  # nothing: the server itself was killed
                self._server.close()
        return int(self.returncode)


def run(command: Sequence[str], *, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """subprocess.run for such a command, in this project's folder, with what it wrote; ends what hangs."""
    with Popen(command, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            written, told = process.communicate(timeout=TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, written, told)


PIPES = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")


@contextmanager
def fork_server() -> Iterator[None]:
    """Runs the server for this process and all that it starts; it has imported nothing before it is first asked."""
    if sys.platform != "linux":
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/socket"
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.preloaded", path],
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},  # numpy's library would begin with a thread for each core
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdin
        assert process.stdout
        try:
            process.stdout.readline()  # it listens
            os.environ[VARIABLE] = path
            yield
        finally:
            os.environ.pop(VARIABLE, None)
            process.stdin.close()
            process.stdout.close()
            process.wait()


def serve(path: str) -> None:
    """Forks for whoever asks, and tells them how it ended, until standard input ends."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen(64)
    ends, end_seen = socket.socketpair()
    end_seen.setblocking(False)
    signal.set_wakeup_fd(end_seen.fileno())
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    selector = selectors.DefaultSelector()
    for source in (listener, ends, sys.stdin):
        selector.register(source, selectors.EVENT_READ)
    sys.stdout.write("listening\n")
    sys.stdout.flush()
    askers: dict[int, socket.socket] = {}
    while sys.stdin not in (ready := {key.fileobj for key, _ in selector.select()}):
        if ends in ready:
            ends.recv(64)
            for process in [process for process in askers if os.waitid(os.P_PID, process, ENDED)]:
                _, status = os.waitpid(process, 0)
                with askers.pop(process) as asker, suppress(OSError):  # nobody may listen any more
                    asker.send(str(os.waitstatus_to_exitcode(status)).encode())
                    os.kill(process_at_the_other_end(asker), signal.SIGCHLD)  # as a parent would get it
        if listener in ready:
            asker, _ = listener.accept()
            asked, descriptors, _, _ = socket.recv_fds(asker, MOST_BYTES, MOST_DESCRIPTORS)
            preload()
            process = os.fork()
            if process == 0:
                become(json.loads(asked), descriptors)
            askers[process] = asker
            asker.send(str(process).encode())
            for descriptor in descriptors:
                os.close(descriptor)


ENDED = os.WEXITED | os.WNOHANG | os.WNOWAIT


def process_at_the_other_end(connection: socket.socket) -> int:
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[0])


@functools.cache
def preload() -> None:
    import ourvidz_sdxl.cli  # sets what must be set before the others
    import ourvidz_sdxl.demo
    import ourvidz_sdxl.doctor
    import ourvidz_sdxl.engine.fast.engine
    import ourvidz_sdxl.engine.load
    import ourvidz_sdxl.startup
    import ourvidz_sdxl.supervisor  # noqa: F401

    [_the_only_thread] = Path("/proc/self/task").iterdir()  # a fork has no other than the one that forked
    gc.collect()
    gc.freeze()


def become(asked: dict[str, Any], descriptors: Sequence[int]) -> None:
    """This process becomes `python arguments…`, as `subprocess.Popen` would have started it."""
    status = 1
    try:
        if asked["new_session"]:
            os.setsid()
        if asked["process_group"] not in (None, -1):
            os.setpgid(0, asked["process_group"])
        kept = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, HIGH) for descriptor in descriptors]
        os.closerange(3, HIGH)
        for descriptor, number in zip(kept, asked["descriptors"], strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.chdir(asked["folder"])
        os.environ.clear()
        os.environ.update(asked["environment"])
        status = run_here(asked["arguments"][1:])
    except BaseException:  # noqa: BLE001  as the interpreter does at its end
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def run_here(arguments: list[str]) -> int:
    """Runs `python arguments…`, and returns its exit status."""
    from ourvidz_sdxl import demo, supervisor

    ours = SimpleNamespace(**(vars(subprocess) | {"Popen": Popen}))
    for starting_workers in (demo, supervisor):
        vars(starting_workers)["subprocess"] = ours
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    kind, *others = (argument for argument in arguments if argument != "-u")
    try:
        if kind == "-m":
            sys.argv = others
            runpy.run_module(others[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv = [kind, *others]
            runpy.run_path(kind, run_name="__main__")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1 if ended.code else 0
    return 0


if __name__ == "__main__":
    serve(sys.argv[1])
