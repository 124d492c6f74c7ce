"""docs/diffusers.md: its table of bands is a gain by our own simulator, and its shares are the
sampler's. docs/families.md has a section for every family, with the simulator's rows and those that
were measured; docs/troubleshooting.md speaks of messages that there are."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch

from benchmarks import plugin_blocks
from freqformer.config import Band
from freqformer.integrations.diffusers.families import FAMILIES
from freqformer.routing import RoutingTable
from freqformer.simulate import scenario, simulate
from freqformer.simulate.model.allocations import Routing, timesteps
from freqformer.simulate.model.simulation import Level
from freqformer.simulate.model.transformers import ModelShape
from tools import foretell

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "diffusers.md").read_text(encoding="utf-8")
FAMILIES_PAGE = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
TROUBLE_PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
SHIFTS = (3.0, 5.0, 8.0)
MODELS = ("wan2.1-1.3b", "wan2.1-14b")


def documented_table(model: ModelShape, monkeypatch: pytest.MonkeyPatch) -> RoutingTable:
    """The page's table for a model of the simulator, made by the page's code, with no pretrained
    model."""
    config = SimpleNamespace(num_attention_heads=model.heads)
    pipe = SimpleNamespace(
        transformer=SimpleNamespace(blocks=[None] * model.num_layers, config=config)
    )
    pipe.to = lambda _device: pipe
    monkeypatch.setattr(
        diffusers, "WanPipeline", SimpleNamespace(from_pretrained=lambda *_, **__: pipe)
    )
    names: dict[str, Any] = {}
    code = PAGE.split("```python\n")[2].split("\nwith ")[0]
    exec(compile(code, "docs/diffusers.md", "exec"), names)
    return names["table"]


def dense_share(levels: Sequence[float], table: RoutingTable) -> float:
    """The share of steps at which every head of every layer is DENSE."""
    buckets = table.shape[0]
    dense = (table.bands == Band.DENSE).all(2).all(1).tolist()
    return sum(dense[min(int(level * buckets), buckets - 1)] for level in levels) / len(levels)


def banded_step(name: str, table: RoutingTable) -> Level:
    """What a step takes by the simulator with all layers banded, and with dense attention."""
    case = scenario(name, "h200", "5s", config=table.config)
    banded = table.bands[:1, -1:].expand(1, case.model.num_layers, -1).contiguous()
    own = RoutingTable(banded, torch.full_like(banded, int(table.mid_tiles.max())), table.config)
    return simulate(
        replace(case, routing=Routing(kind="fixed", table=own), learned_summaries=False)
    ).step


def gain(step: Level, table: RoutingTable, levels: Sequence[float]) -> float:
    """How many times faster a video is, with DENSE layers and steps at dense attention's time."""
    dense = dense_share(levels, table)
    dense += (1 - dense) * float((table.bands[0] == Band.DENSE).all(1).double().mean())
    return step.dense_seconds / (dense * step.dense_seconds + (1 - dense) * step.seconds)


@pytest.mark.parametrize("name", MODELS)
def test_its_table_is_a_gain_at_every_shift(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = scenario(name, "h200", "5s").model
    table = documented_table(model, monkeypatch)
    step = banded_step(name, table)
    levels = [timesteps(replace(model, shift=shift)) for shift in SHIFTS]
    gains = [gain(step, table, at_shift) for at_shift in levels]
    assert min(gains) > 1.35
    assert max(gains) < 2.15
    assert f"{gain(step, table, timesteps(model)):.1f} times" in PAGE
    assert "from 1.4 to 2.1 times" in PAGE
    quarter = RoutingTable(table.bands[[0, 0, 0, 9]], table.mid_tiles[:4], table.config)
    assert all(1.05 < gain(step, quarter, at_shift) < 1.55 for at_shift in levels)
    assert "from 1.1 to 1.5 times" in PAGE


def test_what_is_foretold_is_the_simulators() -> None:
    assert PAGE.split(foretell.BEGIN)[1].split(foretell.END)[0] == foretell.table()


def test_rows_of_families_are_the_simulators_and_the_benchmarks() -> None:
    for family in foretell.FAMILIES:
        shown = foretell.between(FAMILIES_PAGE, foretell.family_begin(family), foretell.FAMILY_END)
        assert shown == foretell.lengths(family), "python -m tools.foretell makes them anew"


def test_measured_blocks_stand_below_what_is_foretold(tmp_path: Path) -> None:
    """Where the files are there."""
    times = {"dense": 300.0, "preset-0.2": 150.0, "preset-0.1": 120.0}
    case = {
        "machine": {"gpu": "NVIDIA H200"},
        "grid": [21, 45, 80],
        "rows": {row: {"ms": ms} for row, ms in times.items()},
    }
    result = {"cases": {"wan-14b-720p": case}}
    assert foretell.lengths("wan", tmp_path) == foretell.table(foretell.FAMILIES["wan"].videos)
    (tmp_path / "plugin_blocks_compiled.json").write_text(json.dumps(result), encoding="utf-8")
    assert foretell.lengths("wan", tmp_path).endswith(
        "| wan-14b-720p, compiled, NVIDIA H200 | 75,600 | 300.0 ms | 150.0 ms, 2.00 × | "
        "120.0 ms, 2.50 × |\n"
    )
    assert "measured" not in foretell.lengths("cogvideox", tmp_path)
    measured = {case for family in foretell.FAMILIES.values() for case in family.cases}
    assert measured == set(plugin_blocks.CASES)


def test_every_family_has_a_section_and_a_row() -> None:
    """Each names a pipeline whose transformer is of the family, and when not to."""
    sections = re.split("^## ", FAMILIES_PAGE, flags=re.MULTILINE)[1:-1]
    assert all("**not for**" in section.lower() for section in sections)
    assert all("enable_frequency_attention(pipe" in section for section in sections)
    for name in FAMILIES:
        assert f"| `{name}` |" in PAGE


def test_messages_of_the_troubleshooting_page_are_the_codes() -> None:
    """What stands in quotes is in the source, between its variable parts; what stands in braces
    there is a part of its own."""
    source = "".join(
        re.sub(r'"\s*f?"', "", path.read_text(encoding="utf-8"))
        for path in (ROOT / "src" / "freqformer").rglob("*.py")
    )
    quoted = re.findall(r'^\| "([^"]+)"', TROUBLE_PAGE, re.MULTILINE)
    assert len(quoted) >= 12
    for message in quoted:
        for part in message.split("…"):
            assert part.strip(" ;:,") in source, message


def test_the_shares_of_dense_steps_are_those_of_the_sampler() -> None:
    model = replace(scenario(MODELS[0], "h200", "5s").model, steps=10_000)
    for first, buckets in ((750, 4), (900, 10), (950, 20), (980, 50)):
        bands = torch.full((buckets, 1, 1), int(Band.HIGH))
        bands[-1] = Band.DENSE
        config = scenario(MODELS[0], "h200", "5s").config
        table = RoutingTable(bands, torch.zeros_like(bands), replace(config, tile=(4, 4, 8)))
        shares = [
            dense_share(timesteps(replace(model, shift=shift)), table) for shift in (1.0, *SHIFTS)
        ]
        row = PAGE.split(f"| {first}, the last of ")[1].split("\n")[0].split("|")[1:-1]
        assert [float(cell.strip(" %")) for cell in row] == pytest.approx(
            [100 * share for share in shares], abs=0.6
        )
