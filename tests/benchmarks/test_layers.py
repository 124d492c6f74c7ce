"""The benchmark of whole layers: a tiny run of two versions, what is left out, and its table."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
SIZE = {"grid": [2, 3, 4], "heads": 1, "head_dim": 16}


@pytest.fixture
def layers(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import layers

    return layers


class Version:
    """Answers as a process does, without one: calls take `ms` each, and give `sample`."""

    def __init__(self, ms: float, told: list[str], name: str, sample: float = 1.0) -> None:
        self.ms, self.told, self.name, self.sample = ms, told, name, sample
        self.answers: list[dict[str, Any]] = []

    def send(self, do: str, **given: Any) -> None:
        if do == "measure":
            self.told.append(f"{self.name} {given['name']}")
        answers: dict[str, dict[str, Any]] = {
            "make": {"config": {}, "impl": "triton"},
            "check": {"sample": [self.sample, 2.0], "seconds": 0.0, "peak_bytes": 1},
            "measure": {"ms": self.ms},
            "drop": {},
        }
        self.answers.append(answers[do])

    def answer(self) -> dict[str, Any]:
        return self.answers.pop(0)

    def ask(self, do: str, **given: Any) -> dict[str, Any]:
        self.send(do, **given)
        return self.answer()


def bench(layers: Any, rows: list[str], *versions: Version, rounds: int = 4) -> Any:
    results: dict[str, Any] = {
        "configs": {},
        "impl": {},
        "sizes": {},
        "differences": {},
        "skipped": [],
    }
    named = {version.name: version for version in versions}
    return layers.Bench(named, rows, layers.Deadline(time.monotonic() + 60), results, rounds)


def test_versions_and_rows_take_turns(layers: Any) -> None:
    told: list[str] = []
    rows = ["layer default", "layer windows"]
    made = bench(layers, rows, Version(3.0, told, "today"), Version(4.0, told, "earlier"))
    made.size(SIZE)
    assert told[:8] == [
        "today layer default",
        "earlier layer default",
        "today layer windows",
        "earlier layer windows",
        "earlier layer default",
        "today layer default",
        "earlier layer windows",
        "today layer windows",
    ]
    found = made.results["sizes"]["24 x 1"]["forward and backward"]["layer default"]
    assert (found["ms"], found["earlier_ms"], len(found["rounds"])) == (3.0, 4.0, 4)
    assert (found["times_earlier"], found["times_windows"]) == (0.75, 1.0)


def test_dense_attention_that_takes_too_long_is_named(layers: Any) -> None:
    made = bench(layers, ["layer dense"], Version(1e3 * layers.LIMIT_SECONDS / 3, [], "today"))
    made.size(SIZE)
    made.size(SIZE | {"grid": [4, 3, 4]})
    first, second = made.results["sizes"].values()
    assert len(first["forward"]["layer dense"]["rounds"]) == 1
    assert second["forward"] == {}
    left_out = made.results["skipped"]
    assert [entry["row"] for entry in left_out] == [
        f"layer dense, {name}" for name in layers.PASSES
    ]
    assert "13 s, more than 10" in left_out[0]["why"]


def test_what_differs_between_versions_is_not_timed(layers: Any) -> None:
    told: list[str] = []
    versions = (Version(1.0, told, "today"), Version(1.0, told, "earlier", sample=1.2))
    made = bench(layers, ["layer default"], *versions)
    made.size(SIZE)
    assert not told
    assert "results differ by 0.089" in made.results["skipped"][0]["why"]


def test_the_time_of_a_run_ends_it(layers: Any) -> None:
    made = bench(layers, ["layer default"], Version(1.0, [], "today"))
    made.deadline.end = time.monotonic() - 1
    made.size(SIZE)
    assert made.results["sizes"]["24 x 1"]["forward"] == {}
    assert {entry["why"] for entry in made.results["skipped"]} == {"the run's time is over"}


def test_a_pass_with_backward_gives_the_first_gradient(layers: Any) -> None:
    from layer_rows import Timed

    x, unused = torch.ones(2, 3, requires_grad=True), torch.ones(1, requires_grad=True)
    timed = Timed(lambda: 3 * x.flatten(), [x, unused])
    assert torch.equal(timed.backward(torch.arange(6.0)), 3 * torch.arange(6.0).view(2, 3))
    assert not timed.forward().requires_grad


def test_the_table(layers: Any) -> None:
    from layers_table import table

    told: list[str] = []
    made = bench(layers, ["layer default", "layer dense"], Version(8.0, told, "today"))
    made.size(SIZE)
    del made.results["sizes"]["24 x 1"]["forward and backward"]["layer dense"]
    _, _, default, dense = table(made.results).splitlines()
    assert default == "| **default** | 8.0 / 8.0 (1.0 / –) |"
    assert dense == "| dense (cuDNN) | 8.0 / – |"


@pytest.mark.skipif(find_spec("triton") is None, reason="kernels run in Triton's interpreter")
def test_a_tiny_run(tmp_path: Path) -> None:
    rows = ["--rows", "layer windows", "layer dense"]
    typed = ["benchmarks/layers.py", "--quick", *rows, "--output", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, *typed, "--commit", "abc", "--beside", str(ROOT / "src")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=540,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "layers.json").read_text())
    assert found["machine"]["commit"] == "abc"
    assert found["skipped"] == []
    for name in ("forward", "forward and backward"):
        rows_found = found["sizes"]["24 x 3"][name]
        assert rows_found["layer windows"]["times_earlier"] > 0
        assert rows_found["layer dense"]["ms"] > 0
        assert found["differences"]["24 x 3"][f"layer windows, {name}"] == 0
    assert found["configs"]["today"]["windows"]["summary_tokens"] == 0
    assert found["impl"]["today"]["layer windows"] == "triton"
