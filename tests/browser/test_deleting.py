"""Somebody deletes a picture, a failure, and everything; the other pages of theirs show it."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import PASSWORD, Open, choose, more, paint, picture_file, shoot, sign_up, tiles, violations

pytestmark = pytest.mark.usefixtures("worker")

RED_ON_BLUE = "a red circle on a blue background"


def test_a_picture_is_deleted_once_more_asked_for_and_on_every_page(open_studio: Open) -> None:
    page, other = open_studio(), open_studio()
    email = sign_up(page)
    other.get_by_label("E-mail address").fill(email)
    other.get_by_label("Password", exact=True).fill(PASSWORD)
    other.get_by_role("button", name="Sign in").first.click()
    more(page, steps=5)
    choose(page, "Pictures", "3")
    paint(page, RED_ON_BLUE)
    for each in (page, other):
        expect(tiles(each, "completed").locator("img")).to_have_count(3)
    tiles(page, "completed").first.get_by_role("button").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(page.get_by_role("button", name="Keep")).to_be_focused()
    shoot(page, "delete-desktop")
    assert violations(page) == []
    page.get_by_role("button", name="Keep").click()
    expect(tiles(page, "completed")).to_have_count(3)
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_role("button", name="Delete all 3 for good").click()
    for each in (page, other):
        expect(each.get_by_text("No pictures yet")).to_be_visible()


def test_what_failed_is_put_away(open_studio: Open) -> None:
    page = open_studio()
    sign_up(page)
    paint(page, "a naked child")
    failed = tiles(page, "failed")
    expect(failed).to_have_count(1)
    failed.get_by_role("button", name="Delete").click()
    expect(page.get_by_text("No pictures yet")).to_be_visible()


def test_everything_goes_the_running_job_and_what_the_form_holds_too(open_studio: Open, tmp_path: Path) -> None:
    page = open_studio()
    sign_up(page)
    more(page, steps=5)
    paint(page, RED_ON_BLUE)
    expect(tiles(page, "completed")).to_have_count(1)
    more(page, steps=100)
    paint(page)
    expect(tiles(page, "processing").get_by_text("Step ")).to_be_visible()
    page.get_by_label("Reference image").set_input_files(picture_file(tmp_path))
    expect(page.get_by_alt_text("The reference")).to_be_visible()
    page.get_by_role("button", name="Delete everything").click()
    expect(page.get_by_role("button", name="Keep everything")).to_be_focused()
    shoot(page, "delete-everything-desktop")
    page.get_by_role("dialog").get_by_role("button", name="Delete everything").click()
    expect(page.get_by_text("No pictures yet")).to_be_visible()
    expect(page.get_by_alt_text("The reference")).to_have_count(0)
    page.reload()
    expect(page.get_by_text("No pictures yet")).to_be_visible()
