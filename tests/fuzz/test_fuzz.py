"""The fuzzer: what once failed is refused, a little of every target, and failures that it must see.
All: `make fuzz`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.fuzz import __main__ as command
from tests.fuzz.attempt import ACCEPTED, FAILURES, LARGE, REFUSED, SLOW, UNTYPED, attempt
from tests.fuzz.child import fuzz, quiet
from tests.fuzz.folders import made_run
from tests.fuzz.targets import TARGETS, Target, generator

pytest.importorskip("resource", reason="limits of time and memory are those of Linux and macOS")

CORPUS = json.loads((Path(__file__).parent / "corpus.json").read_text(encoding="utf-8"))
"""Inputs that once ended in anything but a typed error, or took too much."""
INPUTS = {
    "freqformer_config": 150,
    "train_config": 100,
    "simulation": 30,
    "profile": 40,
    "results": 8,
    "table": 30,
    "checkpoint": 30,
    "pipeline": 20,
    "run": 6,
    "media": 30,
    "command": 12,
}
"""Of every target, a second or so."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with quiet():
        return made_run(tmp_path_factory.mktemp("fuzz"))


@pytest.fixture
def target(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Target:
    """The target of the name that a test is given."""
    monkeypatch.chdir(tmp_path)  # command lines change the working directory
    if request.param in ("checkpoint", "pipeline", "run", "command"):
        shutil.copytree(request.getfixturevalue("trained"), tmp_path / "run")
    return TARGETS[request.param](tmp_path)


@pytest.mark.parametrize(
    ("target", "name"), [(name, name) for name in TARGETS], indirect=["target"]
)
def test_a_little_of_every_target(target: Target, name: str) -> None:
    counts: Counter[str] = Counter()
    with quiet():
        for number in range(INPUTS[name]):
            given = target.make(generator(name, number))
            assert json.loads(json.dumps(given)) == given or "NaN" in json.dumps(given)
            outcome = attempt(target.feed, given)
            assert outcome.kind not in FAILURES, (
                f"input {number} of {name}, {given}: {outcome.text}"
            )
            counts[outcome.kind] += 1
    assert counts[REFUSED] > 0


@pytest.mark.parametrize(
    ("target", "found"), [(found["target"], found) for found in CORPUS], indirect=["target"]
)
def test_what_once_failed_is_refused(target: Target, found: dict[str, Any]) -> None:
    assert attempt(target.feed, found["input"]).kind == REFUSED


def take(_: Any) -> None:
    pass


def raise_error(error: Exception) -> None:
    raise error


def spin(_: Any) -> None:
    while True:
        pass


@pytest.mark.parametrize(
    ("feed", "given", "kind"),
    [
        (take, 3, ACCEPTED),
        (raise_error, ValueError("no"), REFUSED),
        (raise_error, FileNotFoundError("no"), REFUSED),
        (raise_error, KeyError("no"), UNTYPED),
        (raise_error, RuntimeError("no"), UNTYPED),
        (raise_error, MemoryError("no"), LARGE),
        (spin, None, SLOW),
    ],
)
def test_what_becomes_of_an_input(feed: Callable[[Any], None], given: Any, kind: str) -> None:
    assert attempt(feed, given, seconds=0.05).kind == kind


def test_an_input_that_takes_memory_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = iter([100, 100 + 2**31, 100, 101 + 2**31])
    monkeypatch.setattr("tests.fuzz.attempt.peak_memory", lambda: next(peaks))
    assert attempt(take, 3).kind == ACCEPTED
    assert attempt(take, 3).kind == LARGE


class Odd:
    """A target that fails on odd numbers."""

    def make(self, draw: Any) -> int:
        return draw.randrange(100)

    def feed(self, given: int) -> None:
        if given % 2:
            raise KeyError(given)


def test_failing_inputs_are_kept_and_the_same_again(tmp_path: Path) -> None:
    for folder in (tmp_path / "first", tmp_path / "second"):
        folder.mkdir()
        fuzz(Odd(), "odd", {"first": 5, "inputs": 20, "seconds": 60}, folder / "state")
    state = json.loads((tmp_path / "first" / "state").read_text())
    kept = [json.loads(path.read_text()) for path in (tmp_path / "first").glob("*.json")]
    assert state["running"] is None
    assert state["counts"] == {ACCEPTED: 20 - len(kept), UNTYPED: len(kept)}
    assert 0 < len(kept) < 20
    assert all(found["input"] % 2 and "KeyError" in found["text"] for found in kept)
    assert {found["number"] for found in kept} <= set(range(5, 25))
    for path in (tmp_path / "first").glob("*.json"):
        assert path.read_text() == (tmp_path / "second" / path.name).read_text()


def test_a_process_that_dies_of_an_input_is_followed_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders: list[dict[str, Any]] = []

    def run(order: dict[str, Any]) -> tuple[int, str]:
        orders.append(order)
        running = order["first"] + 3 if len(orders) == 1 else None
        Path(order["state"]).write_text(json.dumps({"running": running, "counts": {REFUSED: 3}}))
        return -11, "a trace of where"

    monkeypatch.setattr(command, "_run", run)
    counts = command.fuzz_target("table", {"first": 10, "inputs": 100, "seconds": 60.0}, tmp_path)
    assert counts == {REFUSED: 6, UNTYPED: 1}
    assert [(order["first"], order["inputs"]) for order in orders] == [(10, 100), (14, 96)]
    (kept,) = tmp_path.iterdir()
    assert json.loads(kept.read_text())["text"] == "the process ended with -11\na trace of where"
    assert kept.name == "table-13.json"


@pytest.mark.parametrize(("failed", "status"), [(0, 0), (1, 1)])
def test_the_exit_status_tells_of_failures(
    failed: int,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(command, "fuzz_target", lambda *_: Counter({ACCEPTED: 1500, SLOW: failed}))
    given = ["--targets", "table", "media", "--failures", str(tmp_path / "kept")]
    assert command.main(given) == status
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["target", "inputs", REFUSED, ACCEPTED, *FAILURES]
    assert lines[3] == ["all", f"{3000 + 2 * failed:,}", "0", "3,000", "0", str(2 * failed), "0"]
    assert (lines[-1][-1] == str(tmp_path / "kept")) == bool(failed)


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    typed = [
        sys.executable,
        "-m",
        "tests.fuzz",
        "--inputs",
        "5",
        "--targets",
        "freqformer_config",
        "table",
    ]
    output = tmp_path / "results.json"
    subprocess.run([*typed, "--output", output], cwd=Path(__file__).parents[2], check=True)
    record = json.loads(output.read_text())
    assert {name: found["inputs"] for name, found in record["targets"].items()} == {
        "freqformer_config": 5,
        "table": 5,
    }


def test_the_committed_results_are_of_these_targets() -> None:
    record = json.loads((Path(__file__).parent / "results.json").read_text(encoding="utf-8"))
    assert set(record["targets"]) == set(TARGETS)
    assert sum(found["inputs"] for found in record["targets"].values()) >= 100_000
    assert not any(found[kind] for found in record["targets"].values() for kind in FAILURES)
