"""What kernels achieve of a machine's figures: one record per machine, fitted from committed
measurements."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from freqformer.simulate.model.hardware import Hardware
from freqformer.simulate.model.profiles import (
    ProfileError,
    check_number,
    known_profiles,
    read_profile,
    record,
    shown,
)

REFERENCE = "h200"
"""The machine whose fractions stand in for one that was not measured."""

UNMEASURED_START = 1e-6
"""Seconds of an all-to-all beside its bytes where none was measured; a fit can't begin at none."""


@dataclass(frozen=True)
class Efficiency:
    """Achieved fractions of the kernels on one machine.

    Raises:
        ProfileError: for a value out of range.
    """

    name: str
    """The machine that the values were measured on."""
    dense_rate: float
    """Of `matrix_flops`, dense attention."""
    attention_rate: float
    """Of `matrix_flops`, the key loop of the fused launch at head_dim 128, executed FLOPs."""
    attention_item_blocks: float
    """What starting and ending a work item costs, in blocks of 128 keys."""
    attention_slots: float
    """Work items that run at once on one processor."""
    dense_gradient_rate: float
    """Of `matrix_flops`, the backward of dense attention."""
    attention_gradient_rate: float
    """Of `matrix_flops`, the gradients of queries and keys, executed FLOPs."""
    softmax_channels: float
    """A block's softmax costs as much as the products of this many channels: small heads run at a
    lower rate."""
    linear_rate: float
    """Of `matrix_flops`, projections and feed-forward networks."""
    selection_rate: float
    """Of `vector_flops`, tile scores and the choice of the best."""
    selection_item_tiles: float
    """What starting and ending a block of 16 query tiles costs, in key tiles."""
    pooling_rate: float
    """Of `matrix_flops`, learned summaries."""
    pooling_gradient_rate: float
    router_rate: float
    """Of `matrix_flops`, the router's transforms."""
    router_s: float
    """Seconds that the router takes whatever the number of heads: reading a cold cache, and its
    network."""
    prologue_bandwidth: float
    """Of `memory_bandwidth`; so are the rest but the link's."""
    prologue_gradient_bandwidth: float
    merge_bandwidth: float
    merge_gradient_bandwidth: float
    elementwise_bandwidth: float
    link_bandwidth: float
    """Of the interconnect's bandwidth, gathered weights, keys and values."""
    all_to_all_bandwidth: float
    """Of the interconnect's bandwidth, the all-to-alls between tokens and heads."""
    all_to_all_s: float
    """Seconds of an all-to-all beside its bytes and the link's latency."""
    all_to_all_overlap: float
    """Share of the all-to-alls' time in which a GPU computes."""
    packing_bandwidth: float
    """Of `memory_bandwidth`, sorting heads by rank before they travel, and joining what arrived."""
    sources: dict[str, str]
    """Where each value comes from."""
    fit: dict[str, Any]
    """What the fit and the hold-out say, from `fit_efficiency`; empty where nothing was fitted."""
    transferred: bool
    """Whether the machine at hand is another one than the values were measured on."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.type == "float":
                check_number(field.name, getattr(self, field.name), *allowed_range(field.name))
        _check_fit(self.fit)


ERRORS: dict[str, tuple[float, float]] = {"count": (1, 1e9), "median": (0, 1e9), "worst": (0, 1e9)}
"""What an efficiency says of a set of errors, and the range of each number."""
ROW: dict[str, tuple[float, float]] = {
    "tokens": (1, 1e15),
    "measured_s": (1e-12, 1e12),
    "predicted_s": (1e-12, 1e12),
}
"""The numbers of one measurement that an efficiency rests on or is held against."""


def _check_fit(fit: Any) -> None:
    """Raise ProfileError unless `fit` is empty, or what `fit-hardware` writes: errors, and the
    measurements."""
    if not isinstance(fit, dict):
        raise ProfileError(
            f"fit is {shown(fit)}; an object is allowed: what `freqformer fit-hardware` "
            f"wrote, or {{}}"
        )
    if not fit:
        return
    rows = fit.get("rows")
    if "fit" not in fit or not isinstance(rows, list) or not rows:
        raise ProfileError(
            f"fit is {shown(fit)}; one with fit and rows is allowed, or {{}} where nothing was "
            "fitted"
        )
    for name in ("fit", "held_out", "memory"):
        if name in fit:
            _check_numbers(f"fit, {name}", fit[name], ERRORS)
    for row in rows:
        _check_numbers("fit, rows", row, ROW)
        if not isinstance(row.get("held_out"), bool):
            raise ProfileError(
                f"fit, rows: held_out is {shown(row.get('held_out'))}; true and false are allowed"
            )


def _check_numbers(where: str, values: Any, ranges: dict[str, tuple[float, float]]) -> None:
    if not isinstance(values, dict):
        raise ProfileError(
            f"{where} is {shown(values)}; an object with {', '.join(ranges)} is allowed"
        )
    for name, (low, high) in ranges.items():
        check_number(f"{where}, {name}", values.get(name), low, high)


def allowed_range(name: str) -> tuple[float, float]:
    """Least and largest value of a number in an efficiency: a fraction, unless it is something
    else."""
    other = {
        "attention_item_blocks": (0, 1e4),
        "selection_item_tiles": (0, 1e5),
        "softmax_channels": (0, 1e4),
        "router_s": (0, 1),
        "all_to_all_s": (0, 1),
        "all_to_all_overlap": (0, 1),
        "attention_slots": (1, 64),
    }
    return other.get(name, (1e-6, 2))


def load_efficiency(hardware: Hardware | str | Path) -> Efficiency:
    """The efficiency of a machine, or of a JSON file; a machine without its own takes the H200's
    fractions, and says so.

    Raises:
        ProfileError: for an unreadable file, a missing field or a value out of range.
    """
    wanted = hardware.name if isinstance(hardware, Hardware) else hardware
    known = wanted in known_profiles("efficiency") or not isinstance(hardware, Hardware)
    short, values = read_profile("efficiency", wanted if known else REFERENCE)
    if "link_bandwidth" in values:
        # Of a version that had one rate for all collectives and overlapped none.
        values.setdefault("all_to_all_bandwidth", values["link_bandwidth"])
        values.setdefault("all_to_all_overlap", 0.0)
    if "elementwise_bandwidth" in values:
        # Of a version that took exchanges for nothing but their bytes.
        values.setdefault("all_to_all_s", UNMEASURED_START)
        values.setdefault("packing_bandwidth", values["elementwise_bandwidth"])
    efficiency = record(Efficiency, values, f"efficiency/{short}", name=short, transferred=False)
    return efficiency if known else replace(efficiency, transferred=True)
