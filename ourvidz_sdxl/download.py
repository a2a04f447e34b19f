"""MODEL_URL -> MODEL_PATH: the checkpoint, fetched once, checked, and only then put in its place.

What has come lies in `<MODEL_PATH>.part` and is gone on with after any break, also by another process. One process of a host
fetches at a time; the others wait for it, and find the file. The hash is of what was read back from the disk, so that a disk that
lies is found out, too.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import requests
import structlog
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_random_exponential

from ourvidz_sdxl.errors import ModelInvalid, ModelNotDownloaded
from ourvidz_sdxl.settings import Settings

CHUNK_BYTES = 1 << 16  # what a break loses at most
CONNECT_SECONDS, SILENCE_SECONDS = 10, 60
PATIENCE_SECONDS = 1800.0  # with a server that gives nothing; whatever comes begins it anew
REPORT_SECONDS = 10.0
SPARE_BYTES = 1 << 30  # what the disk must have left when all has come

log = structlog.get_logger()


class _Interrupted(ModelNotDownloaded):
    """The connection broke, or the server has trouble that may pass."""


def fetch_model(settings: Settings, *, on_progress: Callable[[], None] = lambda: None) -> None:
    """Sees to it that MODEL_PATH is there, where MODEL_URL says whence. `on_progress` is called every ten seconds meanwhile.

    A file that is there is left as it is: `worker.py doctor` compares its hash, and who wants another one names another path.
    Raises ModelNotDownloaded when it cannot be had, and ModelInvalid when what came is not what MODEL_SHA256 says.
    """
    url, path = settings.model_url, settings.model_path
    if url is None or path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path):
        if path.exists():  # another process was first
            return
        part = path.with_name(f"{path.name}.part")
        token = settings.model_url_token.get_secret_value() if settings.model_url_token else None
        log.info("model_download_began", bytes=_size(part))
        began = time.monotonic()
        try:
            _fetch(url, token, part, on_progress)
            digest = _sha256(part)
        except OSError as error:
            raise ModelNotDownloaded(f"{part} cannot be written: {error.strerror}") from None
        if digest != settings.model_sha256:
            part.unlink()
            raise ModelInvalid(f"what MODEL_URL gave has the SHA-256 {digest}, and not MODEL_SHA256; it was thrown away")
        part.replace(path)
        log.info("model_downloaded", bytes=_size(path), seconds=round(time.monotonic() - began))


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process of this host at a time; the lock goes with the process."""
    with path.with_name(f"{path.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fetch(url: str, token: str | None, part: Path, on_progress: Callable[[], None]) -> None:
    came_at = time.monotonic()

    def fetch() -> None:
        nonlocal came_at
        before = _size(part)
        try:
            _fetch_on(url, token, part, on_progress)
        finally:
            if _size(part) > before:
                came_at = time.monotonic()

    Retrying(
        retry=retry_if_exception_type(_Interrupted),
        wait=wait_random_exponential(multiplier=0.5, max=30),
        stop=lambda _: time.monotonic() - came_at > PATIENCE_SECONDS,
        before_sleep=_say,
        reraise=True,
    )(fetch)


def _say(state: RetryCallState) -> None:
    log.warning("model_download_interrupted", reason=str(state.outcome and state.outcome.exception()))


def _fetch_on(url: str, token: str | None, part: Path, on_progress: Callable[[], None]) -> None:
    """From where `part` ends. The server is asked for the rest only if its file is the one that was begun (If-Range, RFC 9110)."""
    have, tag_file = _size(part), part.with_name(f"{part.name}.etag")
    tag = tag_file.read_text() if have and tag_file.exists() else None
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-", "If-Range": tag} if tag else {})
    if token:
        headers["Authorization"] = f"Bearer {token}"  # requests drops it at a redirect to another host
    try:
        with requests.Session() as session:
            session.trust_env = False  # neither .netrc nor a proxy gets to see the token
            answer = session.get(url, headers=headers, stream=True, timeout=(CONNECT_SECONDS, SILENCE_SECONDS))
            with answer:
                if url.startswith("https:") and not answer.url.startswith("https:"):
                    raise ModelNotDownloaded("the server of MODEL_URL leads to an address without https")
                begin = _begin(answer, have if tag else 0)
                tag_file.write_text(_validator(answer))
                _write(answer, part, begin, on_progress)
    except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
        raise _Interrupted(f"the server of MODEL_URL cannot be reached or broke off ({type(error).__name__})") from None
    except requests.RequestException as error:
        raise ModelNotDownloaded(f"MODEL_URL cannot be fetched ({type(error).__name__})") from None
    tag_file.unlink()


def _begin(answer: requests.Response, have: int) -> int:
    """Where in the file the answer's bytes belong."""
    status = answer.status_code
    if status == 206:
        if answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            return have
        raise ModelNotDownloaded("the server of MODEL_URL sent another part than it was asked for")
    if status == 200:
        return 0  # all of it: it knows no ranges, or its file is another one now
    if status == 416:  # nothing is left of what was begun, or the file is shorter now
        raise ModelNotDownloaded("the server of MODEL_URL has no such part (HTTP 416); remove the .part file beside MODEL_PATH")
    if status in (408, 425, 429) or status >= 500:
        raise _Interrupted(f"the server of MODEL_URL answers HTTP {status}")
    hint = "; is MODEL_URL_TOKEN right?" if status in (401, 403) else ""
    raise ModelNotDownloaded(f"the server of MODEL_URL answers HTTP {status}{hint}")


def _validator(answer: requests.Response) -> str:
    """By what the server knows this very file again; nothing where it gives none that is strong enough for parts."""
    tag: str = answer.headers.get("ETag", "")
    return tag if tag.startswith('"') else answer.headers.get("Last-Modified", "")


def _write(answer: requests.Response, part: Path, begin: int, on_progress: Callable[[], None]) -> None:
    length = answer.headers.get("Content-Length")
    total = begin + int(length) if length and length.isdigit() else None
    if total and shutil.disk_usage(part.parent).free < total - begin + SPARE_BYTES:
        raise ModelNotDownloaded(f"the disk of {part.parent} has no room for {(total - begin) / 1e9:.1f} GB more")
    reported = time.monotonic()
    with part.open("r+b" if begin else "wb") as file:
        file.seek(begin)
        file.truncate()
        for chunk in answer.iter_content(CHUNK_BYTES):
            file.write(chunk)
            if time.monotonic() - reported > REPORT_SECONDS:
                reported = time.monotonic()
                log.info("model_downloading", bytes=file.tell(), of=total)
                on_progress()
        file.flush()
        os.fsync(file.fileno())
    if total and _size(part) != total:
        raise _Interrupted("the server of MODEL_URL broke off")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
