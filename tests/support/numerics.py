"""The project's error checker: how far a result is from float64, beside how far a peer in the same
dtype is.

Three results of one call are compared: `actual`, of the code under test; `peer`, of trusted code in
the same dtype; `exact`, of the reference in float64 on the same quantised inputs and the same
selection. `check_errors` holds the error of actual to a small multiple of the peer's, by the rule
of `freqformer.doctor.limits`. Nothing here knows which code runs. Random calls come from
`tests.support.cases`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import fmean

import torch
from torch import Tensor

from freqformer.doctor.limits import Error, Limits, allowed_error, limits_for


def check_errors(
    actual: Mapping[str, Tensor],
    peer: Mapping[str, Tensor],
    exact: Mapping[str, Tensor],
    *,
    outliers: bool = False,
    case: object = None,
) -> None:
    """Raise AssertionError with a table unless every tensor of `actual` is as near `exact` as
    `peer`, within the limits.

    Args:
        actual, peer: results by name, in the same dtype; names that begin with "grad" are held to
            the gradients' limits.
        exact: float64 results under the same names.
        outliers: whether the inputs have outlier channels.
        case: what was run, printed on failure.
    """
    assert actual.keys() == peer.keys() == exact.keys(), (
        sorted(actual),
        sorted(peer),
        sorted(exact),
    )
    lines, failed = [], []
    for name, wanted in exact.items():
        got, beside = actual[name], peer[name]
        assert got.shape == wanted.shape, (
            f"{name}: shape {tuple(got.shape)}, not {tuple(wanted.shape)}; {case}"
        )
        assert got.dtype == beside.dtype, (
            f"{name}: {got.dtype}, not the peer's {beside.dtype}; {case}"
        )
        assert bool(wanted.isfinite().all()), f"{name}: the float64 result is not finite; {case}"
        if wanted.numel():
            mine, theirs = Error.of(got, wanted), Error.of(beside, wanted)
            allowed = allowed_error(name, theirs, wanted, got.dtype, outliers=outliers)
            good = mine.within(allowed)
            failed += [] if good else [name]
            lines.append(_line(name, got, wanted, mine, theirs, allowed, good))
    assert not failed, "\n".join(
        [f"errors of {', '.join(failed)} against float64 are too large", *lines, f"case: {case}"]
    )


def _line(
    name: str, got: Tensor, wanted: Tensor, mine: Error, theirs: Error, allowed: Error, good: bool
) -> str:
    difference = (got.double() - wanted).abs().nan_to_num(torch.inf)
    worst = tuple(int(i) for i in torch.unravel_index(difference.argmax(), difference.shape))
    return (
        f"  {'ok  ' if good else 'FAIL'} {name:20} {got.dtype!s:14} "
        f"mean {mine.mean:.3e} (peer {theirs.mean:.3e}, allowed {allowed.mean:.3e}) "
        f"max {mine.max:.3e} (peer {theirs.max:.3e}, allowed {allowed.max:.3e}) "
        f"worst at {worst}: {float(got[worst]):.6g}, not {float(wanted[worst]):.6g}"
    )


@dataclass
class Pool:
    """Geometric means over many calls of the ratio of errors: the limits as they are, without
    allowance for noise."""

    logs: dict[tuple[str, torch.dtype], list[tuple[float, float]]] = field(default_factory=dict)

    def add(
        self, actual: Mapping[str, Tensor], peer: Mapping[str, Tensor], exact: Mapping[str, Tensor]
    ) -> None:
        """Add the errors of one call."""
        dtype = next(
            iter(actual.values())
        ).dtype  # of the output or the first gradient: offsets are always float32
        for name, wanted in exact.items():
            if wanted.numel() and float(wanted.abs().max()) > 0:
                mine, theirs = Error.of(actual[name], wanted), Error.of(peer[name], wanted)
                # Where both are exact to the last bit the ratio is 1.
                least = 1e-3 * torch.finfo(actual[name].dtype).eps * float(wanted.abs().mean())
                ratios = (
                    (mine.mean + least) / (theirs.mean + least),
                    (mine.max + least) / (theirs.max + least),
                )
                self.logs.setdefault((name, dtype), []).append(
                    (math.log(ratios[0]), math.log(ratios[1]))
                )

    def ratios(self) -> dict[tuple[str, torch.dtype], Limits]:
        """Geometric means of the ratios of mean and of maximum errors, by tensor and dtype of the
        call."""
        return {
            key: Limits(
                math.exp(fmean(mean for mean, _ in logs)),
                math.exp(fmean(largest for _, largest in logs)),
            )
            for key, logs in self.logs.items()
        }

    def check(self, least: int = 20) -> None:
        """Raise AssertionError unless every ratio is within its limits; fewer than `least` calls
        are not judged."""
        judged = {
            key: ratio for key, ratio in self.ratios().items() if len(self.logs[key]) >= least
        }
        assert judged, f"no tensor has {least} calls"
        lines = [
            f"  {name} {dtype}, {len(self.logs[name, dtype])} calls: mean {ratio.mean:.3f}x, max "
            f"{ratio.max:.3f}x"
            for (name, dtype), ratio in judged.items()
            if not (ratio.mean <= limits_for(name).mean and ratio.max <= limits_for(name).max)
        ]
        assert not lines, "\n".join(["pooled errors are too large", *lines])


@contextmanager
def nan_filled_allocations() -> Iterator[None]:
    """Within it, freshly allocated memory holds NaN (integers: their largest value), so reading it
    shows."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert (
        torch.empty(2).isnan().all()
    )  # torch fills memory in its deterministic mode, unless told otherwise
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*deterministic.*", category=UserWarning)
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
