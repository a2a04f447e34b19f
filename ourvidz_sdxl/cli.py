"""run | doctor | top | exporter | demo.

Imports what a command needs only when it runs: `--help` and a wrong setting are answered at once.
"""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports huggingface_hub: no model ever comes from the network
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it would tell every operator that torchvision is not needed here
# Without it torch looks for a folder that can be written, and does not start where the disk is full. Nothing of ours is compiled.
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", "/tmp")  # noqa: S108

import argparse
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from dotenv import load_dotenv

from ourvidz_sdxl.errors import ModelInvalid, ModelMissing, SettingsInvalid
from ourvidz_sdxl.exit_code import ExitCode
from ourvidz_sdxl.settings import Settings
from ourvidz_sdxl.telemetry import set_up_logging


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    return _in_words(lambda: options.command(options))


def serve_requests() -> int:
    """What handler.py does: the worker on RunPod serverless."""

    def serve() -> int:
        from ourvidz_sdxl.serverless import serve

        try:
            serve(_settings())
        except SystemExit as ended:  # the SDK's own way, where it was given --test_input
            return int(ended.code or 0)
        return ExitCode.DRAINED

    return _in_words(serve)


def end(status: int) -> NoReturn:
    """Ends the process without the interpreter's own end, in which a thread that is still inside of torch aborts it (SIGABRT)."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # a log that cannot be written stops nothing
            stream.flush()
    os._exit(status)


def _in_words(command: Callable[[], int]) -> int:
    """The exit status; what only the operator can mend is told in a line."""
    try:
        return int(command())
    except (SettingsInvalid, ModelMissing, ModelInvalid) as error:
        print(f"{error.code}: {error}", file=sys.stderr)  # noqa: T201  for the operator
        return ExitCode.SETTINGS


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="worker.py", description="Paints rows of a Supabase jobs table with SDXL.")
    parser.set_defaults(command=_run, unsupervised=False, watch_stdin=False)
    commands = parser.add_subparsers(title="commands")

    run = commands.add_parser("run", help="claim and paint jobs until SIGTERM, with a process for each GPU (the default)")
    run.add_argument("--unsupervised", action="store_true", help="one process alone, which nobody starts again")
    run.add_argument("--watch-stdin", action="store_true", help="stop, as at SIGTERM, when standard input ends")
    run.set_defaults(command=_run)
    doctor = commands.add_parser("doctor", help="check the settings, Supabase, the model and this machine")
    doctor.add_argument("--json", action="store_true", help="one JSON object in place of lines")
    doctor.set_defaults(command=_doctor)
    top = commands.add_parser("top", help="the queue and the fleet, live in the terminal")
    top.add_argument("--once", action="store_true", help="print it once and end")
    top.add_argument("--every", type=float, default=2.0, metavar="SECONDS", help="how often to look (default 2)")
    top.set_defaults(command=_top)
    told = "the queue's figures of all targets for Prometheus, without a model or a GPU, on port HTTP_PORT (default 9091)"
    exporter = commands.add_parser("exporter", help=told, description=f"Exports {told}, until SIGTERM.")
    exporter.set_defaults(command=_export)

    demo = commands.add_parser("demo", help="embedded Supabase + this worker + a first job")
    demo.add_argument("--once", action="store_true", help="end after the job instead of staying up")
    demo.add_argument("--prompt", help='default: "a red circle on a blue background"')
    demo.add_argument("--reference", type=Path, metavar="FILE", help="paint from this picture")
    demo.add_argument("--strength", type=float, help="how much of the reference to keep, 0..1 (default 0.5)")
    demo.add_argument("--exact-copy", action="store_true", help="copy the reference")
    demo.add_argument("--batch", type=int, choices=(1, 3, 6), default=1)
    demo.add_argument("--seed", type=int)
    demo.add_argument("--out", type=Path, default=Path("demo-output"), metavar="DIR", help="where the pictures go")
    demo.add_argument("--data-dir", type=Path, metavar="DIR", help="the embedded Supabase's data (default: .local/supabase)")
    demo.set_defaults(command=_demo)
    return parser


def _settings() -> Settings:
    load_dotenv()
    settings = Settings.from_env(os.environ)
    set_up_logging(settings.log_format, settings.log_level)
    return settings


def _run(arguments: argparse.Namespace) -> int:
    settings = _settings()
    if arguments.watch_stdin:
        threading.Thread(target=_end_with_stdin, name="stdin", daemon=True).start()
    if not arguments.unsupervised:
        from ourvidz_sdxl.supervisor import supervise

        return supervise(settings, [sys.executable, sys.argv[0], "run", "--unsupervised"])
    from ourvidz_sdxl.startup import load_real_engine, run_worker

    return run_worker(settings, lambda: load_real_engine(settings))


def _end_with_stdin() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


def _doctor(options: argparse.Namespace) -> int:
    from ourvidz_sdxl.doctor import examine

    load_dotenv()
    set_up_logging(level="error")  # the checks themselves say what is wrong
    return examine(os.environ, as_json=options.json)


def _top(options: argparse.Namespace) -> int:
    from ourvidz_sdxl.top import top

    settings = _settings()
    set_up_logging(level="error")
    return top(settings, once=options.once, every_seconds=options.every)


def _export(_: argparse.Namespace) -> int:
    from ourvidz_sdxl.exporter import export

    return export(_settings())


def _demo(options: argparse.Namespace) -> int:
    from ourvidz_sdxl.demo import Wish, demo

    set_up_logging(level="warning")
    wish = Wish(
        prompt=options.prompt if options.prompt is not None else "" if options.exact_copy else "a red circle on a blue background",
        reference=options.reference,
        strength=options.strength,
        exact_copy=options.exact_copy,
        batch=options.batch,
        seed=options.seed,
    )
    return demo(wish, out=options.out, once=options.once, data_dir=options.data_dir)
