"""The documentation as pages: links lead somewhere, all pages are in the navigation, and the site builds without a warning."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import ldm_jax

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(ROOT.glob("*.md")) + sorted(DOCS.glob("*.md"))
# Pages that docs/site/hooks.py makes: of the repository's root, of the notebook.
MADE = {"index.md": "README.md", "changes.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
MADE |= {"tour.md": "notebooks/tour.ipynb"}
QUIET = {"NO_MKDOCS_2_WARNING": "1"}  # an advertisement of the theme
NEEDED = ("mkdocs", "material", "mkdocstrings_handlers.python", "nbconvert")


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^ *```.*?^ *```|^    .*?$", "", text, flags=re.MULTILINE | re.DOTALL))


def anchors(path: Path) -> set[str]:
    """As code hosts and mkdocs make them of headings."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_relative_link_leads_somewhere(page):
    text = without_code(page.read_text(encoding="utf-8"))
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    for link in links:
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.is_file(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


def test_every_link_of_the_notebook_leads_somewhere():
    path = ROOT / MADE["tour.md"]
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        assert (path.parent / link).is_file(), link


def in_navigation(part) -> list[str]:
    if isinstance(part, str):
        return [part]
    return [page for each in (part.values() if isinstance(part, dict) else part) for page in in_navigation(each)]


def test_every_page_is_in_the_navigation_once():
    pages = in_navigation(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert sorted(pages) == sorted({path.name for path in DOCS.glob("*.md")} | set(MADE))
    for path in MADE.values():
        assert (ROOT / path).is_file()


def public_names() -> set[str]:
    names = set(ldm_jax.__all__)
    for room in ldm_jax.ROOMS:
        names |= set(getattr(importlib.import_module(f"ldm_jax.{room}"), "__all__", ()))
    return names


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    for name in NEEDED:
        pytest.importorskip(name, reason=f'no {name}: pip install -e ".[docs]"')
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | QUIET)
    assert built.returncode == 0 and "WARNING" not in built.stderr, built.stderr
    return folder


@pytest.mark.slow
def test_pages_load_nothing_from_other_hosts(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > len(list(DOCS.glob("*.md")))
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for tag in re.findall(r"<(?:script|link|img|iframe|source|video|audio)\b[^>]*>", text):
            assert not re.search(r'(?:src|href|srcset)=["\']?(?:https?:)?//', tag), f"{page.name}: {tag}"
    for style in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", style.read_text(encoding="utf-8")), style


@pytest.mark.slow
def test_every_public_name_is_in_the_reference(site):
    pages = "".join(page.read_text(encoding="utf-8") for page in (site / "reference").glob("*.html"))
    described = {path.split(".")[-1] for path in re.findall(r'id="(ldm_jax\.[\w.]+)"', pages)}
    assert public_names() <= described
    for method in ("sample", "image_to_image", "invert", "panorama"):
        assert f'id="ldm_jax.api.model.LatentDiffusion.{method}"' in pages


@pytest.mark.slow
def test_the_readme_is_the_front_page(site):
    front = (site / "index.html").read_text(encoding="utf-8")
    for link in ('href="start.html"', 'href="changes.html"', 'src="quickstart.png"', 'href="CITATION.cff"'):
        assert link in front
