"""What is measured on two GPUs makes the simulator's all-to-alls; half of it only shows errors."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from freqformer.cli import app
from freqformer.simulate.model.efficiency import load_efficiency
from freqformer.simulate.model.fit import Fit, fit_efficiency
from freqformer.simulate.model.hardware import load_hardware
from freqformer.simulate.model.measurements import read_results, read_shares
from freqformer.simulate.model.profiles import ProfileError
from freqformer.simulate.model.roofline import Machine
from freqformer.simulate.model.scale_out import LAYER_MESSAGES
from freqformer.simulate.present.describe import scale_note

ROOT = Path(__file__).parents[3]
COMMITTED = sorted((ROOT / "benchmarks" / "results" / "distributed").glob("*.json"))
MACHINE = {"gpu": "NVIDIA H200", "commit": "0123456789abcdef"}
TRUTH = {
    "all_to_all_bandwidth": 0.6,
    "all_to_all_s": 4e-5,
    "all_to_all_overlap": 0.75,
    "packing_bandwidth": 0.3,
}
LAYER: dict[str, Any] = {
    "kind": "layer",
    "grid": [64, 64, 64],
    "tokens": 262_144,
    "heads": 24,
    "head_dim": 128,
    "without": None,
}


def machine(**values: float) -> Machine:
    hardware = load_hardware("h200")
    return Machine(hardware, replace(load_efficiency(hardware), **values))


def write(folder: Path, name: str, **row: Any) -> Path:
    record = {"machine": MACHINE, "distributed": [{"row": name, "ranks": 2, **row}]}
    path = folder / f"{name}.json"
    path.write_text(json.dumps(record), encoding="utf-8")
    return path


def made_up(folder: Path) -> list[Path]:
    """Files that a machine with the true values would write; those of layers that are not fitted
    are 5% slower."""
    sizes = [1 << power for power in range(20, 31)]
    links = machine().hardware.interconnect
    assert links is not None
    rate = links.node_bandwidth * TRUTH["all_to_all_bandwidth"]
    messages = [
        {
            "bytes": size,
            "away_bytes": size / 2,
            "ms": 1e3 * (size / 2 / rate + links.node_latency_s + TRUTH["all_to_all_s"]),
        }
        for size in sizes
    ]
    files = [write(folder, "links", kind="links", messages=messages)]
    for config in ("default", "paper"):
        for backward in (False, True):
            for on in ("one", "all"):
                row = LAYER | {"config": config, "backward": backward, "on": on, "ms": 1.0}
                if on == "all":
                    row |= {"nccl_ms": 8.0, "hidden_ms": 1.0 if backward else 6.0}
                name = f"{config}-{backward}-{on}"
                (measured,) = read_results([write(folder, name, **row)], machine().hardware)
                slower = 1.0 if on == "all" and not backward else 1.05
                row["ms"] = 1e3 * slower * measured.predict(machine(**TRUTH))
                files.append(write(folder, name, **row))
    files.append(
        write(folder, "full", **LAYER, config="default", backward=True, on="one", out_of_memory="x")
    )
    return files


def fitted(files: list[Path]) -> Fit:
    start = machine()
    return fit_efficiency(read_results(files, start.hardware), start, [], shares=read_shares(files))


def test_rate_and_overlap_are_found_and_the_rest_is_foretold(tmp_path: Path) -> None:
    fit = fitted(made_up(tmp_path))
    for name, value in TRUTH.items():
        assert getattr(fit.efficiency, name) == pytest.approx(value, rel=1e-3)
        assert fit.efficiency.sources[name].startswith(("fitted on", "measured in"))
        assert "2 GPUs" in fit.efficiency.sources[name]
    # Sizes from 16 MiB, every other one; and layers on one GPU or with backward.
    held = [row for row in fit.comparisons if row.held_out]
    assert len(fit.comparisons) - len(held) == 6
    assert sum(row.measurement.name.startswith("all-to-all") for row in held) == 3
    layers = [row for row in held if row.measurement.name.startswith("layer")]
    assert len(layers) == 6
    for row in layers:
        assert row.error == pytest.approx(1 - 1 / 1.05, rel=1e-2)
    assert fit.efficiency.fit["held_out"]["worst"] == pytest.approx(0.048, abs=1e-3)


def test_a_layer_on_two_gpus_takes_half_and_what_nothing_hides(tmp_path: Path) -> None:
    files = made_up(tmp_path)
    named = {
        row.name: row.predict
        for row in read_results(files, machine().hardware)
        if row.name.startswith("layer")
    }
    one, two = (named[f"layer default, forward, {n}"] for n in ("1 GPU", "2 GPUs"))
    given = {"all_to_all_bandwidth": 0.8, "all_to_all_s": 3e-5, "packing_bandwidth": 0.5}
    hidden = machine(all_to_all_overlap=1.0, **given)
    hardware = hidden.hardware
    sent = 262_144 / 2 * (4 * 24 * 128 + 48) * 2
    # Read and written before it leaves and after it arrived.
    sorting = 4 * sent / (0.5 * hardware.memory_bandwidth)
    assert two(hidden) - sorting == pytest.approx(one(hidden) / 2, rel=0.05)
    links = hardware.interconnect
    assert links is not None
    seconds = sent / 2 / (links.node_bandwidth * 0.8) + LAYER_MESSAGES * (
        links.node_latency_s + 3e-5
    )
    assert two(machine(all_to_all_overlap=0.0, **given)) - two(hidden) == pytest.approx(seconds)


def test_heads_in_order_are_foretold_by_the_slower_rank(tmp_path: Path) -> None:
    row = LAYER | {"config": "paper", "backward": False, "on": "all", "ms": 1.0}
    files = [write(tmp_path, "a", **row), write(tmp_path, "b", **(row | {"without": "in-order"}))]
    by_cost, in_order = read_results(files, machine().hardware)
    assert in_order.name == "layer paper, forward, 2 GPUs, heads in-order"
    # Measured: 1.06 to 1.11 times as long.
    assert in_order.predict(machine()) > 1.05 * by_cost.predict(machine())


def test_what_was_measured_on_two_gpus_is_foretold_within_the_limit() -> None:
    """15% in all layers, fitted or not; what is shipped is what the committed files give."""
    here = machine()
    layers = [
        one
        for one in read_results(COMMITTED, here.hardware)
        if re.search(r"layer.*[2-9] GPUs", one.name)
    ]
    held = [one for one in layers if one.set_aside or one.tokens == 1_048_576]
    errors = [abs(one.predict(here) / one.seconds - 1) for one in layers]
    assert len(layers) >= 10
    assert len(held) >= len(layers) / 2
    assert max(errors) <= 0.15
    assert scale_note(here.efficiency).startswith("Measured: ")
    for name in TRUTH:
        assert "distributed/" in here.efficiency.sources[name]


def test_the_report_says_what_is_measured_and_what_foretold(tmp_path: Path) -> None:
    assert scale_note(replace(machine().efficiency, sources={})).startswith("Foretold: every fig")
    fit = fitted(made_up(tmp_path))
    note = scale_note(fit.efficiency)
    assert note.startswith("Measured: the all-to-alls' share of the link's bandwidth, 60% (fitted")
    assert "that computation hides, 75% (measured in" in note
    assert "Foretold from them" in note
    # Another machine's measurements are no measurements of this one.
    assert scale_note(replace(fit.efficiency, transferred=True)).startswith("Foretold: every")


def test_by_the_commands(tmp_path: Path) -> None:
    """Fit, then simulate with what was fitted."""
    files, output = made_up(tmp_path), tmp_path / "several.json"
    run = CliRunner().invoke(app, ["fit-hardware", *map(str, files), "--output", str(output)])
    assert run.exit_code == 0, run.output
    assert "held out" in run.output
    for given, expected in ((["--set", f"efficiency={output}"], "60%"), ([], "2 GPUs")):
        target = tmp_path / "out.json"
        run = CliRunner().invoke(
            app, ["simulate", "--lengths", "65536", "--json", str(target), *given]
        )
        assert run.exit_code == 0, run.output
        said = json.loads(target.read_text(encoding="utf-8"))["scale_out_rests_on"]
        assert said.startswith("Measured: ")
        assert expected in said


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"kind": "links"}, "lacks 'messages'"),
        ({"kind": "links", "messages": [{"bytes": 1 << 30, "away_bytes": -1, "ms": 1}]}, "away_b"),
        (LAYER | {"config": "x", "backward": False, "on": "all", "ms": 1.0}, "lacks 'x'"),
        (LAYER | {"config": "paper", "backward": False, "on": "all", "ms": -1.0}, "seconds of"),
    ],
)
def test_files_that_no_benchmark_wrote_are_refused(
    tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(ProfileError, match=message):
        read_results([write(tmp_path, "bad", **row)], machine().hardware)


def test_more_hidden_than_there_is_is_refused(tmp_path: Path) -> None:
    row = LAYER | {"config": "default", "backward": False, "on": "all", "ms": 1.0}
    path = write(tmp_path, "bad", **row, nccl_ms=1.0, hidden_ms=2.0)
    with pytest.raises(ProfileError, match="hidden_ms"):
        read_shares([path])
