"""How smoothly a gallery of a thousand pictures scrolls: Studio, beside the same tiles without virtual rows.

    python -m benchmarks.studio

Real Chromium on the built page, scrolled to its end at a steady pace. A frame counts as late when it comes more than 1.5 intervals
of a 60 Hz screen after the one before it. The peer is a plain page of a thousand <img> of the same size and URLs.
"""

from __future__ import annotations

import statistics
from itertools import pairwise

from playwright.sync_api import Browser, Page, sync_playwright

from benchmarks.results_file import write_results
from ourvidz_sdxl.studio import serve_studio
from tests.browser.conftest import DESKTOP, FLAGS, sign_up
from tests.browser.test_page import MANY, fill_gallery
from tests.processes import scratch_supabase
from tools.chromium import chromium

ROUNDS = 5
LATE_MS = 1.5 * 1000 / 60
PIXELS_A_FRAME = 60
UNITS = {"late frames": "%", "worst frame": "ms", "elements": "elements", "memory of scripts": "MB"}

SCROLL = """async pixels => {
  const times = []
  scrollTo(0, 0)
  await new Promise(requestAnimationFrame)
  for (;;) {
    times.push(await new Promise(requestAnimationFrame))
    if (scrollY + innerHeight >= document.documentElement.scrollHeight - 2) break
    scrollBy({ top: pixels, behavior: 'instant' })
  }
  return times
}"""
PLAIN = """urls => {
  document.body.innerHTML = '<main style="display:grid;grid-template-columns:repeat(4,200px);gap:12px">'
    + urls.map(url => `<img width=200 height=200 decoding=async style="object-fit:cover" src="${url}">`).join('') + '</main>'
}"""


def scroll(page: Page) -> dict[str, float]:
    times = page.evaluate(SCROLL, PIXELS_A_FRAME)
    gaps = [after - before for before, after in pairwise(times)]
    return {
        "late frames": 100 * sum(gap > LATE_MS for gap in gaps) / len(gaps),
        "worst frame": max(gaps),
        "elements": page.evaluate("document.querySelectorAll('*').length"),
        "memory of scripts": page.evaluate("performance.memory.usedJSHeapSize") / 1e6,
    }


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(statistics.median(one[name] for one in rounds), 2) for name in rounds[0]}


def gallery(page: Page) -> dict[str, float]:
    scroll(page)  # loads all pages of the list
    return medians([scroll(page) for _ in range(ROUNDS)])


def plain(browser: Browser, urls: list[str]) -> dict[str, float]:
    page = browser.new_page(viewport=DESKTOP)  # type: ignore[arg-type]
    page.evaluate(PLAIN, urls)
    page.wait_for_function("[...document.images].every(image => image.complete)")
    return medians([scroll(page) for _ in range(ROUNDS)])


def main() -> None:
    with scratch_supabase() as supabase, serve_studio(supabase) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        page = browser.new_page(viewport=DESKTOP)  # type: ignore[arg-type]
        urls: set[str] = set()
        page.on("response", lambda response: urls.add(response.url) if ".thumb.webp" in response.url else None)
        assert address
        page.goto(address)
        fill_gallery(supabase, sign_up(page), MANY)
        page.reload()
        page.locator("li img").first.wait_for()
        ours = gallery(page)
        peer = plain(browser, sorted(urls))
        browser.close()
    figures = [
        {
            "name": f"{MANY} pictures: {name}",
            "unit": unit,
            "ours": ours[name],
            "peer": peer[name],
            "peer_name": "all of them in the page",
            "bar": None,
            "better": "lower",
        }
        for name, unit in UNITS.items()
    ]
    write_results("studio", figures, packages=["playwright"])


if __name__ == "__main__":
    main()
