"""Which model a routing table was made from: a few weights of every layer, compared with tolerance.

A checksum would not do: the same model is loaded in other dtypes, averaged, or trained on a little.
Weights of models that were trained apart don't agree at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

Origin = tuple[tuple[float, ...], ...]
"""`SAMPLES` weights of every layer."""
SAMPLES = 64
LEAST_AGREEMENT = 0.7
"""Cosine of the angle between the samples of two models; with one layer, chance gives 0.5 once in
30,000 times."""


def origin_of(layers: Sequence[nn.Module]) -> Origin | None:
    """What marks a model: samples of the attention layers' output projections.

    Args:
        layers: in order; of any library.

    Returns:
        six digits of each weight; None where there are none to read (on `meta`, quantised, or
        sharded).
    """
    samples = []
    for layer in layers:
        weight = _projection(layer)
        if weight is None:
            return None
        places = torch.linspace(0, weight.numel() - 1, SAMPLES, dtype=torch.float64).long()
        values = weight.detach().flatten()[places.to(weight.device)].double().tolist()
        if not all(map(math.isfinite, values)):
            return None
        samples.append(tuple(float(f"{value:.6g}") for value in values))
    return tuple(samples) or None


def check_origin(origin: Origin | None, layers: Sequence[nn.Module], what: str = "table") -> None:
    """Raise ValueError where a table was made from another model than the one that it is set on.

    Args:
        origin: of the table; None passes, as where this model's weights can't be read.
        layers: of the model, as `origin_of` takes them.
        what: was made, `table` or `adapter`.
    """
    own = None if origin is None else origin_of(layers)
    if origin is None or own is None:
        return
    agreement = _agreement(origin, own)
    if agreement < LEAST_AGREEMENT:
        raise ValueError(
            f"{what} was made from another model: its weights agree by {agreement:.2f} with this "
            f"one's, and {LEAST_AGREEMENT} at least is allowed; make one from this model, or take "
            f"dataclasses.replace({what}, origin=None) to use it all the same"
        )


def parse_origin(value: Any) -> Origin | None:
    """What a file holds of an `Origin`.

    Raises:
        ValueError: for anything else than lists of `SAMPLES` numbers, or None.
    """
    if value is None:
        return None
    layers = value if isinstance(value, list) else [value]
    for layer in layers:
        numbers = isinstance(layer, list) and all(isinstance(x, int | float) for x in layer)
        if not numbers or len(layer) != SAMPLES:
            raise ValueError(f"origin holds something else than {SAMPLES} numbers for every layer")
    return tuple(tuple(float(x) for x in layer) for layer in layers)


def _projection(layer: nn.Module) -> Tensor | None:
    """The weight of a layer's output projection, which fusing the others leaves as it is; of a
    layer without one, as the single stream of HunyuanVideo has, that of its values."""
    matrices = [
        (parameter.numel(), name, parameter)
        for name, parameter in layer.named_parameters()
        if parameter.ndim == 2 and parameter.is_floating_point()
    ]
    found = [one for one in matrices if "to_out" in one[1]] or [
        one for one in matrices if "to_v" in one[1]
    ]
    if not found:
        return None
    weight = max(found, key=lambda one: one[:2])[2]
    plain = type(weight.data) is Tensor and weight.device.type != "meta"
    return weight if plain and weight.numel() >= SAMPLES else None


def _agreement(origin: Origin, own: Origin) -> float:
    if len(origin) != len(own):
        return 0.0
    a, b = (torch.tensor(samples, dtype=torch.float64).flatten() for samples in (origin, own))
    lengths = float(a.norm() * b.norm())
    return float(a @ b) / lengths if lengths > 0 else 1.0
