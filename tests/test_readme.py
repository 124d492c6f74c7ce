"""The README: short, its figures those of committed files, its picture the one that is drawn."""

from __future__ import annotations

import re
import tomllib

from benchmarks.quality.report import by_variant, mean, overall, read_results
from benchmarks.speed_tables import layers_text, operation_text, rebuilt
from tests.support.pages import ROOT, check_says, result
from tools.draw_bands import PICTURE

README = "README.md"
MOST_WORDS = 465
DEFAULT = "soft_routing"
"""The study's name of the default."""
OTHER_EXTRAS = {"all", "dev", "docs"}


def source() -> str:
    return (ROOT / README).read_text(encoding="utf-8")


def test_it_is_short() -> None:
    """Words of prose: code and tables left out, and the marks that readers don't see."""
    text = source()
    for hidden in (r"```.*?```", r"<!--.*?-->", r"^\|[^\n]*$"):
        text = re.sub(hidden, "", text, flags=re.DOTALL | re.MULTILINE)
    assert len(text.split()) <= MOST_WORDS


def test_its_outline() -> None:
    heads = re.findall(r"^## (.*)$", source(), re.MULTILINE)
    assert heads == [
        "Install",
        "Use it",
        "Train and sample",
        "Speed",
        "Quality",
        "What is missing",
        "How it works",
        "Citation",
    ]
    assert f"]({PICTURE.relative_to(ROOT).as_posix()})" in source()
    steps = source().split("## How it works")[1].split("## ")[0].strip().splitlines()
    assert len(steps) <= 6


def test_what_it_needs_is_what_the_package_declares() -> None:
    """Versions of Python and torch, and the extras, all of them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    locked = sorted(path.stem.removeprefix("torch-") for path in ROOT.glob("requirements/*.txt"))
    lowest = project["requires-python"].removeprefix(">=")
    check_says(README, f"Python {lowest} to", f"torch {locked[0]} to {locked[-1]}.")
    parts = [name for name in project["optional-dependencies"] if name not in OTHER_EXTRAS]
    *most, final = (f"`{name}`" for name in parts)
    check_says(README, f"the extras {', '.join(most)} and {final} bring")
    needed = [re.split(r"[<>=]", name)[0] for name in project["dependencies"]]
    assert needed == ["torch", "numpy", "safetensors"]
    check_says(README, "The operations need torch, numpy and safetensors only")


def test_its_files_exist() -> None:
    links = re.findall(r"\]\(((?!https?:)[^)#]+)", source())
    assert len(links) > 10
    assert not [link for link in links if not (ROOT / link).exists()]


def test_the_table_of_speed() -> None:
    assert rebuilt(source()) == source(), "run `python -m benchmarks.speed_tables`"
    assert source().count("\n| --- |") == 1
    whole_layers = (ROOT / "benchmarks/results/layers.json").exists()
    assert whole_layers != ("Not the default" in source())


def test_a_table_of_whole_layers() -> None:
    size = {
        "tokens": 65_536,
        "heads": 8,
        "forward": {"layer default": {"ms": 2.0}, "layer dense": {"ms": 30.0}},
        "forward and backward": {"layer default": {"ms": 8.0}, "layer windows": {"ms": 1000.5}},
    }
    sizes = {"65,536 x 8": size, "1,024 x 2": {"tokens": 1024, "heads": 2, "forward": {}}}
    text = layers_text({"machine": {"gpu": "NVIDIA H100", "commit": "0123456789"}, "sizes": sizes})
    line = "| 65,536 × 8 | 2.0 / 8.0 | – / 1,000.5 | – / – | 30.0 / – | 15.0 / – |"
    assert line in text
    assert "| 1,024 × 2 | – / – | – / – | – / – | – / – | – / – |" in text
    assert "NVIDIA H100" in text


def test_the_table_of_the_operation() -> None:
    layer = result("layer")
    size = layer["layers"]["hunyuan"]
    own, dense = size["bench"]["layer_ms"], size["dense_ms"]
    assert f"| 115,200 × 24 | {own:.1f} | {dense:.0f} | {dense / own:.0f} |" in operation_text(
        layer
    )


def test_quality() -> None:
    runs = by_variant(read_results(), 2800)
    ours, dense = (
        mean([overall(run["losses"]) for run in runs[name].values()]).text(4)
        for name in (DEFAULT, "dense")
    )
    check_says(
        README,
        f"the default ends at a loss of {ours}, and dense attention with seven times the attention "
        f"FLOPs at {dense} ([study]",
        f"`{DEFAULT}` is the default",
    )
    assert round(1 / runs[DEFAULT][0]["density"]) == 7
