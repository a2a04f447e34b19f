"""Is it the right kind of key, of the right project? Read from the key itself; whether Supabase takes it is asked later."""

from __future__ import annotations

import base64
import binascii
import json
import time
from typing import Any
from urllib.parse import urlsplit

from ourvidz_sdxl.doctor.finding import Finding, fail, ok
from ourvidz_sdxl.settings import Settings

COPY = "Copy the secret key (sb_secret_…) from the project's settings, under API Keys, into SUPABASE_SERVICE_ROLE_KEY."
ROLES = {
    "anon": "the anon key, which belongs in a frontend",
    "authenticated": "a user's session token",
}


def check_key(settings: Settings) -> Finding:
    key = settings.supabase_service_role_key.get_secret_value()
    if key.startswith("sb_secret_"):
        return ok("a secret key")
    if key.startswith("sbp_"):
        return fail("This is a personal access token, for Supabase's own tools.", COPY)
    claims = read_claims(key)
    if claims is None:
        return fail("This is neither a secret key nor a service_role key: it may have been cut off, or be a password.", COPY)
    role = claims.get("role")
    if role != "service_role":
        return fail(f"This is {ROLES.get(str(role), f'a token with the role {role!r}')}.", COPY)
    if claims.get("exp", float("inf")) < time.time():
        return fail("This service_role key has expired.", COPY)
    host, project = urlsplit(settings.supabase_url).hostname or "", claims.get("ref")
    if project and host.endswith(".supabase.co") and host != f"{project}.supabase.co":
        return fail(f"This key is of the project {project}, and SUPABASE_URL of {host.partition('.')[0]}.", COPY)
    return ok("a service_role key")


def read_claims(token: str) -> dict[str, Any] | None:
    """What a JSON web token says of itself, unproven; None for anything else."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (binascii.Error, ValueError):
        return None
    return claims if isinstance(claims, dict) else None
