"""What pyproject.toml allows is what `make test-versions` passed."""

from __future__ import annotations

import json
import re
import tomllib
from typing import Any

import pytest
from tools.locks import TORCH

from tools import versions

PROJECT = tomllib.loads((versions.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RESULTS: dict[str, Any] = {"cases": {}}
if versions.RESULTS.exists():
    RESULTS = json.loads(versions.RESULTS.read_text(encoding="utf-8"))
MISSING = sorted({case.name for case in versions.cases(tuple(TORCH))} - set(RESULTS["cases"]))
needs_results = pytest.mark.skipif(
    bool(MISSING), reason=f"no results of `make test-versions` yet for {', '.join(MISSING)}"
)


def bounds(requirements: list[str], name: str) -> tuple[str, str]:
    """The lowest release allowed, and the first that is not."""
    (text,) = [text for text in requirements if text.startswith(name)]
    low, high = re.fullmatch(rf"{name}>=([\d.]+),<([\d.]+)", text).groups()  # type: ignore[union-attr]
    return low, high


def minor(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+")[0].split(".")[:2])


@needs_results
def test_every_release_of_torch_that_is_allowed_passed() -> None:
    low, high = bounds(PROJECT["dependencies"], "torch")
    assert low == min(TORCH, key=minor)
    assert minor(high) == (minor(max(TORCH, key=minor))[0], minor(max(TORCH, key=minor))[1] + 1)
    tested = {name: case for name, case in RESULTS["cases"].items() if case["passed"]}
    assert {case.name for case in versions.cases(tuple(TORCH))} <= set(tested)
    for name, case in tested.items():
        assert case["versions"]["torch"].startswith(f"{name.split(',')[0]}.")
        assert set(case["groups"]) == set(versions.GROUPS)
        assert all(group["failed"] == 0 < group["passed"] for group in case["groups"].values())


@needs_results
def test_diffusers_was_tested_at_both_ends() -> None:
    low, high = bounds(PROJECT["optional-dependencies"]["model"], "diffusers")
    tested = {case["versions"]["diffusers"] for case in RESULTS["cases"].values()}
    assert low in tested
    assert minor(high)[1] == max(minor(version)[1] for version in tested) + 1


def test_each_torch_was_tested_with_its_own_triton() -> None:
    for name, case in RESULTS["cases"].items():
        lock = (versions.LOCKS / f"torch-{name.split(',')[0]}.txt").read_text(encoding="utf-8")
        assert case["versions"]["triton"] == versions.pin(lock, "triton")


def test_a_lower_diffusers_has_a_case_of_its_own(monkeypatch: Any) -> None:
    newest = versions.pin(
        (versions.LOCKS / "torch-2.13.txt").read_text(encoding="utf-8"), "diffusers"
    )
    monkeypatch.setattr(versions, "lowest_diffusers", lambda: "0.1")
    assert versions.cases(["2.13"]) == [versions.Case("2.13"), versions.Case("2.13", "0.1")]
    monkeypatch.setattr(versions, "lowest_diffusers", lambda: newest)
    assert versions.cases(["2.13"]) == [versions.Case("2.13")]


def test_tests_that_are_run_exist() -> None:
    assert all(
        (versions.ROOT / place.split("::")[0]).exists()
        for places in versions.GROUPS.values()
        for place in places
    )


def test_the_table() -> None:
    group = {"passed": 3, "failed": 1, "skipped": 0, "seconds": 1}
    case = {
        "versions": {"torch": "2.13.0", "triton": "3.7.1", "diffusers": "0.42.1", "numpy": "2.4.6"},
        "groups": dict.fromkeys(versions.GROUPS, group),
    }
    header, row = versions.table({"2.13": case}).splitlines()
    assert header.split() == ["torch", "Triton", "diffusers", "numpy", *versions.GROUPS]
    assert row.split() == ["2.13.0", "3.7.1", "0.42.1", "2.4.6", *["3/4"] * len(versions.GROUPS)]
