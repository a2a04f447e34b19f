"""Logs never carry a prompt, a key, a token or a signed URL."""

import json

import pytest
import structlog

from ourvidz_sdxl.telemetry import set_up_logging


def test_secrets_are_starred_by_name_and_by_looks(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("json")
    token = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl"
    structlog.get_logger().info(
        "job_claimed",
        prompt="my secret wish",
        url=f"https://x.supabase.co/storage/v1/object/sign/b/p.png?token={token}",
        key="sb_secret_abcdef",
        job_id="1",
    )
    try:
        raise ValueError("refused sb_secret_abcdef")
    except ValueError:
        structlog.get_logger().exception("job_failed")
    first, second = capsys.readouterr().err.splitlines()
    for line in (first, second):
        assert not any(secret in line for secret in ("secret wish", "abcdef", token))
    event = json.loads(first)
    assert (event["event"], event["job_id"], event["level"]) == ("job_claimed", "1", "info")
    assert "ValueError" in json.loads(second)["exception"]
