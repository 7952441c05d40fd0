"""The report in a real browser: Chromium of the system, driven headless, at desktop and phone width, light and dark."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anndata import AnnData

import scdiffkit

pytestmark = pytest.mark.slow
WIDTHS = {"desktop": 1280, "phone": 390}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None and not os.environ.get("SCDIFF_BROWSER_TESTS"):  # set where they must not be skipped
    pytest.skip("needs Chromium on the PATH", allow_module_level=True)


@pytest.fixture(scope="module")
def reports(few_trees: None, demo: AnnData, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report and a comparison of real cells, of which one set is shuffled over all genes."""
    out = tmp_path_factory.mktemp("browser")
    order = np.random.default_rng(0).permutation(demo.n_obs)
    real, synthetic = demo[order[:350]].copy(), demo[order[350:]].copy()
    wrong = synthetic.copy()
    wrong.X = wrong.X[:, ::-1].copy()
    scdiffkit.evaluate(real, synthetic, label="cell_type", out=out, resamples=1, max_cells=150)
    few: dict[str, Any] = {"resamples": 1, "max_cells": 100, "metrics": "minimal"}
    scdiffkit.compare(real, {"good": synthetic, "bad": wrong}, label="cell_type", out=out, **few)
    return {"report": out / "report.html", "comparison": out / "compare.html"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("which", ["report", "comparison"])
def test_pages_render_and_fetch_nothing(
    reports: dict[str, Path], browser: Any, which: str, width: str, scheme: str
) -> None:
    page = browser.new_page(viewport={"width": WIDTHS[width], "height": 900}, color_scheme=scheme)
    asked: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(reports[which].as_uri())

    assert [url for url in asked if not url.startswith("data:")] == [reports[which].as_uri()]
    assert complaints == []
    for image in page.locator("img").all():
        shown = image.evaluate("e => [e.complete, e.naturalWidth, e.clientWidth, e.currentSrc, e.getAttribute('src')]")
        complete, natural, displayed, current, of_light = shown
        assert complete
        assert natural > 300
        assert displayed > 300
        assert (current == of_light) == (scheme == "light")
    for table in page.locator("table").all():
        assert table.locator("tbody tr").count() >= 2
        assert table.bounding_box()["height"] > 50
    # Nothing but what scrolls on its own is wider than the page, and the verdict is there before any scrolling.
    assert page.evaluate("document.documentElement.scrollWidth") <= WIDTHS[width]
    verdict = page.locator(".verdict .word")
    assert verdict.inner_text()
    assert verdict.bounding_box()["y"] < 300
    brightness = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)")
    assert (np.mean(brightness) > 128) == (scheme == "light")
    page.close()


def test_a_screen_reader_finds_its_way(reports: dict[str, Path], browser: Any) -> None:
    page = browser.new_page()
    page.goto(reports["report"].as_uri())
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.locator("h1").count() == 1
    levels = [int(e.evaluate("e => e.tagName")[1]) for e in page.locator("h1, h2, h3").all()]
    assert all(b - a <= 1 for a, b in pairwise(levels))
    assert all(len(image.get_attribute("alt")) > 40 for image in page.locator("img").all())
    assert all(strip.get_attribute("aria-label") for strip in page.locator(".strip").all())
    assert page.locator("th:not([scope])").count() == 0
    for link in page.locator("a[href^='#']").all():
        assert page.locator(f"[id='{link.get_attribute('href')[1:]}']").count() == 1
    page.close()
