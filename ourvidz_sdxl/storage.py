"""Encoded files -> objects in the private buckets, at paths that a second upload under the same lease writes again."""

from __future__ import annotations

from functools import partial

import httpx
from storage3.exceptions import StorageApiError
from storage3.types import FileOptions
from supabase import Client

from ourvidz_sdxl.connection import patiently
from ourvidz_sdxl.encode import EncodedFile
from ourvidz_sdxl.errors import ReferenceInvalid, SupabaseUnavailable, UploadFailed, UploadRefused
from ourvidz_sdxl.job import Job

REFERENCE_BUCKET = "reference_images"
DOWNLOAD_PATIENCE_SECONDS = 3.0  # after which no pause before another try begins: a lane is for jobs that can be painted

NO_SUCH_OBJECT = {"400", "404", "406", "410", "422"}  # statuses of a download that another try would meet again
# Of an upload: too large, a wrong type. A 400 may be a connection that broke, unless it is of the name (`InvalidKey`); 401, 403 and
# a bucket's 404 are the operator's to mend.
UPLOAD_REFUSED = {"413", "415", "InvalidKey"}
MAX_REMOVED_OBJECTS = 1000  # a request; Storage refuses more (src/storage/limits.ts of storage-api)


def bucket_of(job: Job) -> str:
    """Outputs lie in the bucket that is named like the job's type."""
    return job.job_type.value


def path_of(job: Job, index: int, file: EncodedFile) -> str:
    """<user id>/<job id>/<claim>-<index>.<suffix>: one lease never touches another's objects."""
    return f"{job.user_id}/{job.id}/{job.claims}-{index}.{file.suffix}"


class Storage:
    def __init__(self, client: Client, *, patience_seconds: float) -> None:
        self._client = client
        self._patience_seconds = patience_seconds

    def upload(self, bucket: str, path: str, file: EncodedFile) -> None:
        """Raises UploadFailed when Storage does not answer within the patience, and UploadRefused for what it never takes."""
        # upsert: after a lost reply the same bytes go to the same path again
        options: FileOptions = {"content-type": file.mime_type, "upsert": "true", "cache-control": "31536000"}
        bucket_api = self._client.storage.from_(bucket)
        try:
            patiently(lambda: bucket_api.upload(path, file.content, options), seconds=self._patience_seconds, name="upload")
        except (StorageApiError, httpx.TransportError) as error:
            refused = isinstance(error, StorageApiError) and not UPLOAD_REFUSED.isdisjoint({str(error.status), error.code})
            kind = UploadRefused if refused else UploadFailed
            raise kind(f"{bucket}: {type(error).__name__}: {error}") from None

    def remove(self, bucket: str, paths: list[str]) -> None:
        """Removes objects, in batches of MAX_REMOVED_OBJECTS; missing ones are ignored. Raises UploadFailed as `upload` does."""
        bucket_api = self._client.storage.from_(bucket)
        try:
            for start in range(0, len(paths), MAX_REMOVED_OBJECTS):
                remove = partial(bucket_api.remove, paths[start : start + MAX_REMOVED_OBJECTS])
                patiently(remove, seconds=self._patience_seconds, name="remove")
        except (StorageApiError, httpx.TransportError) as error:
            raise UploadFailed(f"{bucket}: {type(error).__name__}: {error}") from None

    def download_reference(self, job: Job) -> bytes:
        """The bytes at the job's `reference_image_path`. Raises ReferenceInvalid (not there, not theirs), SupabaseUnavailable."""
        path = job.reference_image_path or ""
        bucket, rest = REFERENCE_BUCKET, path
        if not path.startswith(f"{job.user_id}/"):
            bucket, _, rest = path.partition("/")
        if not rest.startswith(f"{job.user_id}/"):
            raise ReferenceInvalid(user_message="The reference image is not in your own folder.")
        bucket_api = self._client.storage.from_(bucket)
        try:
            patience_seconds = min(DOWNLOAD_PATIENCE_SECONDS, self._patience_seconds)
            return patiently(lambda: bucket_api.download(rest), seconds=patience_seconds, name="download")
        except StorageApiError as error:
            if str(error.status) in NO_SUCH_OBJECT:
                raise ReferenceInvalid(user_message="The reference image does not exist.") from None
            raise SupabaseUnavailable(f"{bucket}: {error.code}") from None
        except httpx.TransportError as error:
            raise SupabaseUnavailable(f"{bucket}: {type(error).__name__}") from None
