"""One worker process a GPU, watched: what dies is given back to the queue at once and started again, what hangs is killed first.

The supervisor never touches a GPU and loads no model, so that nothing which kills a worker can kill it too. It knows its workers by
their lifelines: pipes that carry, once a second, the leases a worker holds and the job it paints.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from uuid import UUID

import structlog

from ourvidz_sdxl.connection import connect
from ourvidz_sdxl.errors import Released, SupabaseRefused, SupabaseUnavailable, WorkerDied
from ourvidz_sdxl.exit_code import ExitCode
from ourvidz_sdxl.host_probes import HostProbes, Place
from ourvidz_sdxl.lifeline import PIPE_VARIABLE, Sign
from ourvidz_sdxl.pod import remove_own_pod
from ourvidz_sdxl.probes import SOCKET_VARIABLE, listen, serve
from ourvidz_sdxl.queue import Lease, Outcome, Queue
from ourvidz_sdxl.queue_figures import QueueFigures
from ourvidz_sdxl.settings import Settings

SILENCE_SECONDS = 60.0  # without any sign of life: stopped, or stuck where no thread of it can run
MAX_STILLBORN = 5  # deaths in a row without being ready, or without completing a job, after which a GPU is given up
MAX_PAUSE_SECONDS = 60.0
STOP_PATIENCE_SECONDS = 10.0  # beyond the grace that workers give their jobs

log = structlog.get_logger()


class Child:
    """One worker process and what it last said."""

    def __init__(self, gpu: str | None, worker_id: str, place: Place | None = None) -> None:
        self.gpu = gpu
        self.place = place  # where it answers probes, if it does
        self.worker_id = worker_id
        self.process: subprocess.Popen[bytes] | None = None
        self.stillborn = 0
        self.start_at = 0.0  # when to start it (again), on the monotonic clock
        self._begin(pipe=-1)

    def start(self, command: Sequence[str], environ: Mapping[str, str]) -> int:
        """Returns the reading end of its lifeline."""
        reading, writing = os.pipe()
        environ = {**environ, PIPE_VARIABLE: str(writing), "WORKER_ID": self.worker_id}
        if self.gpu is not None:
            environ["CUDA_VISIBLE_DEVICES"] = self.gpu
        inherited = [writing]
        if self.place:
            inherited.append(self.place.listener.fileno())
            environ[SOCKET_VARIABLE] = str(inherited[-1])
            self.place.alive = True
        # a process group of its own: Ctrl-C comes to the supervisor alone, which passes it on
        self.process = subprocess.Popen(command, env=environ, pass_fds=inherited, process_group=0)  # noqa: S603  our own program
        os.close(writing)
        os.set_blocking(reading, False)
        self._begin(pipe=reading)
        log.info("worker_started", worker_id=self.worker_id, pid=self.process.pid, gpu=self.gpu)
        return reading

    def _begin(self, *, pipe: int) -> None:
        self.pipe = pipe
        self.buffer = b""
        self.sign = Sign()
        self.ready = False
        self.killed_for: str | None = None
        self.heard_at = self.stepped_at = time.monotonic()

    def hear(self) -> bool:
        """Takes in what came through the lifeline; False at its end."""
        try:
            received = os.read(self.pipe, 1 << 16)
        except BlockingIOError:
            return True
        *lines, self.buffer = (self.buffer + received).split(b"\n")
        if lines:
            sign, now = Sign.from_line(lines[-1]), time.monotonic()
            if (sign.painting, sign.steps) != (self.sign.painting, self.sign.steps):
                self.stepped_at = now
            self.sign, self.heard_at, self.ready = sign, now, True
        return bool(received)

    def fault(self, now: float, step_timeout_seconds: float) -> str | None:
        """Why it must be killed, if it must. While it loads its model nothing can be asked of it."""
        if not self.ready:
            return None
        if now - self.heard_at > SILENCE_SECONDS:
            return "silent"
        if self.sign.painting and now - self.stepped_at > step_timeout_seconds:
            return "gpu_hung"
        return None


class Supervisor:
    def __init__(self, settings: Settings, command: Sequence[str], gpus: Sequence[str], environ: Mapping[str, str]) -> None:
        """`gpus` are values for CUDA_VISIBLE_DEVICES; without any there is one worker, on whatever it finds."""
        self._settings = settings
        self._command = command
        self._environ = environ
        several = len(gpus) > 1
        names = [f"{settings.worker_id}-gpu{i}" if several else settings.worker_id for i in range(max(1, len(gpus)))]
        self._listener = listen(settings)
        places = [Place(gpu=str(i)) if self._listener else None for i in range(len(names))]
        self._children = [Child(gpus[i] if gpus else None, name, places[i]) for i, name in enumerate(names)]
        self._probes = HostProbes([place for place in places if place], QueueFigures(settings))
        self._selector = selectors.DefaultSelector()
        self._exit_code = ExitCode.DRAINED
        self._stop_by: float | None = None
        self._farewells: list[threading.Thread] = []
        self._queue: Queue | None = None

    def run(self) -> ExitCode:
        """Returns when all workers have ended: after SIGTERM or SIGINT, because they were idle, or because none can go on."""
        arrivals, departures = socket.socketpair()
        departures.setblocking(False)
        signal.set_wakeup_fd(departures.fileno())
        for caught in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(caught, lambda _number, _frame: None)
        self._selector.register(arrivals, selectors.EVENT_READ)
        if self._listener:
            serve(self._listener, self._probes.answers)
        self._watch(arrivals)
        for farewell in self._farewells:
            farewell.join(self._settings.shutdown_grace_seconds)
        return self._exit_code

    @property
    def told_to_stop(self) -> bool:
        return self._stop_by is not None

    def _watch(self, arrivals: socket.socket) -> None:
        while True:
            now = time.monotonic()
            self._probes.beat()
            for child in self._children:
                if child.process is None and self._stop_by is None and now >= child.start_at:
                    self._selector.register(child.start(self._command, self._environ), selectors.EVENT_READ, child)
            for key, _ in self._selector.select(timeout=1):
                if key.data is None:
                    for number in arrivals.recv(64):
                        if number != signal.SIGCHLD:  # which only ends the wait
                            self._stop(number)
                elif not key.data.hear():
                    self._selector.unregister(key.fd)  # it has closed the pipe; its end follows
            for child in [child for child in self._children if child.process]:
                self._look_after(child)
            if not any(child.process for child in self._children) and (self._stop_by is not None or not self._children):
                break

    def _look_after(self, child: Child) -> None:
        assert child.process  # noqa: S101  for the type checker
        now = time.monotonic()
        status = child.process.poll()
        if status is None:
            if self._stop_by is not None and now > self._stop_by:
                child.process.kill()
            elif fault := child.fault(now, self._settings.step_timeout_seconds):
                log.error("worker_killed", worker_id=child.worker_id, reason=fault)
                child.killed_for = fault
                child.process.kill()  # what it said last stays in `child.sign`
            return
        child.hear()  # what it said before it died
        if child.pipe in self._selector.get_map():
            self._selector.unregister(child.pipe)
        os.close(child.pipe)
        child.process = None
        if child.place:
            child.place.alive = False
        if status in (ExitCode.DRAINED, ExitCode.SETTINGS):
            self._children.remove(child)
            if child.sign.held:
                self._give_back(child, None)
            if status == ExitCode.SETTINGS:
                self._exit_code = ExitCode.SETTINGS
                self._stop(signal.SIGTERM)  # the others have the same settings
            return
        self._bury(child, status)

    def _bury(self, child: Child, status: int) -> None:
        """Gives back what a dead worker held, and decides when there is to be a new one."""
        reason = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        log.error("worker_died", worker_id=child.worker_id, reason=reason, held=len(child.sign.held))
        if child.place:
            self._probes.died(child.place.gpu, child.killed_for or "died")
        self._give_back(child, reason)
        child.stillborn = 0 if child.ready and not child.sign.faulty else child.stillborn + 1
        if child.stillborn >= MAX_STILLBORN:
            log.error("gpu_given_up", worker_id=child.worker_id, gpu=child.gpu)
            self._exit_code = ExitCode.BROKEN
            self._children.remove(child)
            return
        pause = min(MAX_PAUSE_SECONDS, 2.0**child.stillborn - 1)
        child.start_at = time.monotonic() + pause

    def _give_back(self, child: Child, death: str | None) -> None:
        """The dead write no more: their leases are the supervisor's to end. `death` is None after an orderly end."""
        # aside: a Supabase that is slow to answer must not keep the others waiting
        thread = threading.Thread(target=self._write_farewell, args=(child.worker_id, child.sign, death), daemon=True)
        thread.start()
        self._farewells = [farewell for farewell in self._farewells if farewell.is_alive()] + [thread]

    def _write_farewell(self, worker_id: str, sign: Sign, death: str | None) -> None:
        queue = self._queue = self._queue or Queue(connect(self._settings), self._settings)
        try:
            for job_id, token in sign.held.items():
                crashed = death is not None and job_id == sign.painting
                error = WorkerDied if crashed else Released
                verdict = queue.finish(
                    Lease(UUID(job_id), UUID(token), time.monotonic() + self._settings.lease_seconds),
                    Outcome.CRASHED if crashed else Outcome.RELEASED,
                    error={"code": error.code, "message": error.user_message},
                )
                log.warning("job_given_back", job_id=job_id, crashed=crashed, verdict=verdict)
            if death:
                facts = {**sign.facts, "error": sign.error or f"{WorkerDied.code}: {death}"}
                queue.report_worker("failed", facts, worker_id=worker_id)
        except (SupabaseUnavailable, SupabaseRefused) as failure:
            log.error("not_given_back", worker_id=worker_id, reason=str(failure))  # their leases run out

    def _stop(self, number: int) -> None:
        if self._stop_by is None:
            self._stop_by = time.monotonic() + self._settings.shutdown_grace_seconds + STOP_PATIENCE_SECONDS
        for child in self._children:
            if child.process:
                child.process.send_signal(number)


def supervise(settings: Settings, command: Sequence[str]) -> ExitCode:
    """Runs `command`, which must call `startup.run_worker`, once for each GPU until SIGTERM or SIGINT."""
    supervisor = Supervisor(settings, command, gpus(os.environ), os.environ)
    exit_code = supervisor.run()
    if exit_code is ExitCode.DRAINED and not supervisor.told_to_stop:  # all were idle (IDLE_EXIT_MINUTES)
        remove_own_pod(settings)
    return exit_code


def gpus(environ: Mapping[str, str]) -> list[str]:
    """The GPUs of this host as values for CUDA_VISIBLE_DEVICES, asked of the driver, without CUDA. Empty where there are none."""
    import pynvml  # type: ignore[import-untyped]

    if "CUDA_VISIBLE_DEVICES" in environ:
        return [gpu for gpu in environ["CUDA_VISIBLE_DEVICES"].split(",") if gpu not in ("", "-1")]
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return [pynvml.nvmlDeviceGetUUID(handle) for handle in handles]
    finally:
        pynvml.nvmlShutdown()
