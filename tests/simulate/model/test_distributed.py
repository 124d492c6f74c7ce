"""What is measured on two GPUs makes the simulator's all-to-alls; half of it only shows errors."""

from __future__ import annotations

import json
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
from freqformer.simulate.present.describe import scale_note

MACHINE = {"gpu": "NVIDIA H200", "commit": "0123456789abcdef"}
TRUTH = {"all_to_all_bandwidth": 0.6, "all_to_all_overlap": 0.75}
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
    """Files that a machine with the true values would write; those of layers are 5% slower."""
    sizes = [1 << power for power in range(20, 31)]
    links = machine().hardware.interconnect
    assert links is not None
    rate = links.node_bandwidth * TRUTH["all_to_all_bandwidth"]
    messages = [
        {
            "bytes": size,
            "away_bytes": size / 2,
            "ms": 1e3 * (size / 2 / rate + links.node_latency_s),
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
                row["ms"] = 1.05e3 * measured.predict(machine(**TRUTH))
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
    # Sizes from 16 MiB, every other one; and all layers.
    held = [row for row in fit.comparisons if row.held_out]
    assert len(fit.comparisons) - len(held) == 4
    assert sum(row.measurement.name.startswith("all-to-all") for row in held) == 3
    layers = [row for row in held if row.measurement.name.startswith("layer")]
    assert len(layers) == 8
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
    hidden = machine(all_to_all_overlap=1.0)
    assert two(hidden) == pytest.approx(one(hidden) / 2, rel=0.05)
    links = machine().hardware.interconnect
    assert links is not None
    sent = 262_144 / 2 * (4 * 24 * 128 + 48) * 2 / 2
    seconds = sent / (links.node_bandwidth * 0.8) + 4 * links.node_latency_s
    assert two(machine()) - two(hidden) == pytest.approx(seconds)


def test_the_report_says_what_is_measured_and_what_foretold(tmp_path: Path) -> None:
    assert scale_note(machine().efficiency).startswith("Foretold: every figure")
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
    for given, expected in ((["--set", f"efficiency={output}"], "Measured: "), ([], "Foretold: ")):
        target = tmp_path / "out.json"
        run = CliRunner().invoke(
            app, ["simulate", "--lengths", "65536", "--json", str(target), *given]
        )
        assert run.exit_code == 0, run.output
        said = json.loads(target.read_text(encoding="utf-8"))["scale_out_rests_on"]
        assert said.startswith(expected)


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
