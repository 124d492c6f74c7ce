"""The benchmark of several GPUs: tiny rows over gloo, what overlaps, and the table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import Namespace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
ROWS = (
    *("links", "default-256-backward-one", "default-256-backward-all"),
    *("default-256-backward-waited", "paper-256-forward-in-order", "training-all", "wan-all"),
)
MACHINE = {"gpu": "made up", "commit": "0" * 40}


def module(monkeypatch: pytest.MonkeyPatch, name: str) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return import_module(name)


@pytest.fixture
def benchmark_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    return module(monkeypatch, "distributed")


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> Any:
    return module(monkeypatch, "distributed_rows")


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Any:
    return module(monkeypatch, "distributed_table")


def run(*arguments: str) -> str:
    """The benchmark on two ranks, as its page says."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *command, "benchmarks/distributed.py", "--tiny", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT)))},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_every_row_is_a_file(tmp_path: Path, table: Any) -> None:
    said = run("--output", str(tmp_path), "--commit", "x", "--rows", *ROWS)
    assert f"{len(ROWS)} rows measured, 0 left" in said
    found = table.read(tmp_path / "distributed")
    assert set(found) == set(ROWS)
    assert all(row["ms"] > 0 for name, row in found.items() if name != "links")
    assert [one["bytes"] for one in found["links"]["messages"]] == [1 << 10, 1 << 14]
    assert found["default-256-backward-waited"]["without"] == "waited"
    lines = table.table(found).splitlines()
    assert any(line.startswith("| default-256-backward |") for line in lines)


def test_a_call_goes_on_where_another_stopped(tmp_path: Path, benchmark_of: Any) -> None:
    (tmp_path / "a.json").touch()
    assert benchmark_of.missing(["a", "b"], [tmp_path, tmp_path / "none"]) == ["b"]


def test_no_row_is_begun_without_time(
    tmp_path: Path, benchmark_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is measured is kept, and the rest is named."""
    monkeypatch.setattr(benchmark_of.dist, "broadcast_object_list", lambda told, src: None)
    monkeypatch.setattr(benchmark_of.dist, "get_rank", lambda: 0)
    monkeypatch.setattr(benchmark_of.dist, "get_world_size", lambda: 2)
    clock = iter([0.0, 0.0, 0.0, 60.0, 60.0])  # begun, asked, row, row, asked
    monkeypatch.setattr(benchmark_of.time, "monotonic", lambda: next(clock))
    options = Namespace(seconds=100, output=tmp_path, commit="x")
    given = dict.fromkeys(("first", "second"), lambda mesh: {"ms": 1.0})
    undone = benchmark_of.measure(["first", "second"], given, None, options)
    assert undone == {"second": "no time left"}
    assert [path.stem for path in (tmp_path / "distributed").iterdir()] == ["first"]


def test_every_row_that_was_asked_for_is_there(rows: Any) -> None:
    names = set(rows.all_rows(rows.Sizes()))
    for tokens in (262_144, 1_048_576):
        for passed in ("forward", "backward"):
            assert {f"default-{tokens}-{passed}-{on}" for on in ("one", "all", "waited")} <= names
            assert {f"paper-{tokens}-{passed}-{on}" for on in ("one", "all", "in-order")} <= names
    assert {"links", "training-one", "training-all", "wan-one", "wan-all"} <= names
    assert rows.Sizes().wan_grid.num_tokens == 302_400


def test_what_is_hidden_is_read_off_the_spans(rows: Any) -> None:
    spans = [
        ("ncclDevKernel_SendRecv", 0.0, 100.0),
        ("gemm", 20.0, 50.0),
        ("copy", 40.0, 60.0),  # beside the product: counted once
        ("ncclDevKernel_SendRecv", 200.0, 300.0),
        ("attention", 90.0, 190.0),
    ]
    found = rows.communication(spans)
    assert found == {"nccl_ms": pytest.approx(0.2), "hidden_ms": pytest.approx(0.05)}


def test_a_row_without_memory_says_so(rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def gather(told: list[Any], own: Any) -> None:
        told[0] = own

    def full() -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB. GPU 0 has 1")

    monkeypatch.setattr(rows.dist, "get_rank", lambda: 0)
    monkeypatch.setattr(rows.dist, "get_world_size", lambda: 1)
    monkeypatch.setattr(rows.dist, "all_gather_object", gather)
    found = rows.measured(full, "one", 1)
    assert found == {"out_of_memory": "CUDA out of memory. Tried to allocate 9 GiB"}


def test_one_gpu_that_ran_out_is_the_longest_that_fits(tmp_path: Path, table: Any) -> None:
    def put(name: str, **row: Any) -> None:
        record = {"machine": MACHINE, "distributed": {"kind": "layer", "backward": True, **row}}
        (tmp_path / f"{name}.json").write_text(json.dumps(record))

    put("default-512-backward-one", config="default", tokens=512, on="one", ms=10.0)
    put("default-1024-backward-one", config="default", tokens=1024, on="one", out_of_memory="x")
    put("default-1024-backward-all", config="default", tokens=1024, on="all", ms=10.5)
    (found,) = table.joined(table.read(tmp_path))
    assert found["one_ran_out"]
    assert found["one_of"] == 512
    assert found["times_one"] == pytest.approx(20 / 10.5)


def test_rows_of_two_machines_are_not_joined(tmp_path: Path, table: Any) -> None:
    for name, commit in (("a-one", "0"), ("a-all", "1")):
        record = {"machine": {**MACHINE, "commit": commit}, "distributed": {}}
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="one GPU and commit are allowed"):
        table.read(tmp_path)
    with pytest.raises(ValueError, match="holds no rows"):
        table.read(tmp_path / "nowhere")
