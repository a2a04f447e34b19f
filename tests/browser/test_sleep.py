"""A page that slept past the end of its access token, and one whose session has ended: in a real Chromium, whose page is frozen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import sleep

import psycopg
import pytest
from playwright.sync_api import Page, Route, expect

from ourvidz_sdxl.local import EmbeddedSupabase, embedded_supabase
from ourvidz_sdxl.studio import serve_studio
from tests.browser.conftest import PASSWORD, PATIENCE_MS, Open, prompt, sign_up, tiles
from tests.browser.test_page import fill_gallery
from tests.fault_proxy import FaultProxy
from tests.processes import scratch_folder

JWT_EXPIRY_SECONDS = 10
HEARD_AGAIN_MS = PATIENCE_MS  # the ten seconds are measured by the test of the client, beside nothing else

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def supabase() -> Iterator[EmbeddedSupabase]:
    """Its access tokens are valid for ten seconds."""
    with scratch_folder() as folder, embedded_supabase(data_dir=folder, jwt_expiry_seconds=JWT_EXPIRY_SECONDS) as running:
        yield running


@pytest.fixture(scope="module")
def address(supabase: EmbeddedSupabase) -> Iterator[str]:
    with serve_studio(supabase) as url:
        assert url
        yield url


@contextmanager
def asleep(*pages: Page) -> Iterator[None]:
    """The pages do nothing at all, as under a laptop's closed lid, and wake when their tokens have ended."""
    sessions = [page.context.new_cdp_session(page) for page in pages]
    for session in sessions:
        session.send("Page.setWebLifecycleState", {"state": "frozen"})
    yield
    sleep(JWT_EXPIRY_SECONDS + 2)
    for session in sessions:
        session.send("Page.setWebLifecycleState", {"state": "active"})


def ask(supabase: EmbeddedSupabase, email: str) -> None:
    """A job that no worker takes, as another device of the user asks for it."""
    with psycopg.connect(supabase.db_url) as database:
        database.execute(
            """insert into public.jobs (user_id, job_type, prompt, target_worker)
               select id, 'sdxl_image_fast', 'a cat', 'nobody' from auth.users where email = %s""",
            [email],
        )


def end_sessions(supabase: EmbeddedSupabase, email: str) -> None:
    with psycopg.connect(supabase.db_url) as database:
        database.execute("delete from auth.sessions s using auth.users u where u.id = s.user_id and u.email = %s", [email])


@pytest.mark.parametrize("connection", ["stands", "is dead"])
def test_it_shows_what_it_missed_and_hears_again(
    open_studio: Open, supabase: EmbeddedSupabase, proxied_address: str, proxy: FaultProxy, connection: str
) -> None:
    """In two tabs of one browser, which renew their common session at the same moment."""
    one = open_studio(proxied_address)
    email = sign_up(one)
    expect(one.get_by_text("No pictures yet")).to_be_visible()
    other = one.context.new_page()
    other.goto(proxied_address)
    expect(other.get_by_text("No pictures yet")).to_be_visible()
    with asleep(one, other):
        ask(supabase, email)
        if connection == "is dead":
            proxy.close_sockets(1006)
    for page in (one, other):
        expect(tiles(page, "queued")).to_have_count(1, timeout=HEARD_AGAIN_MS)
    ask(supabase, email)
    for page in (one, other):
        expect(tiles(page, "queued")).to_have_count(2, timeout=HEARD_AGAIN_MS)
        expect(page.get_by_text("News comes a little late")).to_have_count(0, timeout=HEARD_AGAIN_MS)


def test_a_session_that_ended_meanwhile_asks_to_sign_in_and_keeps_what_was_typed(
    open_studio: Open, supabase: EmbeddedSupabase, address: str
) -> None:
    page = open_studio(address)
    email = sign_up(page)
    prompt(page).fill("a lighthouse at dusk")
    page.get_by_label("Seed").fill("7")
    with asleep(page):
        end_sessions(supabase, email)
    expect(page.get_by_text("Your session has ended")).to_be_visible(timeout=HEARD_AGAIN_MS)
    expect(page.get_by_label("E-mail address")).to_have_value(email)
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    page.get_by_role("button", name="Sign in").first.click()
    expect(prompt(page)).to_have_value("a lighthouse at dusk")
    expect(page.get_by_label("Seed")).to_have_value("7")


def test_who_signs_out_in_one_tab_is_signed_out_in_all_and_what_was_typed_is_not_anybody_elses(
    open_studio: Open, address: str
) -> None:
    page = open_studio(address)
    sign_up(page)
    prompt(page).fill("a secret")
    other = page.context.new_page()
    other.goto(address)
    other.get_by_role("button", name="Sign out").click()
    for tab in (page, other):
        expect(tab.get_by_label("E-mail address")).to_be_visible()
    page.get_by_label("E-mail address").fill("")
    sign_up(page)
    expect(prompt(page)).to_have_value("")


def test_a_picture_whose_url_has_expired_is_asked_for_again(open_studio: Open, supabase: EmbeddedSupabase, address: str) -> None:
    page = open_studio(address)
    email = sign_up(page)
    fill_gallery(supabase, email, 1)
    urls: list[str] = []

    def expired_at_first(route: Route) -> None:
        urls.append(route.request.url)
        if len(urls) > 1:
            return route.continue_()
        refusal = {"statusCode": "400", "error": "InvalidJWT", "message": '"exp" claim timestamp check failed'}
        return route.fulfill(status=400, json=refusal)

    page.route("**/object/sign/**", lambda route: expired_at_first(route) if route.request.method == "GET" else route.continue_())
    page.reload()
    picture = tiles(page, "completed").locator("img")
    expect(picture).to_have_js_property("naturalWidth", 64)
    assert urls[0] != urls[1]
