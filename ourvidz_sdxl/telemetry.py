"""Logs: events with keys, JSON in a pipe and colours on a terminal. Never a prompt, a key or a signed URL."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from traceback import TracebackException
from typing import Any, TextIO

import structlog

# Whatever carries somebody's words or rights is dropped by its name, and, where it hides in a text, by its looks.
SECRET_KEYS = {"prompt", "negative_prompt", "enhanced_prompt", "reference_image_url", "apikey", "authorization"}
SECRET_LOOKS = re.compile(
    r"sb_secret_[\w-]+|sb_publishable_[\w-]+"
    r"|eyJ[\w-]{8,}\.[\w-]+(?:\.[\w-]*)?"  # a JSON web token
    r"|(?<=[?&])(?:token|apikey|X-Amz-Signature)=[^&\s\"']+"
)


# Libraries and errors may quote the job that they failed at.
_withheld: ContextVar[set[str] | None] = ContextVar("withheld", default=None)


@contextmanager
def withholding(*texts: str | None) -> Iterator[None]:
    """Inside, on this thread, no word of `texts` gets into the log by way of an error or a library."""
    token = _withheld.set(set())
    try:
        withhold(*texts)
        yield
    finally:
        _withheld.reset(token)


def withhold(*texts: str | None) -> None:
    """Adds to what is withheld: words and not whole texts, since a part may be quoted. The shortest say nothing by themselves."""
    if (words := _withheld.get()) is not None:
        words.update(word.lower() for text in texts for word in re.findall(r"\w{4,}", str(text or "")))


def _without_words(text: str) -> str:
    words = _withheld.get()
    return re.sub(r"\w{4,}", lambda found: "***" if found[0].lower() in words else found[0], text) if words else text


def redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor."""
    for key, value in event.items():
        if key in SECRET_KEYS:
            event[key] = "***"
        elif isinstance(value, str):
            foreign = key == "reason" or (key == "event" and not event.get("_from_structlog", True))
            event[key] = SECRET_LOOKS.sub("***", _without_words(value) if foreign else value)
    return event


def tell_error(exc_info: Any) -> str:
    """As Python prints it, less what is withheld; the lines of code stay whole."""

    def tell(error: TracebackException) -> Iterator[str]:
        if error.__cause__ is not None:
            yield from tell(error.__cause__)
            yield "\nwhich was the cause of\n\n"
        elif error.__context__ is not None and not error.__suppress_context__:
            yield from tell(error.__context__)
            yield "\nand while that was handled\n\n"
        yield from error.stack.format()
        yield from map(_without_words, error.format_exception_only())

    return "".join(tell(TracebackException(*exc_info))).rstrip()


class LossyStream:
    """Writes what it can. A full disk or a closed pipe behind the log must not stop a job."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError):  # ValueError: the stream is closed
            self._stream.write(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()


def set_up_logging(log_format: str = "auto", level: str = "info") -> None:
    """Logs go to standard error; standard output belongs to whoever called the command."""
    stream: Any = LossyStream(sys.stderr)
    as_text = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.ExceptionRenderer(tell_error),
        redact,
    ]
    renderer: Any = structlog.dev.ConsoleRenderer() if as_text else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    # Libraries speak up only in trouble; httpx, for one, would log every URL.
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.captureWarnings(True)
    # Its client reports each lost connection as an error; `wakeup` says it once, as a warning.
    logging.getLogger("realtime").setLevel(logging.CRITICAL)
