"""The fit finds what made the measurements, and reports what it did not see apart."""

from __future__ import annotations

import ast
import shlex
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
import torch
from typer.testing import CliRunner

from freqformer import FreqFormerConfig, Grid, build_plan
from freqformer.cli import app
from freqformer.simulate.model.counts import dense_counts, layer_counts
from freqformer.simulate.model.efficiency import load_efficiency
from freqformer.simulate.model.fit import Measurement, fit_efficiency
from freqformer.simulate.model.hardware import load_hardware
from freqformer.simulate.model.measurements import read_peaks, read_results
from freqformer.simulate.model.measurements.common import GRADIENT_LAUNCHES, LAUNCHES
from freqformer.simulate.model.profiles import ProfileError
from freqformer.simulate.model.roofline import Machine
from freqformer.simulate.present.report import fit_note

TRUTH = {
    "dense_rate": 0.55,
    "attention_rate": 0.44,
    "attention_item_blocks": 4.0,
    "prologue_bandwidth": 0.35,
    "merge_bandwidth": 0.7,
}
FRAMES = (8, 16, 32, 64)
ROOT = Path(__file__).parents[3]
RESULTS = [
    ROOT / "benchmarks" / "results" / name
    for name in ("kernel.json", "layer.json", "backward.json")
]


def machine() -> Machine:
    hardware = load_hardware("h200")
    return Machine(hardware, load_efficiency(hardware))


def made_up(noise: float = 0.0) -> list[Measurement]:
    """Measurements that a machine with the true values would give, off by a random factor."""
    truth = machine()
    truth = replace(truth, efficiency=replace(truth.efficiency, **TRUTH))
    generator = torch.Generator().manual_seed(0)
    rows = []
    for frames in FRAMES:
        for kept in (4, 64):
            grid, config = Grid(frames, 32, 64), FreqFormerConfig(mid_tiles=kept)
            plan = build_plan(grid, config, num_heads=12, head_dim=128)
            allocation = [0, 1, 2] * 4
            counts = layer_counts(plan, allocation)
            for stage, informs in (
                ("attention", ("attention_rate", "attention_item_blocks")),
                ("prologue", ("prologue_bandwidth",)),
                ("merge", ("merge_bandwidth",)),
            ):

                def predict(
                    at: Machine, plan=plan, counts=counts, stage=stage, allocation=allocation
                ) -> float:
                    return at.layer(counts)[stage].seconds

                rows.append((f"{stage} {kept}", grid.num_tokens, predict, informs))
        dense = dense_counts(grid.num_tokens, 12, 128)
        rows.append(
            (
                "dense",
                grid.num_tokens,
                lambda at, dense=dense: at.dense(dense, 128).seconds,
                ("dense_rate",),
            )
        )
    factors = 1 + noise * (2 * torch.rand(len(rows), generator=generator, dtype=torch.float64) - 1)
    return [
        Measurement(name, tokens, predict(truth) * factor, predict, informs, "made-up.json")
        for (name, tokens, predict, informs), factor in zip(rows, factors.tolist(), strict=True)
    ]


def test_the_fit_recovers_what_made_the_measurements():
    found = fit_efficiency(made_up(), machine(), hold_out=[32 * 32 * 64])
    for name, value in TRUTH.items():
        assert getattr(found.efficiency, name) == pytest.approx(value, rel=2e-3), name
    assert max(found.errors(held_out=False)) < 2e-3
    assert max(found.errors(held_out=True)) < 2e-3
    assert found.efficiency.sources["dense_rate"] == "fitted on made-up.json"
    # What nothing was measured of stays, with its source.
    start = machine().efficiency
    assert found.efficiency.linear_rate == start.linear_rate
    assert found.efficiency.sources["linear_rate"] == start.sources["linear_rate"]


def test_errors_of_fit_and_hold_out_are_apart():
    measurements = made_up(noise=0.05)
    held = [8 * 32 * 64, 64 * 32 * 64]
    found = fit_efficiency(measurements, machine(), hold_out=held)
    outside = [row for row in found.comparisons if row.held_out]
    assert {row.measurement.tokens for row in outside} == set(held)
    assert len(outside) == sum(measurement.tokens in held for measurement in measurements)
    summary = found.efficiency.fit
    assert summary["hold_out_tokens"] == held
    assert summary["held_out"]["count"] == len(outside)
    assert 0 < summary["held_out"]["median"] <= summary["held_out"]["worst"] < 0.12
    assert summary["held_out"]["worst"] == pytest.approx(
        max(row.error for row in outside), rel=1e-3
    )

    # Held-out measurements have no say: changing them changes no value.
    changed = [
        replace(measurement, seconds=3 * measurement.seconds)
        if measurement.tokens in held
        else measurement
        for measurement in measurements
    ]
    again = fit_efficiency(changed, machine(), hold_out=held)
    for name in TRUTH:
        assert getattr(again.efficiency, name) == getattr(found.efficiency, name)
    assert min(again.errors(held_out=True)) > 0.5


def test_a_fit_stays_within_what_an_efficiency_allows():
    """Measurements that nothing could take so little time for: the fraction ends at the largest
    that is allowed."""
    fast = [
        replace(measurement, seconds=measurement.seconds / 100)
        if "dense_rate" in measurement.informs
        else measurement
        for measurement in made_up()
    ]
    assert fit_efficiency(fast, machine(), hold_out=[]).efficiency.dense_rate == 2


def test_nothing_to_fit_is_refused():
    measurements = made_up()
    with pytest.raises(ProfileError, match="hold-out has \\[5\\]"):
        fit_efficiency(measurements, machine(), hold_out=[5])
    with pytest.raises(ProfileError, match="no measurement is left"):
        fit_efficiency(measurements, machine(), hold_out=[frames * 32 * 64 for frames in FRAMES])


def test_the_shipped_efficiency_predicts_the_committed_measurements():
    """H200: median error at most 10% and worst 25% on token counts that the fit did not see; peak
    memory within 10%."""
    here = machine()
    held = here.efficiency.fit["hold_out_tokens"]
    rows = [one for one in read_results(RESULTS, here.hardware) if one.tokens in held]
    errors = [abs(one.predict(here) / one.seconds - 1) for one in rows]
    assert len(held) >= 2
    assert len(errors) >= 20
    assert any("backward" in one.name for one in rows)
    assert median(errors) <= 0.10
    assert max(errors) <= 0.25
    peaks = read_peaks(RESULTS)
    assert any("backward" in name for name, _, _ in peaks)
    assert max(abs(counted / measured - 1) for _, measured, counted in peaks) <= 0.10


def test_the_documented_commands_fit_what_is_committed(tmp_path, monkeypatch):
    """As the docs have them, from the repository's root: the hold-out keeps its limits whatever was
    measured last."""
    text = (ROOT / "docs" / "complexity.md").read_text().replace("\\\n", " ")
    commands = [
        shlex.split(line)
        for line in text.splitlines()
        if line.startswith("freqformer fit-hardware")
    ]
    assert [command[command.index("--output") + 1] for command in commands] == [
        f"src/freqformer/simulate/data/efficiency/{name}.json" for name in ("h200", "cpu")
    ]
    monkeypatch.chdir(ROOT)
    for name, command in zip(("h200", "cpu"), commands, strict=True):
        written = tmp_path / f"{name}.json"
        command[command.index("--output") + 1] = str(written)
        found = CliRunner().invoke(app, command[1:])
        assert found.exit_code == 0, found.output
        fit = load_efficiency(written).fit
        assert fit["fit"]["median"] <= 0.10
        if name == "h200":
            assert fit["held_out"]["median"] <= 0.10
            assert fit["held_out"]["worst"] <= 0.25
            assert fit["memory"]["worst"] <= 0.10


@pytest.mark.parametrize("known", [LAUNCHES, GRADIENT_LAUNCHES])
def test_launches_are_known_by_todays_names(known):
    """Of every part, so that a kernel with another name is not left out of what was measured."""
    sources = (ROOT / "src" / "freqformer" / "ops").rglob("*.py")
    kernels = [
        node.name
        for path in sources
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
        and any("triton.jit" in ast.unparse(mark) for mark in node.decorator_list)
    ]
    today = {name for name in known if any(name in kernel for kernel in kernels)}
    assert {known[name] for name in today} == set(known.values())
    assert set(known) - today <= {"expand_low", "collapse_low"}


def test_a_fit_without_hold_out_says_so():
    found = fit_efficiency(made_up(), machine(), hold_out=[])
    assert "Nothing was held out" in fit_note(found.efficiency.fit)
    held = fit_efficiency(made_up(), machine(), hold_out=[32 * 32 * 64])
    assert "Nothing was held out" not in fit_note(held.efficiency.fit)
