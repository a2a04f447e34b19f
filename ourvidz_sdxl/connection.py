"""One supabase client for REST and Storage, and the rule which of their failures pass by themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import httpx
from postgrest.exceptions import APIError
from storage3.exceptions import StorageApiError
from supabase import Client, ClientOptions, create_client
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from ourvidz_sdxl import tracing
from ourvidz_sdxl.metrics import FAILURES, RETRIES
from ourvidz_sdxl.settings import Settings

T = TypeVar("T")

# HTTP states that Supabase documents as passing; 544 is Storage's database timeout.
PASSING_STATUS = {"423", "429", "500", "502", "503", "504", "544"}
# PostgREST without its database, then the SQLSTATE classes for connection, resources, shutdown or timeout, and rollback.
PASSING_CODE_PREFIXES = ("PGRST00", "08", "53", "57", "40")
PAUSE = wait_random_exponential(multiplier=0.25, max=5)


def connect(settings: Settings) -> Client:
    """The service-role client. HTTP/1.1 with kept-alive connections; safe to use from several threads."""
    http = httpx.Client(timeout=settings.request_timeout_seconds, limits=httpx.Limits(max_keepalive_connections=16))
    return create_client(
        settings.supabase_url,
        settings.supabase_service_role_key.get_secret_value(),
        ClientOptions(auto_refresh_token=False, persist_session=False, httpx_client=http),
    )


def is_passing(error: BaseException) -> bool:
    """Whether the same call may succeed a moment later."""
    if isinstance(error, APIError):
        code = str(error.code or "")
        return code in PASSING_STATUS or (len(code) >= 5 and code.startswith(PASSING_CODE_PREFIXES))
    if isinstance(error, StorageApiError):
        return str(error.status) in PASSING_STATUS
    return isinstance(error, httpx.TransportError)


def patiently(call: Callable[[], T], *, seconds: float, name: str) -> T:
    """Makes an idempotent call until it succeeds, fails for good, or `seconds` are over; then raises its last error.

    Under `name` it is counted how often that took more than one attempt, and how often it failed.
    """

    def again(state: RetryCallState) -> None:
        error = state.outcome and state.outcome.exception()
        RETRIES.labels(name).inc()
        tracing.event("retry", call=name, error=type(error).__name__)

    retrying = Retrying(
        retry=retry_if_exception(is_passing),
        wait=PAUSE,
        stop=stop_after_delay(seconds),
        before_sleep=again,
        reraise=True,
    )
    try:
        return retrying(call)
    except Exception as error:
        FAILURES.labels(name, "unavailable" if is_passing(error) else "refused").inc()
        raise
