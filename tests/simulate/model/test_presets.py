"""Presets: what the library does by default, the source's method and dense attention; and what
reports say of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch

from freqformer import Band, FreqFormerConfig
from freqformer.config import Routing as LayerRouting
from freqformer.models.transformer import FreqFormerTransformer3DModel
from freqformer.routing import RoutingTable
from freqformer.simulate import (
    PRESETS,
    ProfileError,
    Result,
    Routing,
    load_model,
    scenario,
    simulate,
)
from freqformer.simulate.model.allocations import Kind, count_heads
from freqformer.simulate.model.scale_out import scale_out
from freqformer.simulate.model.sensitivity import sensitivity
from freqformer.simulate.present.charts import all_charts
from freqformer.simulate.present.describe import settings, settings_record

TOKENS = 65_536


def simulated(preset: str, **changes: object) -> Result:
    return simulate(replace(scenario("wan2.1-1.3b", "h200", TOKENS, preset=preset), **changes))


@pytest.fixture(scope="module")
def found() -> dict[str, Result]:
    return {name: simulated(name) for name in PRESETS}


@pytest.fixture(scope="module")
def table() -> RoutingTable:
    """Two noise levels: every head LOW at little noise, a MID or a HIGH or a DENSE one in turn at
    much."""
    bands = torch.zeros(2, 30, 12, dtype=torch.int64)
    bands[1] = torch.tensor([Band.MID, Band.HIGH, Band.DENSE]).repeat(4)
    return RoutingTable(bands, torch.full_like(bands, 8), FreqFormerConfig(tile=(4, 4, 8)))


def test_kinds_of_routing_are_the_layers():
    assert get_args(Kind) == get_args(LayerRouting)


def test_the_default_is_the_librarys(found):
    """What a model without options has in every layer."""
    model = FreqFormerTransformer3DModel()
    layer, case = model.attentions[0], scenario("freqformer", "h200", 4096)
    assert (case.preset, case.routing.kind) == ("default", layer.config.routing)
    assert case.config == model.frequency_config
    assert case.initial == layer.allocation.tolist()
    assert case.has_low_branch == (layer.gates is not None)
    assert layer.router is not None
    assert (case.router == "statistics") == (layer.router.num_statistics > 0)
    result = found["default"]
    assert set(result.heads_by_step) == {(0, 0, 12, 0)}
    # No summaries are kept.
    assert result.counts.summary_bytes == 0
    assert result.stages["router"].seconds > 0
    assert "gates" in result.stages


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("default", FreqFormerConfig()),
        ("paper", FreqFormerConfig.paper()),
        ("dense", FreqFormerConfig.dense()),
    ],
)
def test_presets_are_the_records(name, record):
    """Every field has its say, and a preset has no value beside the record's."""
    case, found = scenario("wan2.1-1.3b", "h200", TOKENS, preset=name), simulated(name)
    assert case.config == PRESETS[name].config == record
    assert case.routing.kind == record.routing
    assert case.routing.schedule == ("prior" if record.prior == "noise_level" else "fixed")
    assert case.has_low_branch == record.low_branch
    assert case.runs_dense == record.is_dense
    assert sorted(found.allocation) == sorted(record.bands(12))


def test_a_generation_of_the_default_is_its_steps(found):
    """No step has other heads: without a name, flags that describe the default kept the paper's
    schedule."""
    result = found["default"]
    assert result.generation.seconds == pytest.approx(50 * result.step.seconds)
    described = scenario(
        "wan2.1-1.3b",
        "h200",
        TOKENS,
        config=FreqFormerConfig(),
        routing=Routing(split=(0, 0, 1)),
    )
    assert simulate(described).generation.seconds == result.generation.seconds


def test_the_papers_method(found):
    result = found["paper"]
    assert count_heads(result.allocation) == (4, 4, 4, 0)
    assert result.scenario.config.summary_tokens == 256
    assert result.plan.learned_summaries
    assert not any(name.startswith("low branch") for name in result.stages)
    assert result.stages["router"].seconds > 0
    assert result.heads_by_step[0] != result.heads_by_step[-1]


def test_dense_attention(found):
    """Exactly what the others are compared with, at every level."""
    dense = found["dense"]
    for level in ("layer", "training", "step", "generation"):
        one = getattr(dense, level)
        assert one.seconds == one.dense_seconds == getattr(found["paper"], level).dense_seconds, (
            level
        )
        assert one.peak_memory_bytes == one.dense_peak_memory_bytes, level
        assert one.speedup == 1
    assert dense.density == 1
    assert dense.counts == dense.dense_counts
    assert sum(stage.flops for stage in dense.gradients.values()) == dense.counts.backward_flops
    assert [row.seconds for row in scale_out(dense)] == [
        row.dense_seconds for row in scale_out(dense)
    ]
    assert {variant.knob for variant in sensitivity(dense.scenario)} == {"head_dim"}
    assert "time" in {chart.key for chart in all_charts([dense], [], [])}


def test_costs_are_relative_to_dense_attention_alone(found):
    """A LOW branch joins the numerator and never the denominator: attention's FLOPs over 4 N^2 D a
    head."""
    model = load_model("wan2.1-1.3b")
    for name in ("default", "paper"):
        result = found[name]
        exact = 4 * result.scenario.tokens**2 * model.head_dim * model.heads
        own = result.plan.flops(result.allocation).useful
        low = result.plan.flops([Band.LOW] * model.heads).useful if name == "default" else 0
        assert result.density == pytest.approx((own + low) / exact, rel=1e-12)


def test_more_is_dearer(found):
    assert found["dense"].layer.seconds > found["default"].layer.seconds > 0
    timed = simulated("default", routing=Routing(kind="timestep"))
    assert 0 < timed.stages["router"].seconds < found["default"].stages["router"].seconds
    plain = simulated("default", routing=Routing(kind="fixed", split=(0, 0, 1)))
    assert "router" not in plain.stages
    assert plain.layer.seconds < timed.layer.seconds < found["default"].layer.seconds


def test_a_router_that_weighs_runs_beside_a_table(table):
    """As in a layer: only a router that chooses gives way to a table."""
    stages = {}
    for kind in get_args(Kind):
        case = scenario("wan2.1-1.3b", "h200", 16_384, routing=Routing(kind=kind, table=table))
        stages[kind] = simulate(case).stages
    assert {kind for kind, found in stages.items() if "router" in found} == {"soft", "timestep"}
    assert {kind for kind, found in stages.items() if "gates" in found} == {
        "soft",
        "timestep",
    }


def test_a_layer_runs_its_router_beside_a_table_likewise(table):
    """What the simulator says of a table is what layers do."""
    from freqformer import FreqAttention, Grid

    grid = Grid(4, 4, 8)
    for kind in get_args(Kind):
        weighs = kind in ("soft", "timestep")
        layer = FreqAttention(24, 12, replace(table.config, routing=kind, low_branch=weighs)).eval()
        layer.set_routing_table(table)
        with torch.no_grad():
            layer(torch.randn(1, grid.num_tokens, 24), grid, torch.ones(1), token_order="raster")
        ran = Routing(kind=kind, table=table).running is not None
        assert (layer.router_logits is not None) == ran, kind


def test_a_table_brings_its_config_and_every_document_takes_it(table):
    """Its settings are changed with it, where one asks how cost moves with them."""
    for preset in PRESETS:
        kind = PRESETS[preset].routing.kind
        case = scenario(
            "wan2.1-1.3b", "h200", 16_384, preset=preset, routing=Routing(kind=kind, table=table)
        )
        assert case.config == table.config
        result, variants = simulate(case), sensitivity(case)
        assert {variant.knob for variant in variants} >= {"compression", "mid_tiles", "window"}
        assert "head_dim" not in {variant.knob for variant in variants}
        kept = [
            variant.result.generation.seconds for variant in variants if variant.knob == "mid_tiles"
        ]
        assert kept == sorted(kept)
        assert len(set(kept)) > 1
        assert len(scale_out(result, [1, 8])) == 2
        assert "table" in settings(case)["split"]


def test_a_dense_model_with_a_table_has_learned_nothing(table):
    result = simulate(
        scenario(
            "wan2.1-1.3b",
            "h200",
            16_384,
            preset="dense",
            routing=Routing(kind="fixed", table=table),
        )
    )
    assert not result.plan.learned_summaries
    assert set(result.stages) == {"prologue", "summaries", "selection", "attention", "merge"}


def test_reports_name_the_preset_and_what_differs():
    case = scenario("wan2.1-1.3b", "h200", 16_384)
    assert case.changes == []
    told = settings(case)
    assert told["preset"].startswith("default (the library's default: ")
    assert told["split"] == "12 HIGH of 12 heads at first"
    assert told["routing"].startswith("soft: ")
    assert told["schedule"] == "the same at every step"
    assert told["learned summaries"].startswith("none")
    assert told["low branch"].startswith("gated")
    changed = replace(
        case,
        config=replace(case.config, mid_tiles=32),
        routing=Routing(kind="hard", split=(1, 1, 4)),
        learned_summaries=False,
    )
    assert changed.changes == [
        "mid_tiles",
        "routing",
        "split",
        "schedule",
        "learned_summaries",
        "low_branch",
    ]
    assert settings(changed)["preset"].endswith("), with other " + ", ".join(changed.changes))
    record = settings_record(changed)
    assert record["routing"] == {
        "kind": "hard",
        "split": [2, 2, 8],
        "schedule": "prior",
        "table_shape": None,
        "router_reads": "statistics",
    }
    assert settings(scenario("wan2.1-1.3b", "h200", 16_384, preset="dense")) == {
        "preset": "dense (dense attention in every head)",
        "attention": "dense in every head",
    }


def test_contradictions_are_refused():
    case = scenario("wan2.1-1.3b", "h200", 16_384)
    with pytest.raises(
        ProfileError,
        match=r"preset is 'papers'; the nearest is 'paper'; known are default, paper, dense",
    ):
        scenario("wan2.1-1.3b", "h200", 16_384, preset="papers")
    with pytest.raises(
        ProfileError, match="routing is 'learned'; choose one of soft, timestep, hard, fixed"
    ):
        Routing(kind="learned")  # type: ignore[arg-type]
    with pytest.raises(ProfileError, match="schedule is 'prior' with routing 'soft'"):
        Routing(schedule="prior")
    with pytest.raises(ProfileError, match="low_branch is false with routing 'soft'"):
        replace(case, low_branch=False)
    dense = scenario("wan2.1-1.3b", "h200", 16_384, preset="dense")
    with pytest.raises(ProfileError, match="low_branch is set, and dense attention has no bands"):
        replace(dense, low_branch=True)
    with pytest.raises(ProfileError, match="routing is set, and dense attention has no bands"):
        replace(dense, routing=Routing())


def test_the_page_says_what_a_dense_generation_takes():
    """The floor that docs/complexity.md holds against whole pipelines."""
    page = " ".join(
        (Path(__file__).parents[3] / "docs" / "complexity.md").read_text(encoding="utf-8").split()
    )
    minutes, rates, block = {}, {}, 0.0
    for hardware in ("h200", "h100"):
        result = simulate(scenario("wan2.1-14b", hardware, "5s@720p", preset="dense"))
        minutes[hardware] = result.generation.seconds / 60
        rates[hardware] = result.generation.dense_flops / result.generation.seconds / 1e12
        block = block or 1e3 * result.step.seconds / 80
    assert (
        f"says {minutes['h200']:.1f} minutes on an H200 and {minutes['h100']:.1f} on an H100"
        in page
    )
    assert f"{rates['h200']:.0f} TFLOP/s throughout" in page
    assert f"| simulated | {block:.0f} | {minutes['h200']:.1f} |" in page
