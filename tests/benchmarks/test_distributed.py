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
def calls(monkeypatch: pytest.MonkeyPatch) -> Any:
    return module(monkeypatch, "distributed_calls")


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> Any:
    return module(monkeypatch, "distributed_measure")


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
    assert f"{len(ROWS)} rows measured, 0 failed, 0 left" in said
    found = table.read(tmp_path / "distributed")
    assert set(found) == set(ROWS)
    assert all(row["ms"] > 0 for name, row in found.items() if name != "links")
    assert [one["bytes"] for one in found["links"]["messages"]] == [1 << 10, 1 << 14]
    assert found["default-256-backward-waited"]["without"] == "waited"
    lines = table.table(found).splitlines()
    assert any(line.startswith("| default-256-backward |") for line in lines)


def put(folder: Path, number: int, *rows: dict[str, Any]) -> None:
    record = {"machine": MACHINE, "began": 1000.0, "distributed": rows}
    (folder / f"{number}.json").write_text(json.dumps(record))


def test_a_call_goes_on_where_another_stopped(
    tmp_path: Path, benchmark_of: Any, calls: Any
) -> None:
    """Rows that failed elsewhere come last, those that failed in this call not again."""
    put(tmp_path, 1, {"row": "c", "failed": "x"}, {"row": "a", "ms": 1.0})
    put(tmp_path, 10, {"row": "a", "failed": "later"}, {"row": "d", "failed": "y"})
    call = calls.Call(tmp_path / "11.json", "x", 0.0, {"d": {"failed": "z"}})
    left = benchmark_of.missing(["a", "d", "c", "b"], call, [tmp_path, tmp_path / "none"])
    assert left == ["b", "c"]
    assert calls.measured_rows([tmp_path])["a"] == {"row": "a", "ms": 1.0}


def test_a_call_is_numbered_and_goes_on_when_started_again(tmp_path: Path, calls: Any) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    put(elsewhere, 9)
    put(tmp_path, 1, {"row": "a", "ms": 1.0})
    assert calls.Call.begun(tmp_path, [elsewhere], "x", False).path == tmp_path / "10.json"
    again = calls.Call.begun(tmp_path, [elsewhere], "x", True)
    assert again.path == tmp_path / "1.json"
    assert again.began == 1000.0
    assert set(again.rows) == {"a"}


def test_no_row_is_begun_without_time(
    tmp_path: Path, benchmark_of: Any, calls: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is measured is kept, and the rest is named."""
    clock = Clock()
    monkeypatch.setattr(benchmark_of, "time", clock)
    monkeypatch.setattr(benchmark_of.dist, "get_rank", lambda: 0)
    monkeypatch.setattr(benchmark_of.dist, "get_world_size", lambda: 2)

    def sixty_seconds(host: Any) -> dict[str, float]:
        clock.now += 60
        return {"ms": 1.0}

    given = dict.fromkeys(("layer-1", "layer-2", "links"), sixty_seconds)
    call = calls.Call(tmp_path / "1.json", "x", 0.0)
    options = Namespace(seconds=110, row_seconds=100)
    undone = benchmark_of.measure(list(given), given, Namespace(ranks=Alone()), call, options)
    # Of another kind nothing is known yet, so it is tried.
    assert undone == {"layer-2": "no time left"}
    assert set(calls.measured_rows([tmp_path])) == {"layer-1", "links"}


class Ended(Exception):
    """In place of the end of a process."""


def test_a_row_that_raises_says_why_and_ends_its_process(
    tmp_path: Path, benchmark_of: Any, calls: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(code: int) -> None:
        raise Ended

    monkeypatch.setattr(benchmark_of.dist, "get_rank", lambda: 0)
    monkeypatch.setattr(benchmark_of.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(benchmark_of.os, "_exit", end)
    call = calls.Call(tmp_path / "1.json", "x", 0.0, {"b": {"row": "b", "ms": 1.0}})
    given = {"a": lambda host: {}["key"]}
    options = Namespace(seconds=1e12, row_seconds=100)
    with pytest.raises(Ended):
        benchmark_of.measure(["a"], given, Namespace(ranks=Alone()), call, options)
    benchmark_of.faulthandler.cancel_dump_traceback_later()
    found = calls.measured_rows([tmp_path])
    assert found["a"]["failed"] == "KeyError('key')"
    assert found["b"]["ms"] == 1.0
    call.fail("a", {"failed": "what another rank says later"})
    assert calls.measured_rows([tmp_path])["a"]["failed"] == "KeyError('key')"


class Alone:
    """Ranks of which there is one."""

    def gathered(self, own: Any) -> list[Any]:
        return [own]

    def of_first(self, own: Any) -> Any:
        return own


class Clock:
    now = 0.0

    def time(self) -> float:
        return self.now

    monotonic = time


def test_every_row_that_was_asked_for_is_there(rows: Any) -> None:
    names = set(rows.all_rows(rows.Sizes()))
    for tokens in (262_144, 1_048_576):
        for passed in ("forward", "backward"):
            assert {f"default-{tokens}-{passed}-{on}" for on in ("one", "all", "waited")} <= names
            assert {f"paper-{tokens}-{passed}-{on}" for on in ("one", "all", "in-order")} <= names
    assert {"links", "training-one", "training-all", "wan-one", "wan-all"} <= names
    assert rows.Sizes().wan_grid.num_tokens == 302_400


def test_what_several_gpus_are_held_to_comes_first(rows: Any) -> None:
    """And one GPU before all: these find kernels compiled."""
    names = list(rows.all_rows(rows.Sizes()))
    held = [f"{name}-262144" for name in ("default", "paper")]
    assert all(name.startswith(("links", *held)) for name in names[:11])
    assert names.index("training-one") < names.index("default-1048576-forward-one")
    for name in names:
        if name.endswith("-all") and not name.startswith("training"):
            assert names.index(name.replace("-all", "-one")) < names.index(name)


def test_what_is_hidden_is_read_off_the_spans(measure: Any) -> None:
    spans = [
        ("ncclDevKernel_SendRecv", 0.0, 100.0),
        ("gemm", 20.0, 50.0),
        ("copy", 40.0, 60.0),  # beside the product: counted once
        ("ncclDevKernel_SendRecv", 200.0, 300.0),
        ("attention", 90.0, 190.0),
    ]
    found = measure.communication(spans)
    assert found == {"nccl_ms": pytest.approx(0.2), "hidden_ms": pytest.approx(0.05)}


def test_kernels_are_added_up_by_name(measure: Any) -> None:
    spans = [("gemm", 0.0, 100.0), ("copy", 0.0, 250.0), ("gemm", 0.0, 200.0), ("sum", 0.0, 1.0)]
    found = measure.longest(spans, most=2)
    assert list(found.items()) == [("gemm", pytest.approx(0.3)), ("copy", pytest.approx(0.25))]


def test_a_row_without_memory_says_so(measure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On one GPU that is its result; of all, others may wait for this one."""

    def full() -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB. GPU 0 has 1")

    monkeypatch.setattr(measure.dist, "get_rank", lambda: 0)
    host = Namespace(ranks=Alone())
    found = measure.measured(full, "one", 1, host)
    assert found == {"out_of_memory": "CUDA out of memory. Tried to allocate 9 GiB"}
    with pytest.raises(measure.LostRank) as lost:
        measure.measured(full, "all", 1, host)
    assert lost.value.found == found


def test_one_gpu_that_ran_out_is_the_longest_that_fits(tmp_path: Path, table: Any) -> None:
    def row(name: str, **found: Any) -> dict[str, Any]:
        return {"row": name, "kind": "layer", "config": "default", "backward": True, **found}

    short = row("default-512-backward-one", tokens=512, on="one", ms=10.0)
    full = row("default-1024-backward-one", tokens=1024, on="one", out_of_memory="x")
    put(tmp_path, 1, short, full)
    put(tmp_path, 2, row("default-1024-backward-all", tokens=1024, on="all", ms=10.5))
    (found,) = table.joined(table.read(tmp_path))
    assert found["one_ran_out"]
    assert found["one_of"] == 512
    assert found["times_one"] == pytest.approx(20 / 10.5)


def test_rows_of_two_machines_are_not_joined(tmp_path: Path, table: Any) -> None:
    for number, commit in enumerate("ab"):
        record = {"machine": {**MACHINE, "commit": commit}, "distributed": []}
        (tmp_path / f"{number}.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="one GPU and commit are allowed"):
        table.read(tmp_path)
    with pytest.raises(ValueError, match="holds no rows"):
        table.read(tmp_path / "nowhere")
