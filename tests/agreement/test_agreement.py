"""Results agree with those of an earlier commit on a fixed set of calls: data/cases.json names it.

The kept results are of that commit's reference in float64; `tools/agreement.py` makes them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.agreement.calls import run
from tests.agreement.cases import (
    LAYERS,
    OPERATIONS,
    SMALL_LAYERS,
    SMALL_OPERATIONS,
    LayerCase,
    OperationCase,
)
from tests.support.interpreter import patch_language_once
from torch import Tensor

DATA = Path(__file__).parent / "data"
EXACT, ROUNDED = 1e-6, 2e-5
"""Largest difference in units of the largest kept value: of float64 from what is kept in float32,
and of kernels in float32."""

FEW = ("small, mixed", "small, low branch", "small, soft")


def _interprets() -> bool:
    if find_spec("triton") is None:
        return False
    from triton import knobs

    return knobs.runtime.interpret


fused = pytest.mark.skipif(
    not _interprets(), reason="TRITON_INTERPRET=1 is not set: kernels would need a GPU"
)


def _by_length(cases: Sequence[OperationCase | LayerCase]) -> list[Any]:
    """Parameters of a test, all but a few left to `make test-full`: the interpreter takes long."""
    return [
        pytest.param(case, id=case.name, marks=() if case.name in FEW else pytest.mark.slow)
        for case in cases
    ]


@pytest.fixture(scope="module", autouse=True)
def _fast_interpreter() -> None:
    if _interprets():
        patch_language_once()


@cache
def kept_results() -> dict[str, dict[str, Tensor]]:
    """The kept results of every case by name."""
    cases: dict[str, dict[str, Tensor]] = {}
    for key, x in load_file(DATA / "results.safetensors").items():
        case, name = key.split("/")
        cases.setdefault(case, {})[name] = x.double()
    return cases


def check(case: OperationCase | LayerCase, impl: str, dtype: torch.dtype) -> None:
    """Compare every result of the case with the kept one."""
    tolerance = EXACT if dtype == torch.float64 else ROUNDED
    wanted, found = kept_results()[case.name], run(case, impl, dtype)
    assert _close(found.pop("inputs"), wanted["inputs"], EXACT), (
        "this machine draws other inputs than those of the kept results"
    )
    wrong = [
        f"{name}: {float((found[name] - x).abs().max()):.2e} of {float(x.abs().max()):.2e}"
        for name, x in wanted.items()
        if name in found and not _close(found[name], x, tolerance)
    ]
    assert not wrong, f"{case.name} by {impl}: {'; '.join(wrong)}"
    # What nothing depended on, an unused parameter, may be gone.
    gone = {name for name in set(wanted) - set(found) - {"inputs"} if wanted[name].any()}
    assert not gone
    assert set(found) <= set(wanted)


def _close(found: Tensor, wanted: Tensor, tolerance: float) -> bool:
    assert found.shape == wanted.shape
    return bool(((found - wanted).abs() <= tolerance * wanted.abs().max() + 1e-12).all())


@pytest.mark.parametrize("impl", ["reference", "eager"])
@pytest.mark.parametrize("case", OPERATIONS, ids=lambda case: case.name)
def test_operation(case: OperationCase, impl: str) -> None:
    check(case, impl, torch.float64)


@pytest.mark.parametrize("impl", ["reference", "eager"])
@pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)
def test_layer(case: LayerCase, impl: str) -> None:
    check(case, impl, torch.float64)


@fused
@pytest.mark.parametrize("case", _by_length(SMALL_OPERATIONS))
def test_fused_operation(case: OperationCase) -> None:
    check(case, "triton", torch.float32)


@fused
@pytest.mark.parametrize("case", _by_length(SMALL_LAYERS))
def test_fused_layer(case: LayerCase) -> None:
    check(case, "triton", torch.float32)


def test_the_kept_cases_are_these() -> None:
    record = json.loads((DATA / "cases.json").read_text())
    cases = {"operations": OPERATIONS, "layers": LAYERS}
    for kind, made in cases.items():
        assert record[kind] == json.loads(json.dumps([asdict(case) for case in made]))
    assert record["commit"] == "f64bcc1"
    assert set(kept_results()) == {case.name for case in (*OPERATIONS, *LAYERS)}
