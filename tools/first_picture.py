"""The first picture of a project: `python -m tools.first_picture you@example.com "a red circle" first.png`.

A frontend does this with its user's own token. Here the operator does it for the user of that address, with the worker's key
(SUPABASE_URL and SUPABASE_SERVICE_ROLE_KEY): the user is made if there is none, a job of theirs is inserted, and its picture is
saved when a worker has painted it. Each change of the job, and of the workers asked for, is told.

Exit status: 0 painted, 1 the job or the settings are wrong, 2 a wrong option.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from dotenv import load_dotenv
from supabase import AuthApiError, Client, ClientOptions, create_client

from ourvidz_sdxl.errors import SettingsInvalid
from ourvidz_sdxl.settings import Settings

LOOK_SECONDS = 1.0
PATIENCE_SECONDS = 1800  # fetching the image and the model takes minutes on a new host
USERS_A_PAGE = 1000


def user_of(client: Client, email: str) -> str:
    """The id of the user with that address, who is made if there is none; nobody needs to confirm anything."""
    try:
        return client.auth.admin.create_user({"email": email, "email_confirm": True}).user.id
    except AuthApiError as error:
        if error.code not in ("email_exists", "user_already_exists"):
            raise
    page = 1
    while users := client.auth.admin.list_users(page=page, per_page=USERS_A_PAGE):
        for user in users:
            if user.email == email.lower():
                return user.id
        page += 1
    raise LookupError(f"there is a user {email}, who is not in the list of users")


def paint(
    client: Client, job: dict[str, Any], tell: Callable[[str], None], pause: Callable[[float], None] = time.sleep
) -> bytes | None:
    """The picture's file; None where the job ended otherwise, or nothing happened for PATIENCE_SECONDS."""
    told = ""
    for _ in range(int(PATIENCE_SECONDS / LOOK_SECONDS)):
        row = _row(
            client.table("jobs").select("status, error_code, error_message, progress").eq("id", job["id"]).single().execute()
        )
        start = client.table("worker_starts").select("state, error").order("created_at", desc=True).limit(1).execute().data
        now = _words(row, cast("list[dict[str, Any]]", start))
        if now != told:
            tell(told := now)
        if row["status"] in ("completed", "failed", "cancelled"):
            break
        pause(LOOK_SECONDS)
    if row["status"] != "completed":
        return None
    image = _row(client.table("job_images").select("bucket, path").eq("job_id", job["id"]).eq("index", 0).single().execute())
    return client.storage.from_(image["bucket"]).download(image["path"])


def _words(row: dict[str, Any], starts: list[dict[str, Any]]) -> str:
    if row["status"] == "failed":
        return f"failed: {row['error_code']}: {row['error_message']}"
    if row["status"] != "queued" or not starts:
        return str(row["status"])
    return f"queued; a worker: {starts[0]['state']}" + (f" ({starts[0]['error']})" if starts[0]["error"] else "")


def _row(answer: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", answer.data)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.first_picture", description="Has a first picture painted.")
    parser.add_argument("email", help="whose picture it is; the user is made if there is none")
    parser.add_argument("prompt")
    parser.add_argument("out", type=Path, help="where the picture goes")
    options = parser.parse_args(arguments)
    load_dotenv()
    try:
        settings = Settings.from_env(os.environ)
    except SettingsInvalid as error:
        print(error, file=sys.stderr)
        return 1
    key = settings.supabase_service_role_key.get_secret_value()
    client = create_client(settings.supabase_url, key, ClientOptions(auto_refresh_token=False))
    wish = {
        "user_id": user_of(client, options.email),
        "job_type": "sdxl_image_fast",
        "prompt": options.prompt,
        "target_worker": settings.target_worker,
        "output_format": "png",
    }
    job = cast("dict[str, Any]", client.table("jobs").insert(wish).execute().data[0])
    began = time.monotonic()
    picture = paint(client, job, lambda words: print(f"{time.monotonic() - began:7.1f} s  {words}", flush=True))
    if picture is None:
        return 1
    options.out.write_bytes(picture)
    print(f"{time.monotonic() - began:7.1f} s  {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
