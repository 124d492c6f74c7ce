"""`freqformer fit-hardware`, as typed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.command_line import invoke, run

from freqformer import FreqFormerConfig, Grid, build_plan
from freqformer.ops.cost import training_bytes, workspace_bytes
from freqformer.routing import even_allocation
from freqformer.simulate.model.counts import dense_counts, layer_counts
from freqformer.simulate.model.efficiency import load_efficiency
from freqformer.simulate.model.gradients import (
    dense_gradient_time,
    gradient_times,
)
from freqformer.simulate.model.hardware import load_hardware
from freqformer.simulate.model.measurements import read_peaks
from freqformer.simulate.model.roofline import Machine


def made_up_layer_results() -> dict:
    """A layer.json whose times are what a machine with other fractions would give; one router is
    that of long ago."""
    hardware = load_hardware("h200")
    changes = {
        "dense_rate": 0.58,
        "attention_rate": 0.47,
        "attention_item_blocks": 3.0,
        "prologue_bandwidth": 0.4,
    }
    changes |= {"router_rate": 0.1, "router_s": 2e-5}
    machine = Machine(hardware, replace(load_efficiency(hardware), **changes))
    config = FreqFormerConfig(mid_tiles=32, summary_tokens=256)

    def record(grid: Grid, heads: int, learned: bool = False) -> dict:
        plan = build_plan(grid, config, num_heads=heads, head_dim=128, learned_summaries=learned)
        allocation = even_allocation(heads)
        times = machine.layer(layer_counts(plan, allocation, router="statistics"))
        router = times.pop("router")
        kernels = {
            "prologue": "prepare_tiles",
            "summaries": "finish_rows",
            "selection": "select_tiles",
            "attention": "attention_kernel",
            "merge": "expand_low",
        }
        return {
            "grid": list(grid.shape),
            "tokens": grid.num_tokens,
            "heads": heads,
            "window": [3, 3, 3],
            "mid_tiles": 32,
            "layer_ms": 1e3 * sum(time.seconds for time in times.values()),
            "launches": [[kernels[name], 1e6 * time.seconds] for name, time in times.items()],
            "workspace_bytes": workspace_bytes(plan, heads, 2),
            "live_router": {"ms": 1e3 * router.compute_s, "num_launches": 2},
        }

    def dense_ms(grid: Grid, heads: int) -> float:
        return 1e3 * machine.dense(dense_counts(grid.num_tokens, heads, 128), 128).seconds

    wan = Grid(21, 45, 80)
    points = [
        record(Grid(frames, 64, 64), 8)
        | {"dense_ms": dense_ms(Grid(frames, 64, 64), 8), "dense_measured": frames < 32}
        for frames in (8, 16, 32)
    ]
    points[0]["live_router"] = {"ms": 30.0, "num_launches": 104}
    variants = {"bench": record(wan, 40), "learned summaries": record(wan, 40, learned=True)}
    router = variants["bench"]["live_router"]
    return {
        "machine": {"gpu": "NVIDIA H200", "commit": "0123456789abcdef"},
        "config": config.to_dict(),
        "head_dim": 128,
        "layers": {"wan": {"dense_ms": dense_ms(wan, 40), "live_router": router, **variants}},
        "scaling": {"points": points},
    }


def test_it_fits_benchmark_results(tmp_path):
    path, out = tmp_path / "layer.json", tmp_path / "h200.json"
    path.write_text(json.dumps(made_up_layer_results()))
    shown = run("fit-hardware", path, "--hold-out", 16 * 64 * 64, "--output", out)
    assert "held out: 7 measurements" in shown
    fitted = load_efficiency(out)
    assert fitted.dense_rate == pytest.approx(0.58, rel=0.01)
    assert fitted.attention_rate == pytest.approx(0.47, rel=0.01)
    assert fitted.prologue_bandwidth == pytest.approx(0.4, rel=0.01)
    assert fitted.router_rate == pytest.approx(0.1, rel=0.01)
    assert fitted.router_s == pytest.approx(2e-5, rel=0.01)
    assert fitted.fit["held_out"]["worst"] < 0.01
    assert "NVIDIA H200, commit 0123456789ab" in fitted.sources["attention_rate"]
    assert (
        run("simulate", "--tokens", 65536, "--set", f"efficiency={out}").count(
            "held out: 7 measurements"
        )
        == 1
    )
    for _, measured, predicted in read_peaks([path]):
        assert predicted == measured


def test_it_reads_the_kernel_benchmark(tmp_path):
    """kernel.json of two head sizes: the launch's rate, what an item costs, and what small heads
    cost, are found."""
    hardware = load_hardware("h200")
    start = load_efficiency(hardware)
    truth = Machine(
        hardware,
        replace(start, attention_rate=0.5, attention_item_blocks=4.0, softmax_channels=80.0),
    )
    paths = []
    for head_dim in (64, 128):
        launch = {}
        for density, kept in (("1.0", 512), ("0.1", 51), ("0.05", 26)):
            config = FreqFormerConfig(mid_tiles=kept, summary_tokens=0)
            plan = build_plan(Grid(16, 64, 64), config, num_heads=8, head_dim=head_dim)
            times = truth.layer(layer_counts(plan, [1] * 8))
            launch[density] = {"ms": 1e3 * times["attention"].seconds}
        dense = {"ms": 1e3 * truth.dense(dense_counts(65_536, 8, head_dim), head_dim).seconds}
        shape = {"tokens": 65_536, "heads": 8, "head_dim": head_dim}
        paths.append(tmp_path / f"kernel-{head_dim}.json")
        machine = {"gpu": "NVIDIA H200", "commit": "0"}
        paths[-1].write_text(
            json.dumps({"machine": machine, **shape, "dense": dense, "launch": launch})
        )
    out = tmp_path / "h200.json"
    assert "fitted: 8 measurements" in run("fit-hardware", *paths, "--output", out)
    fitted = load_efficiency(out)
    assert fitted.attention_rate == pytest.approx(0.5, rel=0.01)
    assert fitted.attention_item_blocks == pytest.approx(4.0, rel=0.05)
    assert fitted.softmax_channels == pytest.approx(80.0, rel=0.05)
    assert fitted.dense_rate == pytest.approx(start.dense_rate, rel=0.01)


def test_it_reads_the_backward_benchmark(tmp_path):
    """backward.json: the rates of both backwards are found from launches alone, layers and their
    parts."""
    hardware = load_hardware("h200")
    start = load_efficiency(hardware)
    changes = {
        "dense_gradient_rate": 0.45,
        "attention_gradient_rate": 0.42,
        "prologue_gradient_bandwidth": 0.25,
        "pooling_gradient_rate": 0.03,
        "merge_gradient_bandwidth": 0.4,
    }
    truth = Machine(hardware, replace(start, **changes))
    kernels = {
        "attention": "query_grads_kernel",
        "gather": "gather_grads_kernel",
        "prologue": "tile_grads",
    }
    kernels |= {"summaries": "pool_slopes", "merge": "collapse_low"}

    def layer(grid: Grid, learned: bool) -> dict:
        config = FreqFormerConfig(mid_tiles=32, summary_tokens=256)
        plan = build_plan(grid, config, num_heads=8, head_dim=128, learned_summaries=learned)
        allocation = even_allocation(8)
        counts = layer_counts(plan, allocation)
        times = gradient_times(truth, counts)
        both = sum(t.seconds for t in (*times.values(), *truth.layer(counts).values()))
        launches = [
            [kernels[name], 1e6 * time.seconds] for name, time in times.items() if name in kernels
        ]
        peak = training_bytes(plan, 2)
        shape = {"grid": list(grid.shape), "tokens": grid.num_tokens, "heads": 8}
        return shape | {
            "forward_and_backward_ms": 1e3 * both,
            "launches": launches,
            "peak_bytes": peak,
        }

    launches = {}
    for density, kept in (("0.1", 51), ("0.05", 26)):
        plan = build_plan(
            Grid(16, 64, 64),
            FreqFormerConfig(mid_tiles=kept, summary_tokens=0),
            num_heads=8,
            head_dim=128,
        )
        times = gradient_times(truth, layer_counts(plan, [1] * 8))
        launches[density] = {
            "launches": {"ms": 1e3 * (times["gather"].seconds + times["attention"].seconds)}
        }
    dense = dense_counts(65_536, 8, 128)
    values = {
        "machine": {"gpu": "NVIDIA H200", "commit": "0"},
        "tokens": 65_536,
        "head_dim": 128,
        "launches": launches,
        "layers": {
            "short": layer(Grid(16, 64, 64), False),
            "learned": layer(Grid(16, 64, 64), True),
            "long": layer(Grid(32, 64, 64), False),
        },
        "dense_ms": 1e3
        * (truth.dense(dense, 128).seconds + dense_gradient_time(truth, dense, 128).seconds),
    }
    path, out = tmp_path / "backward.json", tmp_path / "h200.json"
    path.write_text(json.dumps(values))
    assert "held out: 4 measurements" in run(
        "fit-hardware", path, "--hold-out", 131_072, "--output", out
    )
    fitted = load_efficiency(out)
    for name, value in changes.items():
        assert getattr(fitted, name) == pytest.approx(value, rel=0.02), name
    assert fitted.fit["held_out"]["worst"] < 0.01
    assert all(counted == measured for _, measured, counted in read_peaks([path]))


def test_it_reads_the_eager_benchmark(tmp_path):
    path, out = tmp_path / "eager_cpu.json", tmp_path / "cpu.json"
    speed = {
        "forward": {"dense_wall_s": 6.0, "frequency_wall_s": 1.5},
        "forward and backward": {"dense_wall_s": 20.0, "frequency_wall_s": 5.0},
    }
    path.write_text(json.dumps({"machine": {"cpu": "some", "commit": "0"}, "speed": speed}))
    shown = run("fit-hardware", path, "--hardware", "cpu", "--output", out)
    assert "fitted: 4 measurements, median error 0.0%, worst 0.0%" in shown
    assert (
        invoke("fit-hardware", path, "--hardware", "cpu", "--output", "-").stdout == out.read_text()
    )
    start, fitted = load_efficiency("cpu"), load_efficiency(out)
    assert fitted.dense_rate != start.dense_rate
    assert fitted.linear_rate == start.linear_rate
    assert "was measured on CPU, some" in run("fit-hardware", path, code=2)


def test_results_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "layer.json"
    path.write_text("{")
    assert "layer.json can't be read" in run("fit-hardware", path, code=2)
    path.write_text(json.dumps({"machine": {"gpu": "NVIDIA H200"}, "other": 1}))
    assert "holds no known benchmark" in run("fit-hardware", path, code=2)
    values = made_up_layer_results()
    del values["scaling"]["points"][0]["heads"]
    path.write_text(json.dumps(values))
    assert "lacks 'heads'" in run("fit-hardware", path, code=2)
    values = made_up_layer_results()
    values["machine"]["gpu"] = "NVIDIA A100-SXM4-80GB"
    path.write_text(json.dumps(values))
    assert "was measured on NVIDIA A100" in run("fit-hardware", path, code=2)
    assert "results is empty" in run("fit-hardware", code=2)
    assert "hold-out is 'many'" in run("fit-hardware", path, "--hold-out", "many", code=2)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("heads", 10**9, "heads is 1000000000; whole numbers from 1 to 4096"),
        ("tokens", 2**30, "tokens of 'scaling, dense' is 1073741824"),
        ("layer_ms", 0, "seconds of 'scaling, layer' is 0.0"),
        ("workspace_bytes", -1e18, "peak bytes of 'scaling, "),
        ("grid", [0, 1, 1], "num_frames is 0"),
    ],
)
def test_results_that_no_benchmark_writes_are_refused_by_name(
    place: str, value: Any, message: str, tmp_path: Path
) -> None:
    """Found by fuzzing: lists of 10**9 heads, and errors of other types."""
    values = made_up_layer_results()
    values["layers"] = {}
    values["scaling"]["points"] = [values["scaling"]["points"][0] | {place: value}]
    path = tmp_path / "layer.json"
    path.write_text(json.dumps(values))
    output = run("fit-hardware", path, code=2)
    assert message in output, output
    assert "layer.json holds what benchmarks/layer.json does not write" in output


@pytest.mark.filterwarnings("default::FutureWarning")
def test_the_old_name_works_and_names_the_new_one(tmp_path):
    path = tmp_path / "layer.json"
    path.write_text(json.dumps(made_up_layer_results()))
    shown = run("calibrate-hardware", path, "--output", tmp_path / "out.json")
    assert "warning: calibrate-hardware is now fit-hardware" in shown
    assert (tmp_path / "out.json").exists()
    assert "calibrate-hardware" not in run("--help")
