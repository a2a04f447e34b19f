"""The worker's `Storage` against the Storage API."""

from __future__ import annotations

import pytest
from supabase import ClientOptions, create_client

from ourvidz_sdxl.encode import EncodedFile
from ourvidz_sdxl.errors import UploadFailed
from ourvidz_sdxl.local import EmbeddedSupabase
from ourvidz_sdxl.storage import MAX_REMOVED_OBJECTS, Storage

BUCKET = "sdxl_image_fast"
FILE = EncodedFile(content=b"\x89PNG", mime_type="image/png", suffix="png")


@pytest.fixture
def storage(supabase: EmbeddedSupabase) -> Storage:
    client = create_client(supabase.url, supabase.secret_key, ClientOptions(auto_refresh_token=False))
    return Storage(client, patience_seconds=5)


def test_removes_more_objects_than_one_request_may_name(storage: Storage, supabase: EmbeddedSupabase) -> None:
    first, last = "removal/first.png", "removal/last.png"
    for path in (first, last):
        storage.upload(BUCKET, path, FILE)
    missing = [f"removal/{index}.png" for index in range(MAX_REMOVED_OBJECTS)]
    storage.remove(BUCKET, [first, *missing, last])
    client = create_client(supabase.url, supabase.secret_key, ClientOptions(auto_refresh_token=False))
    assert client.storage.from_(BUCKET).list("removal") == []


def test_a_name_outside_the_rule_of_storage_is_an_upload_that_failed(storage: Storage) -> None:
    with pytest.raises(UploadFailed, match=r"Invalid key: removal/ü\.png"):
        storage.upload(BUCKET, "removal/ü.png", FILE)
