from tests.integration.conftest import db, long_pauses, other, service, supabase, user  # noqa: F401
