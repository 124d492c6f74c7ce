"""Fitting what kernels achieve to committed measurements, and how well the rest is predicted.

Every fitted value is a positive fraction or cost, so its logarithm is what is fitted, by least
squares on the logarithms of predicted over measured time: an error of 10% counts the same at 1 ms
and at 1 s. Whole token counts are held out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, fields, replace
from statistics import median
from typing import Any

import torch

from freqformer.simulate.model.efficiency import Efficiency, allowed_range
from freqformer.simulate.model.profiles import ProfileError, check_number, check_whole
from freqformer.simulate.model.roofline import Machine
from freqformer.simulate.model.transformers import MAX_TOKENS

STEPS = 40
"""Most Gauss-Newton steps; some ten are enough."""
SECONDS_RANGE = (1e-9, 1e6)
"""Of a measurement."""
PRIOR_WEIGHT = 1e-3
"""How much a value that measurements say nothing about is held at where it was."""


@dataclass(frozen=True)
class Measurement:
    """One measured time, and what the model says of it.

    Raises:
        ProfileError: for tokens or seconds out of range, or of another type.
    """

    name: str
    tokens: int
    seconds: float
    predict: Callable[[Machine], float]
    informs: tuple[str, ...]
    """Fields of `Efficiency` that it can tell about."""
    source: str
    """File, commit and GPU that it comes from."""
    set_aside: bool = False
    """Held out whatever its number of tokens."""

    def __post_init__(self) -> None:
        check_whole(f"tokens of {self.name!r}", self.tokens, 1, MAX_TOKENS)
        check_number(f"seconds of {self.name!r}", self.seconds, *SECONDS_RANGE)


@dataclass(frozen=True)
class MeasuredShare:
    """A value of an efficiency that was measured itself, and is no time."""

    name: str
    """Field of `Efficiency`."""
    value: float
    source: str


@dataclass(frozen=True)
class Comparison:
    """One measurement beside the fitted model."""

    measurement: Measurement
    predicted_s: float
    held_out: bool

    @property
    def error(self) -> float:
        """|predicted / measured - 1|."""
        return abs(self.predicted_s / self.measurement.seconds - 1)


@dataclass(frozen=True)
class Fit:
    """A fitted efficiency and its errors."""

    efficiency: Efficiency
    comparisons: list[Comparison]
    """Times, in the order of the measurements."""

    def errors(self, *, held_out: bool) -> list[float]:
        """Relative errors of the fit, or of the hold-out."""
        return [row.error for row in self.comparisons if row.held_out == held_out]


def fit_efficiency(
    measurements: Sequence[Measurement],
    machine: Machine,
    hold_out: Collection[int],
    peaks: Sequence[tuple[str, float, float]] = (),
    shares: Sequence[MeasuredShare] = (),
) -> Fit:
    """Fit the efficiency of a machine.

    Args:
        measurements: on that machine.
        machine: with the efficiency to start from; what no measurement informs stays.
        hold_out: token counts that the fit does not see.
        peaks: name, measured and counted peak bytes; memory has nothing to fit, and its errors are
            reported alone.
        shares: values to take as they were measured, the median of those of one field.

    Raises:
        ProfileError: where nothing is left to fit, or a held-out count was not measured.
    """
    counts = sorted({measurement.tokens for measurement in measurements})
    unknown = sorted(set(hold_out) - set(counts))
    if unknown:
        raise ProfileError(
            f"hold-out has {unknown}; measured token counts are {counts}: choose some of them"
        )
    machine = replace(machine, efficiency=_with_shares(machine.efficiency, shares))

    def held(measurement: Measurement) -> bool:
        return measurement.set_aside or measurement.tokens in hold_out

    used = [measurement for measurement in measurements if not held(measurement)]
    names = [
        field.name
        for field in fields(Efficiency)
        if any(field.name in measurement.informs for measurement in used)
    ]
    if not names:
        raise ProfileError(
            "no measurement is left to fit; give more results, or hold out fewer token counts"
        )
    values = _least_squares(used, machine, names)
    fitted = replace(machine.efficiency, **values, name=machine.hardware.name, transferred=False)
    sources = {name: _source(name, used) for name in names}
    machine = replace(machine, efficiency=replace(fitted, sources=fitted.sources | sources))
    rows = [
        Comparison(measurement, measurement.predict(machine), held(measurement))
        for measurement in measurements
    ]
    fit = Fit(machine.efficiency, rows)
    return replace(
        fit, efficiency=replace(machine.efficiency, fit=_summary(fit) | _memory_summary(peaks))
    )


def _with_shares(efficiency: Efficiency, shares: Sequence[MeasuredShare]) -> Efficiency:
    for name in sorted({share.name for share in shares}):
        own = [share for share in shares if share.name == name]
        value = _rounded(median(share.value for share in own))
        source = f"measured in {'; '.join(sorted({share.source for share in own}))}"
        sources = efficiency.sources | {name: source}
        efficiency = replace(efficiency, **{name: value}, sources=sources)
    return efficiency


def _least_squares(
    used: Sequence[Measurement], machine: Machine, names: Sequence[str]
) -> dict[str, float]:
    """Damped Gauss-Newton on the logarithms of the named values."""
    start = torch.tensor(
        [math.log(getattr(machine.efficiency, name)) for name in names], dtype=torch.float64
    )

    def values_of(theta: torch.Tensor) -> dict[str, float]:
        ranges = (allowed_range(name) for name in names)
        return {
            name: min(max(value, low), high)
            for name, value, (low, high) in zip(names, theta.exp().tolist(), ranges, strict=True)
        }

    def residuals(theta: torch.Tensor) -> torch.Tensor:
        values = values_of(theta)
        trial = replace(machine, efficiency=replace(machine.efficiency, **values))
        errors = [math.log(one.predict(trial) / one.seconds) for one in used]
        return torch.cat(
            [torch.tensor(errors, dtype=torch.float64), PRIOR_WEIGHT * (theta - start)]
        )

    theta, damping = start.clone(), 1e-3
    best = residuals(theta)
    for _ in range(STEPS):
        columns = [
            (residuals(theta + 1e-4 * unit) - best) / 1e-4
            for unit in torch.eye(len(names), dtype=torch.float64)
        ]
        jacobian = torch.stack(columns, -1)
        normal = jacobian.T @ jacobian
        step = torch.linalg.solve(normal + damping * normal.diag().diag(), jacobian.T @ best)
        tried = residuals(theta - step)
        if float(tried.square().sum()) < float(best.square().sum()):
            theta, best, damping = theta - step, tried, damping / 3
            if float(step.abs().max()) < 1e-6:
                break
        else:
            damping *= 10
    return {name: float(f"{value:.4g}") for name, value in values_of(theta).items()}


def _source(name: str, used: Sequence[Measurement]) -> str:
    files = sorted({measurement.source for measurement in used if name in measurement.informs})
    return f"fitted on {'; '.join(files)}"


def _summary(fit: Fit) -> dict[str, Any]:
    """What the efficiency file keeps of the errors."""
    return {
        "hold_out_tokens": sorted(
            {
                row.measurement.tokens
                for row in fit.comparisons
                if row.held_out and not row.measurement.set_aside
            }
        ),
        **{
            key: {
                "count": len(errors),
                "median": _rounded(median(errors)),
                "worst": _rounded(max(errors)),
            }
            for key, held in (("fit", False), ("held_out", True))
            if (errors := fit.errors(held_out=held))
        },
        "rows": [
            {
                "name": row.measurement.name,
                "tokens": row.measurement.tokens,
                "measured_s": _rounded(row.measurement.seconds),
                "predicted_s": _rounded(row.predicted_s),
                "held_out": row.held_out,
                "source": row.measurement.source,
            }
            for row in fit.comparisons
        ],
    }


def _memory_summary(peaks: Sequence[tuple[str, float, float]]) -> dict[str, Any]:
    if not peaks:
        return {}
    errors = [abs(counted / measured - 1) for _, measured, counted in peaks]
    return {
        "memory": {
            "count": len(errors),
            "median": _rounded(median(errors)),
            "worst": _rounded(max(errors)),
        }
    }


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def efficiency_text(efficiency: Efficiency) -> str:
    """An efficiency as the JSON that `--set efficiency=FILE.json` and data/efficiency take."""
    values = asdict(efficiency)
    del values["name"], values["transferred"]
    return json.dumps(values, indent=2, allow_nan=False) + "\n"
