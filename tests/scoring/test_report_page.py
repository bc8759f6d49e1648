"""The report in headless Chromium: nothing is fetched, nothing fails, and all of it fits a telephone."""

import shutil

import numpy as np
import pytest

from ldm_jax.scoring import report

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("needs Chromium: apt-get install chromium", allow_module_level=True)


def result(scale, distance):
    numbers = {"frechet_distance": distance, "precision": 0.5 + scale / 20, "recall": 0.8 - scale / 20}
    values = {f"classifier/{name}": value for name, value in numbers.items()}
    return {"setting": f"dpmpp_2m_20_{scale:g}", "sampler": "dpmpp_2m", "steps": 20, "guidance_scale": scale, "values": values,
            "intervals": {"classifier/frechet_distance": [0.1, 0.0, 0.0]}, "notes": ["500 pictures <are> few"]}  # fmt: skip


def light(colour):
    """The sum of "rgb(1, 2, 3)"."""
    return sum(map(int, colour.removeprefix("rgb(").removesuffix(")").split(",")))


@pytest.fixture
def page_file(tmp_path):
    found = {"results": [result(float(scale), 3.0 - scale / 4) for scale in range(1, 9)], "config": {"name": "x" * 300},
             "versions": {"command": "python -m ldm_jax.evaluation --workdir " + "long/" * 60}}  # fmt: skip
    pixels = np.random.default_rng(0).integers(0, 256, (12, 3, 32, 32, 3), dtype=np.uint8)
    return report.write(tmp_path, found, {"Neighbours": pixels}, title="A <model>")


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_needs_no_network_and_fits_the_window(page_file, width, scheme):
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        asked, said = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(page_file.as_uri())
        assert [url for url in asked if not url.startswith("data:")] == [page_file.as_uri()] and not said
        assert page.title() == page.inner_text("h1") == "A <model>"
        assert page.locator("svg").count() == 2 and page.locator(".note").inner_text() == "500 pictures <are> few"
        assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        wide = page.evaluate("Math.max(...[...document.querySelectorAll('svg,img')].map(e => e.getBoundingClientRect().right))")
        assert wide <= width
        ink, paper = (page.evaluate(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor"))
        assert (light(ink) > light(paper)) == (scheme == "dark")
        browser.close()
