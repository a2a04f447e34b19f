from tests.integration.conftest import db, other, service, supabase, user  # noqa: F401
