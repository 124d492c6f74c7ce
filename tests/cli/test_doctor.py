"""`freqformer doctor`, as typed."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from tests.support.command_line import invoke, refused, run

import freqformer.doctor
from freqformer.doctor import check
from freqformer.doctor.limits import Error
from freqformer.grid import Grid


@pytest.fixture(autouse=True)
def _few_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "MOST_CALLS", 1)
    monkeypatch.setattr(check, "GRID", Grid(4, 8, 16))


def test_it_says_what_runs_and_that_it_is_right() -> None:
    output = run("doctor", "--device", "cpu")
    for words in (
        "auto takes impl='eager' on cpu",
        "not triton",
        "ok out error mean",
        "ok grad_value",
        "512 tokens (4, 8, 16), 2 heads of 64",
        "useful TFLOP/s",
        "result right",
    ):
        assert words in output


def test_json_has_the_same() -> None:
    found = json.loads(invoke("doctor", "--device", "cpu", "--json").stdout)
    assert found["machine"]["choice"]["impl"] == "eager"
    assert found["machine"]["versions"]["torch"]
    assert found["check"]["good"] is True
    assert [result["good"] for result in found["check"]["results"]] == [True] * 4
    assert found["check"]["speed"]["tokens"] == 512


@pytest.mark.parametrize("error", [1.0, math.nan])
def test_a_wrong_result_ends_with_1(error: float, monkeypatch: pytest.MonkeyPatch) -> None:
    real = freqformer.doctor.run_check

    def wrong(*given: Any) -> Any:
        found = real(*given)
        out, *others = found.results
        return replace(found, results=(replace(out, error=Error(error, error)), *others))

    monkeypatch.setattr(freqformer.doctor, "run_check", wrong)
    assert "FAIL out" in run("doctor", "--device", "cpu", code=1)
    printed = invoke("doctor", "--device", "cpu", "--json")
    assert printed.exit_code == 1

    def no_json(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    first, *_ = json.loads(printed.stdout, parse_constant=no_json)["check"]["results"]
    assert first["good"] is False


def test_a_device_that_is_not_there() -> None:
    refused("doctor", "--device", "tpu", message="--device is 'tpu'; cpu")
