"""A trained dense model with frequency attention: steps, layers and FLOPs are the plug-in's."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.support.command_line import run

from freqformer.config import Band, FreqFormerConfig
from freqformer.integrations.diffusers.layer_bands import PresetBands
from freqformer.integrations.diffusers.steps import SamplerSteps
from freqformer.routing import RoutingTable
from freqformer.simulate import ProfileError, Result, Routing, Scenario, scenario, simulate
from freqformer.simulate.model.scale_out import scale_out
from freqformer.simulate.model.sensitivity import sensitivity
from freqformer.simulate.model.settings import Request, scenarios
from freqformer.simulate.present.describe import settings
from freqformer.training_free.dials import checked_dials

TOKENS = 32_760


def with_dials(case: Scenario, **changed: Any) -> Scenario:
    assert case.dials is not None
    return replace(case, dials=replace(case.dials, **changed))


@pytest.fixture(scope="module")
def case() -> Scenario:
    return scenario("wan2.1-1.3b", "h200", TOKENS, preset="training-free")


@pytest.fixture(scope="module")
def found(case: Scenario) -> Result:
    return simulate(case)


@pytest.mark.parametrize("dials", [{}, {"start_percent": 0.33}, {"end_percent": 0.71}])
def test_steps_are_dense_where_the_sampler_leaves_them(
    case: Scenario, dials: dict[str, float]
) -> None:
    changed = with_dials(case, **dials)
    assert changed.dials is not None
    steps = case.model.steps
    sampler = SamplerSteps(
        changed.dials.start_percent,
        changed.dials.end_percent,
        scheduler=SimpleNamespace(timesteps=torch.linspace(1000, 1, steps)),
    )
    banded, all_steps = sampler.shares()
    kept = [heads[Band.DENSE] == 0 for heads in simulate(changed).heads_by_step]
    assert (sum(kept), len(kept)) == (banded, all_steps)
    first = round(changed.dials.start_percent * steps + 0.4999)
    assert kept == [first <= step < first + banded for step in range(steps)]


def test_layers_have_the_density_of_the_plug_in(case: Scenario, found: Result) -> None:
    heads = case.model.heads
    bands = PresetBands(0.2, 0, case.model.num_layers, heads)
    assert found.density == pytest.approx(bands.density(case.grid, 0))
    assert found.density == pytest.approx(0.2, rel=0.02)
    assert found.plan.config == bands.config(case.grid, 0)
    assert found.allocation == [Band.MID] * heads
    assert not found.plan.learned_summaries
    assert found.layer.speedup > 2
    assert found.layer.speedup > found.step.speedup > found.generation.speedup > 1


def test_dense_steps_and_layers_take_the_models_time(case: Scenario, found: Result) -> None:
    banded, dense = found.step.seconds, found.step.dense_seconds
    first = sum(heads[Band.DENSE] > 0 for heads in found.heads_by_step)
    steps = case.model.steps
    assert first == round(0.2 * steps)
    expected = first * dense + (steps - first) * banded
    assert found.generation.seconds == pytest.approx(expected)
    guarded = simulate(with_dials(case, start_percent=0.0, dense_blocks=(5, 10)))
    layers = case.model.num_layers
    expected = dense + (banded - dense) * (layers - 15) / layers
    assert guarded.generation.seconds / steps == pytest.approx(expected)


@pytest.mark.parametrize(
    "dials", [{"min_tokens": TOKENS + 1}, {"density": 1.0}, {"dense_blocks": (40, 0)}]
)
def test_where_nothing_is_banded_it_is_the_dense_model(
    case: Scenario, dials: dict[str, Any]
) -> None:
    found = simulate(with_dials(case, **dials))
    dense = simulate(scenario("wan2.1-1.3b", "h200", TOKENS, preset="dense"))
    for level in ("layer", "training", "step", "generation"):
        assert getattr(found, level) == getattr(dense, level), level
    assert found.runs_dense
    assert found.density == 1
    assert [row.seconds for row in scale_out(found, [1, 8])] == [
        row.seconds for row in scale_out(dense, [1, 8])
    ]


def test_more_density_takes_longer(case: Scenario) -> None:
    variants = [variant for variant in sensitivity(case) if variant.knob == "density"]
    seconds = [variant.result.generation.seconds for variant in variants]
    assert len(seconds) == 5
    assert seconds == sorted(seconds)
    assert {variant.knob for variant in sensitivity(case)} == {"density", "head_dim"}
    other = scenario("wan2.1-1.3b", "h200", TOKENS)
    assert "density" not in {variant.knob for variant in sensitivity(other)}


def test_what_was_set_is_told(case: Scenario) -> None:
    request = Request(
        "wan2.1-1.3b",
        "h200",
        str(TOKENS),
        "training-free",
        ["density=0.4", "dense_blocks=1,2", "start_percent=0"],
    )
    (changed,) = scenarios(request)
    assert changed.dials == checked_dials(None, 0.4, (0, 1.0), (1, 2), None)
    assert changed.changes == ["density", "start_percent", "dense_blocks"]
    told = settings(changed)
    assert told["density"].startswith("0.4 of dense")
    assert told["dense blocks"] == "1 first, 2 last"
    assert told["banded steps"] == "0% to 100% of the sampler's"
    assert case.changes == []


@pytest.mark.parametrize(
    ("preset", "setting", "told"),
    [
        ("default", "density=0.2", "density is set with default; it is a dial"),
        ("dense", "min_tokens=5", "min_tokens is set with dense"),
        (
            "training-free",
            "window=3,3,3",
            "window is set, and the density chooses",
        ),
        ("training-free", "routing=soft", "routing is set, and the density chooses bands"),
        ("training-free", "density=2", "density is 2; numbers from 0.001 to 1 are allowed"),
        ("training-free", "dense_blocks=1", "dense_blocks is 1; how many first"),
        ("training-free", "end_percent=0.1", "start_percent is 0.2 and end_percent 0.1"),
    ],
)
def test_dials_that_can_not_act_are_refused(preset: str, setting: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        scenarios(Request("wan2.1-1.3b", "h200", str(TOKENS), preset, [setting]))


def test_a_table_takes_the_dials_place(case: Scenario) -> None:
    bands = torch.full((1, 30, 12), Band.HIGH.value)
    table = RoutingTable(bands, torch.full_like(bands, 8), FreqFormerConfig(tile=(4, 4, 8)))
    routing = Routing(kind="fixed", table=table)
    tabled = scenario("wan2.1-1.3b", "h200", TOKENS, preset="training-free", routing=routing)
    assert tabled.dials is None
    with pytest.raises(ProfileError, match="dials are given with bands of another kind"):
        replace(tabled, dials=case.dials)


def test_the_command_writes_every_document(tmp_path) -> None:
    names = [f"--{name}={tmp_path / 'out'}.{name}" for name in ("json", "csv", "html")]
    given = ["--model", "wan2.2-5b", "--tokens", "5s", "--preset", "training-free", *names]
    run("simulate", *given)
    (record,) = json.loads((tmp_path / "out.json").read_text())["scenarios"]
    assert record["dials"]["density"] == 0.2
    assert record["config"]["mid_pattern"] == "topk"
    assert "training-free" in (tmp_path / "out.html").read_text()
