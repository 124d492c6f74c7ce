"""The check of `freqformer doctor`: it passes what is right and fails what is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.support import numerics

from freqformer.doctor import check, run_check
from freqformer.doctor.limits import GRADIENT, OUTPUT, Error, allowed_error
from freqformer.grid import Grid
from freqformer.ops.block_sparse import eager

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _few_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """One call is timed, of few tokens: nothing here depends on how long it takes."""
    monkeypatch.setattr(check, "MOST_CALLS", 1)
    monkeypatch.setattr(check, "GRID", Grid(4, 8, 16))


def test_what_is_right_passes() -> None:
    found = run_check(CPU)
    assert found.good
    assert (found.impl, found.dtype, found.device) == ("eager", "float32", "CPU")
    assert [result.name for result in found.results] == ["out", *check.GRADIENTS]
    assert all(0 < result.error.mean <= result.error.max < 1e-4 for result in found.results)
    assert (found.speed.tokens, found.speed.grid) == (512, (4, 8, 16))
    assert found.speed.forward_ms > 0
    assert found.speed.backward_tflops > 0


def _larger(attend: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(*given: Any, impl: str, **named: Any) -> Any:
        out = attend(*given, impl=impl, **named)
        return out * (1 + 1e-5) if impl == "auto" else out

    return wrong


def _nan(attend: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(*given: Any, impl: str, **named: Any) -> Any:
        out = attend(*given, impl=impl, **named)
        return out * torch.nan if impl == "auto" else out

    return wrong


@pytest.mark.parametrize("fault", [_larger, _nan])
def test_what_is_wrong_fails(
    fault: Callable[[Callable[..., Any]], Callable[..., Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "frequency_attention", fault(check.frequency_attention))
    found = run_check(CPU)
    assert not found.good
    assert not any(result.good for result in found.results)


def test_a_wrong_gradient_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    results = check._results

    def wrong(inputs: Any, impl: Any) -> dict[str, torch.Tensor]:
        found = results(inputs, impl)
        if impl == "auto":
            found["grad_key"] = found["grad_key"].roll(1, 1)
        return found

    monkeypatch.setattr(check, "_results", wrong)
    bad = [result.name for result in run_check(CPU).results if not result.good]
    assert bad == ["grad_key"]


def test_the_rule_is_that_of_the_tests() -> None:
    """docs/testing.md states its figures."""
    assert (OUTPUT.mean, OUTPUT.max) == (1.05, 1.25)
    assert (GRADIENT.mean, GRADIENT.max) == (1.1, 1.5)
    assert numerics.allowed_error is allowed_error
    exact = torch.full((10_000, 4), 2.0, dtype=torch.float64)
    allowed = allowed_error("out", Error(1.0, 1.0), exact, torch.bfloat16)
    assert allowed.mean == pytest.approx(1.05 * 1.005)
    # Half a unit in the last place of 2 in addition: 2^-8 * 2.
    assert allowed.max == pytest.approx(1.25 * 1.05 + 2**-7)
    assert not Error(float("nan"), 0.0).within(allowed)


def test_factors_are_rounded_within_and_not_after() -> None:
    """In 16 bit the peer is eager attention with weights as matrix units take them."""
    draw = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 5, 8, generator=draw)
    bias = torch.zeros(1, 5)
    exact = eager._weights(query, key, bias)
    with eager.rounded_weights(torch.bfloat16):
        rounded = eager._weights(query, key, bias)
        slopes = eager._slopes(exact, exact)
    assert torch.equal(rounded, exact.bfloat16().float())
    assert not torch.equal(rounded, exact)
    assert torch.equal(slopes, eager._slopes(exact, exact).bfloat16().float())
    assert torch.equal(eager._weights(query, key, bias), exact)
