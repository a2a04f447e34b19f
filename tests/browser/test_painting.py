"""What somebody does on the page, from signing up to the finished picture."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import psycopg
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from ourvidz_sdxl.local import EmbeddedSupabase
from tests.browser.conftest import (
    PASSWORD,
    PHONE,
    Open,
    choose,
    more,
    paint,
    picture_file,
    prompt,
    shoot,
    sign_up,
    tiles,
)
from tests.fault_proxy import FaultProxy

pytestmark = [pytest.mark.usefixtures("worker"), pytest.mark.timeout(240)]

RED_ON_BLUE = "a red circle on a blue background"
MANY_STEPS = 30


def download(page: Page, position: int = 0) -> Image.Image:
    """The picture as the page's own button saves it, from the viewer that is left open."""
    tiles(page, "completed").nth(position).get_by_role("button").click()
    with page.expect_download() as saved:
        page.get_by_role("button", name="Download").click()
    return Image.open(io.BytesIO(Path(saved.value.path()).read_bytes()))


def colours(image: Image.Image) -> tuple[str, str]:
    """Of the middle and of a corner, by their strongest channels."""

    def named(at: tuple[int, int]) -> str:
        red, green, blue = image.convert("RGB").getpixel(at)  # type: ignore[misc]
        strong = [name for name, value in (("red", red), ("green", green), ("blue", blue)) if value > 120]
        return "white" if len(strong) == 3 else "-".join(strong)

    return named((image.width // 2, image.height // 2)), named((6, 6))


@pytest.mark.parametrize("device", ["desktop", "phone"])
def test_from_signing_up_to_a_picture_in_the_colours_of_its_prompt(open_studio: Open, device: str) -> None:
    page = open_studio(viewport=PHONE) if device == "phone" else open_studio()
    expect(page.get_by_role("heading", name="Studio")).to_be_visible()
    shoot(page, f"sign-in-{device}")
    sign_up(page)
    expect(page.get_by_text("No pictures yet")).to_be_visible()
    shoot(page, f"empty-{device}")

    page.get_by_role("button", name=RED_ON_BLUE).click()
    expect(prompt(page)).to_have_value(RED_ON_BLUE)
    more(page, steps=MANY_STEPS)
    page.get_by_role("button", name="More").click()
    choose(page, "Pictures", "3")
    paint(page)
    running = tiles(page, "processing")
    expect(running).to_have_count(3)
    expect(running.first.get_by_text("Step ")).to_be_visible()
    expect(running.locator("[data-preview]").first).to_be_visible()
    expect(running.first.get_by_text(re.compile(r"Step [12]\d of"))).to_be_visible()  # by now the previews show something
    shoot(page, f"painting-{device}")

    expect(tiles(page, "completed")).to_have_count(3)
    expect(tiles(page, "completed").locator("img")).to_have_count(3)
    shoot(page, f"pictures-{device}")
    image = download(page)
    assert colours(image) == ("red", "blue")
    # what was asked for travels with the file
    assert json.loads(image.info["ourvidz"])["prompt"] == RED_ON_BLUE
    shoot(page, f"viewer-{device}")


def test_an_uploaded_picture_is_changed_by_its_prompt(open_studio: Open, tmp_path: Path) -> None:
    page = open_studio()
    sign_up(page)
    page.get_by_label("Reference image").set_input_files(picture_file(tmp_path))
    expect(page.get_by_alt_text("The reference")).to_be_visible()
    strength = page.get_by_role("slider")
    expect(strength).to_have_attribute("aria-valuenow", "0.5")
    expect(page.get_by_text("same layout, new details")).to_be_visible()
    for _ in range(8):
        strength.press("ArrowRight")
    expect(page.get_by_text("almost the same")).to_be_visible()
    shoot(page, "reference-desktop")
    paint(page, "a white square on a green background")
    expect(tiles(page, "completed")).to_have_count(1)
    assert colours(download(page)) == ("white", "green")


def test_an_exact_copy_needs_no_prompt(open_studio: Open, tmp_path: Path) -> None:
    page = open_studio()
    sign_up(page)
    reference = picture_file(tmp_path)
    page.get_by_label("Reference image").set_input_files(reference)
    page.get_by_role("switch", name="Exact copy").check()
    expect(page.get_by_role("slider")).to_have_count(0)
    paint(page)
    expect(tiles(page, "completed")).to_have_count(1)
    copy = download(page).convert("RGB")
    given = Image.open(reference).convert("RGB")
    assert copy.size == given.size
    middle = (given.width // 2, given.height // 2)
    for at in [(4, 4), middle]:
        assert all(abs(a - b) < 40 for a, b in zip(copy.getpixel(at), given.getpixel(at), strict=True))  # type: ignore[arg-type]


def test_a_picture_that_is_dropped_or_pasted_becomes_the_reference(open_studio: Open, tmp_path: Path) -> None:
    page = open_studio()
    sign_up(page)
    data = list(picture_file(tmp_path).read_bytes())
    transfer = page.evaluate_handle(
        """data => { const transfer = new DataTransfer()
                     transfer.items.add(new File([new Uint8Array(data)], 'a.png', { type: 'image/png' }))
                     return transfer }""",
        data,
    )
    main = page.get_by_role("main")
    main.dispatch_event("dragover", {"dataTransfer": transfer})
    expect(page.get_by_text("Let it fall")).to_be_visible()
    main.dispatch_event("drop", {"dataTransfer": transfer})
    expect(page.get_by_alt_text("The reference")).to_be_visible()
    page.get_by_role("button", name="Remove the reference").click()
    page.evaluate(
        "transfer => document.dispatchEvent(new ClipboardEvent('paste', { clipboardData: transfer, bubbles: true }))", transfer
    )
    expect(page.get_by_alt_text("The reference")).to_be_visible()


def test_what_is_no_picture_is_refused_as_a_reference(open_studio: Open, tmp_path: Path) -> None:
    page = open_studio()
    sign_up(page)
    path = tmp_path / "notes.png"
    path.write_text("no picture at all")
    page.get_by_label("Reference image").set_input_files(path)
    expect(page.get_by_role("alert")).to_contain_text("png, webp or jpeg")


def test_an_earlier_picture_becomes_the_reference_and_its_settings_come_back(open_studio: Open) -> None:
    page = open_studio()
    sign_up(page)
    page.get_by_label("Seed").fill("7")
    paint(page, RED_ON_BLUE)
    expect(tiles(page, "completed")).to_have_count(1)
    open_first = tiles(page, "completed").first.get_by_role("button")
    prompt(page).fill("something else")
    page.get_by_label("Seed").fill("")

    open_first.click()
    page.get_by_role("button", name="Again with these settings").click()
    expect(prompt(page)).to_have_value(RED_ON_BLUE)
    expect(page.get_by_label("Seed")).to_have_value("7")
    paint(page)
    expect(tiles(page, "completed")).to_have_count(2)

    tiles(page, "completed").nth(1).get_by_role("button").click()
    page.get_by_role("button", name="Start from this").click()
    expect(page.get_by_alt_text("The reference")).to_be_visible()
    paint(page, "a yellow circle on a blue background")
    expect(tiles(page, "completed")).to_have_count(3)

    # the first two are the same picture; the third differs, and the page says in what
    newest, *_, oldest = [tiles(page, "completed").nth(i).get_by_role("checkbox") for i in range(3)]
    newest.check()
    expect(page.get_by_text("Choose another one to compare it with.")).to_be_visible()
    oldest.check()
    page.get_by_role("button", name="Compare the two").click()
    dialog = page.get_by_role("dialog", name="Compare")
    expect(dialog.get_by_alt_text("circle on a blue background")).to_have_count(2)
    differing = dialog.locator("tr[data-differs]")
    assert {row.split()[0] for row in differing.all_inner_texts()} >= {"Prompt", "Reference"}
    expect(dialog.get_by_role("row", name="Quality")).not_to_have_attribute("data-differs", "true")
    shoot(page, "compare-desktop")


def test_cancelled_while_running_and_asked_for_again(open_studio: Open) -> None:
    page = open_studio()
    sign_up(page)
    more(page, steps=MANY_STEPS)
    choose(page, "Pictures", "6")
    paint(page, RED_ON_BLUE)
    expect(tiles(page, "processing").first.get_by_text("Step ")).to_be_visible()
    page.get_by_role("button", name="Cancel").click()
    expect(tiles(page, "cancelled")).to_have_count(1)
    shoot(page, "cancelled-desktop")
    page.get_by_role("button", name="Paint it after all").click()
    expect(tiles(page, "processing").first).to_be_visible()
    page.get_by_role("button", name="Cancel").click()
    expect(tiles(page, "cancelled")).to_have_count(2)


def test_who_waits_sees_how_many_come_first(open_studio: Open) -> None:
    page = open_studio()
    sign_up(page)
    more(page, steps=MANY_STEPS)
    choose(page, "Pictures", "6")
    paint(page, RED_ON_BLUE)
    choose(page, "Pictures", "1")
    for count in range(2, 6):
        paint(page)
        expect(page.get_by_role("button", name="Cancel")).to_have_count(count)
    expect(page.get_by_text("Next in line")).to_be_visible()
    expect(page.get_by_text("One job comes first")).to_be_visible()
    shoot(page, "queue-desktop")
    cancel = page.locator("button:not([disabled])", has_text="Cancel")
    for _ in range(4):
        cancel.first.click()  # the newest; the oldest may end by itself meanwhile
    expect(tiles(page, "cancelled")).to_have_count(4)


def test_a_refusal_is_explained_where_it_belongs(open_studio: Open) -> None:
    page = open_studio()
    sign_up(page)
    paint(page)
    expect(page.get_by_text("Say what to paint.")).to_be_visible()
    expect(prompt(page)).to_be_focused()
    more(page, steps=101)
    expect(page.get_by_text("from 1 to 100")).to_be_visible()
    shoot(page, "refused-desktop")
    prompt(page).fill(RED_ON_BLUE)
    page.get_by_label("Steps").fill("5")
    paint(page)
    expect(tiles(page, "completed")).to_have_count(1)


def test_what_the_database_refuses_is_explained_too(open_studio: Open, supabase: EmbeddedSupabase) -> None:
    page = open_studio()
    email = sign_up(page)
    with psycopg.connect(supabase.db_url) as database:
        database.execute(
            """insert into public.jobs (user_id, job_type, prompt, run_at)
               select u.id, 'sdxl_image_fast', 'a cat', now() + interval '1 hour'
                 from auth.users u, generate_series(1, 200) where u.email = %s""",
            [email],
        )
    paint(page, RED_ON_BLUE)
    expect(page.get_by_role("alert")).to_have_text("You have 200 jobs waiting or running; let some finish first.")


def test_what_the_policy_refuses_fails_with_words_and_can_be_tried_again(open_studio: Open) -> None:
    page = open_studio()
    sign_up(page)
    paint(page, "a naked child")
    expect(tiles(page, "failed")).to_have_count(1)
    expect(page.get_by_role("button", name="Try again")).to_be_visible()
    shoot(page, "failed-desktop")


def test_two_users_do_not_see_each_other(open_studio: Open) -> None:
    one, two = open_studio(), open_studio()
    sign_up(one)
    sign_up(two)
    paint(one, RED_ON_BLUE)
    expect(tiles(one, "completed")).to_have_count(1)
    expect(two.get_by_text("No pictures yet")).to_be_visible()
    two.reload()
    expect(two.get_by_text("No pictures yet")).to_be_visible()


def test_another_page_of_the_same_user_shows_it_too(open_studio: Open) -> None:
    one, two = open_studio(), open_studio()
    email = sign_up(one)
    two.get_by_label("E-mail address").fill(email)
    two.get_by_label("Password", exact=True).fill(PASSWORD)
    two.get_by_role("button", name="Sign in").first.click()
    expect(two.get_by_text("No pictures yet")).to_be_visible()
    paint(one, RED_ON_BLUE)
    expect(tiles(two, "completed").locator("img")).to_have_count(1)


def test_a_reload_in_the_middle_of_a_job_loses_nothing(open_studio: Open) -> None:
    page = open_studio()
    sign_up(page)
    more(page, steps=MANY_STEPS)
    choose(page, "Pictures", "3")
    paint(page, RED_ON_BLUE)
    expect(tiles(page, "processing").first.get_by_text("Step ")).to_be_visible()
    page.reload()
    expect(tiles(page, "processing")).to_have_count(3)
    expect(tiles(page, "processing").first.get_by_text("Step ")).to_be_visible()
    expect(tiles(page, "completed").locator("img")).to_have_count(3)


def test_realtime_cut_off_and_back(open_studio: Open, proxied_address: str, proxy: FaultProxy) -> None:
    page = open_studio(proxied_address)
    sign_up(page)
    paint(page, RED_ON_BLUE)
    expect(tiles(page, "completed")).to_have_count(1)  # Realtime stands
    proxy.refuse_sockets()
    proxy.close_sockets(1011)
    expect(page.get_by_text("News comes a little late")).to_be_visible()
    shoot(page, "realtime-lost-desktop")
    paint(page, "a green star on a white background")
    expect(tiles(page, "completed")).to_have_count(2)
    proxy.heal()
    expect(page.get_by_text("News comes a little late")).to_have_count(0)
    more(page, steps=MANY_STEPS)
    choose(page, "Pictures", "3")
    paint(page)
    expect(tiles(page, "processing").first.get_by_text("Step ")).to_be_visible()
    expect(tiles(page, "completed")).to_have_count(5)


def test_offline_and_back(open_studio: Open) -> None:
    page = open_studio()
    sign_up(page)
    more(page, steps=MANY_STEPS)
    paint(page, RED_ON_BLUE)
    expect(tiles(page, "processing").first.get_by_text("Step ")).to_be_visible()
    page.context.set_offline(True)
    expect(page.get_by_text("You are offline")).to_be_visible()
    paint(page)
    expect(page.get_by_role("alert")).to_be_visible()
    shoot(page, "offline-desktop")
    page.context.set_offline(False)
    expect(page.get_by_text("You are offline")).to_have_count(0)
    expect(tiles(page, "completed")).to_have_count(1)
