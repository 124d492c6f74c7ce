"""The documentation's site as a browser shows it, on a desktop and on a phone."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.browser import open_page

ROOT = Path(__file__).parents[1]
PAGES = sorted(path.stem for path in (ROOT / "docs").glob("*.md"))
TOO_WIDE = """() => [...document.querySelectorAll('.md-content .language-text code')]
    .filter(block => block.scrollWidth > block.clientWidth + 1)
    .map(block => block.textContent)"""
SPLIT_NAMES = """() => [...document.querySelectorAll('.md-content td code')]
    .filter(name => name.getClientRects().length > 1)
    .map(name => name.textContent)"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return folder


@pytest.mark.parametrize("width", [1280, 390])
def test_pages_fit_the_screen(site: Path, width: int) -> None:
    """No page is wider than the screen; formulas and commands wrap, names in tables don't."""
    for page in PAGES:
        path = site / "index.html" if page == "index" else site / page / "index.html"
        with open_page(path, width=width) as opened:
            assert opened.run("document.documentElement.scrollWidth") <= width, page
            assert opened.run(TOO_WIDE) == [], page
            assert opened.run(SPLIT_NAMES) == [], page


def test_sections_of_the_reference_have_their_usual_names(site: Path) -> None:
    """A text that begins beside "Returns:" and goes on below it would be taken for a name."""
    titles = set()
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        titles |= set(re.findall(r'doc-section-title">([^<]*)', text))
    assert titles <= {"Parameters:", "Raises:", "Returns:", "Yields:"}
