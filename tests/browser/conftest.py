"""A real Chromium on the built Studio page, with an embedded Supabase and a real worker with the bundled model behind it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect, sync_playwright

from ourvidz_sdxl.local import ROOT, EmbeddedSupabase
from ourvidz_sdxl.studio import DIST, serve_studio
from tests.fault_proxy import FaultProxy
from tests.pace import TIMEOUT_SECONDS
from tests.processes import TINY_MODEL, WorkerProcess, scratch_supabase
from tools.chromium import chromium

AXE = ROOT / "studio" / "node_modules" / "axe-core" / "axe.min.js"
SCREENSHOTS = ROOT / "docs" / "studio"
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
PASSWORD = "correct horse battery"
# as root in a container, and without calls of the browser's own to anywhere
FLAGS = ["--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
PATIENCE_MS = 1000 * TIMEOUT_SECONDS

Open = Callable[..., Page]


@pytest.fixture(scope="package")
def supabase() -> Iterator[EmbeddedSupabase]:
    """Where nothing else is asked for and nobody keeps screenshots, six steps are enough to tell the colours of a picture."""
    with scratch_supabase() as running:
        if not os.environ.get("WRITE_SCREENSHOTS"):
            with psycopg.connect(running.db_url) as database:
                database.execute("alter table public.jobs alter column steps set default 6")
        yield running


@pytest.fixture(scope="package")
def worker(supabase: EmbeddedSupabase) -> Iterator[WorkerProcess]:
    with WorkerProcess(supabase, model_path=TINY_MODEL) as running:
        yield running


@pytest.fixture(scope="package")
def address(supabase: EmbeddedSupabase) -> Iterator[str]:
    with serve_studio(supabase) as url:
        assert url, f"{DIST} is not there: `make test` builds it"
        yield url


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Ends with this folder's tests: as long as Playwright runs, no other test of this thread can have an event loop."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        expect.set_options(timeout=PATIENCE_MS)
        yield browser
        browser.close()


@pytest.fixture(autouse=True)
def _leaves_no_work_to_the_next_test(supabase: EmbeddedSupabase) -> Iterator[None]:
    yield
    with psycopg.connect(supabase.db_url, autocommit=True) as database:
        database.execute("update public.jobs set cancel_requested_at = now() where completed_at is null")
        deadline = time.monotonic() + PATIENCE_MS / 1000
        while database.execute("select from public.jobs where status = 'processing'").fetchall():
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.fixture
def open_studio(browser: Browser, address: str) -> Iterator[Open]:
    """Opens the page in a browser profile of its own. Whatever it says on its console as an error fails the test."""
    contexts: list[BrowserContext] = []
    errors: list[str] = []

    def opened(at: str = address, *, viewport: dict[str, int] = DESKTOP, **options: Any) -> Page:
        context = browser.new_context(viewport=viewport, **options)  # type: ignore[arg-type]
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if is_fault(message.type, message.text) else None)
        page.goto(at)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert errors == []


def is_fault(kind: str, text: str) -> bool:
    """Refused requests are part of some tests, and Chromium writes each of them down as an error."""
    return kind in {"error", "warning"} and "Failed to load resource" not in text and "WebSocket connection" not in text


@pytest.fixture
def proxy(supabase: EmbeddedSupabase) -> Iterator[FaultProxy]:
    with FaultProxy(supabase.url) as running:
        yield running


@pytest.fixture
def proxied_address(supabase: EmbeddedSupabase, proxy: FaultProxy) -> Iterator[str]:
    """The page with everything that it says to Supabase going through the proxy."""
    with serve_studio(replace(supabase, url=proxy.url)) as url:
        assert url
        yield url


def sign_up(page: Page) -> str:
    """Returns the address of the new account."""
    email = f"{uuid4().hex[:12]}@example.com"
    page.get_by_role("button", name="Make an account").click()
    page.get_by_label("E-mail address").fill(email)
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    page.get_by_role("button", name="Make an account").click()
    expect(prompt(page)).to_be_visible()
    return email


def prompt(page: Page) -> Locator:
    return page.get_by_label("Prompt", exact=True)


def paint(page: Page, words: str | None = None) -> None:
    if words is not None:
        prompt(page).fill(words)
    page.get_by_role("button", name="Paint", exact=True).click()


def choose(page: Page, group: str, option: str) -> None:
    """One of a row of choices, by clicking on it."""
    page.get_by_role("radiogroup", name=group).get_by_text(option, exact=True).click()


def more(page: Page, **numbers: int) -> None:
    """Opens what lies under More, and types there."""
    if not page.get_by_label("Steps").is_visible():
        page.get_by_role("button", name="More").click()
    for label, value in numbers.items():
        page.get_by_label(label.capitalize()).fill(str(value))


def tiles(page: Page, status: str) -> Locator:
    return page.locator(f'li[data-status="{status}"]')


def shoot(page: Page, name: str) -> None:
    """Keeps what the page looks like now, on `make screenshots`."""
    if not os.environ.get("WRITE_SCREENSHOTS"):
        return
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.wait_for_timeout(400)  # until what moves has come to rest
    page.screenshot(path=SCREENSHOTS / f"{name}.png", animations="disabled")


def violations(page: Page) -> list[str]:
    """What axe-core finds serious or critical (WCAG 2.2 A and AA, and its best practices)."""
    page.wait_for_timeout(400)  # a colour that is still fading has no contrast of its own
    page.add_script_tag(path=AXE)
    found: Any = page.evaluate("async () => (await axe.run()).violations")
    return [
        f"{rule['id']}: {json.dumps([node['html'][:200] for node in rule['nodes']])}"
        for rule in found
        if rule["impact"] in {"serious", "critical"}
    ]


def picture_file(folder: Path, size: tuple[int, int] = (128, 128)) -> Path:
    """Green, with a white square in the middle."""
    from PIL import Image

    image = Image.new("RGB", size, (20, 160, 60))
    image.paste((250, 250, 250), (size[0] // 3, size[1] // 3, 2 * size[0] // 3, 2 * size[1] // 3))
    path = folder / "reference.png"
    image.save(path)
    return path
