"""A band has one colour, wherever it is shown."""

from __future__ import annotations

import re
from pathlib import Path

from freqformer import _colours
from freqformer.config import Band
from freqformer.simulate.present.charts import COLOURS

SOURCE = Path(_colours.__file__).parent


def test_every_band_has_its_colour_in_the_simulators_charts_too() -> None:
    named = {name: COLOURS[name] for name in ("low", "mid", "high", "dense")}
    assert list(named.values()) == [_colours.BANDS[Band[name.upper()]] for name in named]
    assert len(set(_colours.BANDS)) == len(_colours.BANDS)


def test_no_other_file_spells_a_bands_colour() -> None:
    pattern = re.compile("|".join(_colours.BANDS), re.IGNORECASE)
    spelled = {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*")
        if path.suffix in (".py", ".html") and pattern.search(path.read_text(encoding="utf-8"))
    }
    assert spelled == {"_colours.py"}
