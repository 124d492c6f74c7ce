"""The error checker itself: it passes what is as near as the peer, and fails everything else."""

from __future__ import annotations

import pytest
import torch
from tests.support.numerics import Error, Pool, check_errors, limits_for, nan_filled_allocations
from torch import Tensor

SHAPE = (4, 500, 4, 8)


def _results(
    name: str, dtype: torch.dtype, factor: float, seed: int = 0
) -> list[dict[str, Tensor]]:
    """A result with `factor` times the peer's error, the peer, and the exact values."""
    generator = torch.Generator().manual_seed(seed)
    exact = torch.randn(SHAPE, dtype=torch.float64, generator=generator)
    noise = (
        20
        * torch.finfo(dtype).eps
        * torch.rand(2, *SHAPE, dtype=torch.float64, generator=generator)
    )
    peer, actual = (exact + noise[0]).to(dtype), (exact + factor * noise[1]).to(dtype)
    return [{name: actual}, {name: peer}, {name: exact}]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("name", "good", "bad"), [("out", 1.0, 1.2), ("grad_key", 1.05, 1.25)])
def test_mean_errors_beyond_the_limit_fail(
    dtype: torch.dtype, name: str, good: float, bad: float
) -> None:
    check_errors(*_results(name, dtype, good))
    with pytest.raises(AssertionError, match=f"errors of {name}"):
        check_errors(*_results(name, dtype, bad))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 100.0])
def test_one_wrong_value_fails(bad: float) -> None:
    actual, peer, exact = _results("out", torch.float32, 1.0)
    actual["out"][1, 2, 3, 4] = bad
    with pytest.raises(AssertionError, match=r"worst at \(1, 2, 3, 4\)"):
        check_errors(actual, peer, exact)


def test_names_shapes_and_dtypes_must_agree() -> None:
    actual, peer, exact = _results("out", torch.float32, 1.0)
    for wrong in ({"out": actual["out"][:1]}, {"out": actual["out"].half()}, {}):
        with pytest.raises(AssertionError):
            check_errors(wrong, peer, exact)


def test_pool_finds_a_small_bias_that_single_calls_hide() -> None:
    fair, biased = Pool(), Pool()
    for seed in range(30):
        fair.add(*_results("out", torch.float32, 1.0, seed))
        biased.add(*_results("out", torch.float32, 1.08, seed))
    fair.check()
    with pytest.raises(AssertionError, match=r"mean 1\.0"):
        biased.check()
    with pytest.raises(AssertionError, match="no tensor has 40 calls"):
        fair.check(least=40)


def test_error_and_limits() -> None:
    error = Error.of(
        torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    )
    assert (error.mean, error.max) == (pytest.approx(1 / 3), 1.0)
    assert (limits_for("out").mean, limits_for("out").max) == (1.05, 1.25)
    assert (limits_for("grad_value").mean, limits_for("grad_value").max) == (1.1, 1.5)


def test_allocations_hold_nan_within() -> None:
    with nan_filled_allocations():
        assert torch.empty(3).isnan().all()
        assert torch.zeros(2).new_empty(2, 2).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()
