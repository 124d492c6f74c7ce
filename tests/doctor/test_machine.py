"""What `freqformer doctor` says of a machine."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
import torch

from freqformer.doctor import describe_machine, machine
from freqformer.ops import architectures, backends

ROOT = Path(__file__).parents[2]


def test_this_machine() -> None:
    found = describe_machine(torch.device("cpu"))
    assert found.versions["torch"] == torch.__version__
    assert found.choice.impl == "eager"
    assert found.choice.device == "cpu"
    assert list(found.choice.refused) == ["gluon", "triton"]
    assert all(found.choice.refused.values())
    assert not found.choice.block_sizes


@pytest.mark.parametrize(
    ("name", "impl", "words"),
    [
        ("sm_90", "gluon", "those of sm_90, measured"),
        ("sm_89", "triton", "those of sm_89, compiled and not yet measured"),
        (
            "sm_103",
            "triton",
            "those of sm_100, compiled and not yet measured: sm_103 has none of its own",
        ),
    ],
)
def test_a_gpu_says_what_is_refused_and_whose_block_sizes_it_takes(
    name: str, impl: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The meta device stands for a GPU."""
    monkeypatch.setattr(backends, "_triton_installed", lambda: True)
    monkeypatch.setattr(backends, "_triton_interprets", lambda: False)
    for module in (machine, architectures, backends):
        monkeypatch.setattr(module, "architecture_name", lambda _: name)
    backends._tell_once.__wrapped__.cache_clear()
    choice = describe_machine(torch.device("meta")).choice
    assert choice.impl == impl
    assert ("gluon" in choice.refused) == (impl != "gluon")
    assert all("none of architecture sm_90" in reason for reason in choice.refused.values())
    assert choice.block_sizes == words


def test_versions_that_were_tested() -> None:
    cases = json.loads((ROOT / "requirements/tested.json").read_text("utf-8"))["cases"].values()
    seen = next(case["versions"] for case in cases if case["passed"])
    versions = {name: seen[name] for name in machine.PACKAGES}
    assert machine.tested(versions) == "yes"
    assert machine.tested({**versions, "torch": f"{versions['torch']}+cu130"}) == "yes"
    assert machine.tested({**versions, "diffusers": None}) == "yes"
    other = machine.tested({**versions, "triton": "2.0.0"})
    assert other.startswith("no: tests have passed with torch 2.")


def test_without_the_list_it_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_tested_cases", list)
    assert machine.tested({"torch": "2.13.0"}).startswith("unknown")


def test_a_wheel_brings_the_list() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    brought = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert brought == {"requirements/tested.json": "freqformer/tested.json"}
