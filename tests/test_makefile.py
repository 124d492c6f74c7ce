"""Targets that are named, in the Makefile, by CI or on a page, have a rule."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PAGES = [
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/**/*.md"),
    ROOT / ".ci" / "run",
    ROOT / ".pre-commit-config.yaml",
]


def test_every_target_has_a_rule() -> None:
    rules = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    (phony,) = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert set(phony.split()) == rules
    named = {
        name
        for page in PAGES
        for name in re.findall(
            r"(?:^|`|&& )make ((?:[a-z]+-)*[a-z]+)", page.read_text(encoding="utf-8"), re.MULTILINE
        )
    }
    assert {"demo", "test"} <= named <= rules
