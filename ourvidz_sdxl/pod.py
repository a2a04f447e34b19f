"""The RunPod pod that this worker runs in. RunPod starts a container that ended again, so only its API ends a pod."""

from __future__ import annotations

import requests
import structlog
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from ourvidz_sdxl.settings import Settings

TRIES = 5
TIMEOUT_SECONDS = 15

log = structlog.get_logger()


class _Passing(Exception):
    """RunPod did not answer, or not now."""


def remove_own_pod(settings: Settings) -> bool:
    """Asks RunPod to remove this pod, which kills this process too; False, at once, where it is in none or may not ask.

    DELETE /v2/pods/{id}: deletePod of https://api.runpod.io/v2/openapi.json (204). What must stay lies on a network volume.
    """
    if not (settings.runpod_pod_id and settings.runpod_api_key):
        return False
    address = f"{settings.runpod_rest_url}/pods/{settings.runpod_pod_id}"
    headers = {"Authorization": f"Bearer {settings.runpod_api_key.get_secret_value()}"}
    retrying = Retrying(
        retry=retry_if_exception_type(_Passing), stop=stop_after_attempt(TRIES), wait=wait_random_exponential(max=10), reraise=True
    )
    try:
        status = retrying(_delete, address, headers)
    except _Passing as failure:
        log.error("pod_not_removed", pod_id=settings.runpod_pod_id, reason=str(failure))
        return False
    gone = status in (204, 404)
    if gone:
        log.info("pod_removed", pod_id=settings.runpod_pod_id)
    else:
        log.error("pod_not_removed", pod_id=settings.runpod_pod_id, reason=f"HTTP {status}")
    return gone


def _delete(address: str, headers: dict[str, str]) -> int:
    try:
        status = requests.delete(address, headers=headers, timeout=TIMEOUT_SECONDS, allow_redirects=False).status_code
    except requests.RequestException as error:
        raise _Passing(type(error).__name__) from None
    if status in (408, 429) or status >= 500:
        raise _Passing(f"HTTP {status}")
    return status
