"""How much an error in one noise level and one layer changes what a model generates.

A head's error says how far its output is from dense attention's, not what becomes of it: an error of the first sampling
steps decides what the video shows, one of the last steps its finest detail.

Shape legend: T timestep buckets, L layers, H heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from freqformer.calibration.choice import Choice
from freqformer.config import Band
from freqformer.models.transformer import FreqFormerTransformer3DModel


@torch.no_grad()
def measure_sensitivity(model: FreqFormerTransformer3DModel, generate: Callable[[], Tensor], choice: Choice) -> Tensor:
    """Squared error of what is generated for each squared error of heads, by noise level and layer.

    Everything is generated T + L + 2 times: twice with DENSE heads, with the choice in one bucket alone, and in one layer
    alone. What a bucket and a layer do together is taken to be the product of what they do apart.

    Args:
        model: dense; its routing table is off afterwards.
        generate: generates videos with `model` from the same seeds at every call; any shape.
        choice: of operators, none of whose buckets and layers is dense throughout.

    Returns: float64 (T, L) of mean 1, for `Calibration.choose_within`. A bucket in which no sampling step falls has 0.

    Raises:
        ValueError: for a choice with a bucket or layer that has no error, or a `generate` that varies by itself or whose
            videos no operator changes.
    """
    squares = choice.errors.square()
    by_bucket, by_layer = squares.sum((1, 2)), squares.sum((0, 2))
    if not bool((by_bucket > 0).all()) or not bool((by_layer > 0).all()):
        raise ValueError("choice has no error in a bucket or a layer; one with some in each is allowed: lower the budget")

    def generated(kept: Tensor) -> Tensor:
        model.set_routing_table(replace(choice.table, bands=choice.table.bands.where(kept, Band.DENSE.value)))
        return generate().double()

    try:
        # By a table, so that what its heads round otherwise than dense attention does is no error.
        nothing = torch.zeros_like(choice.table.bands, dtype=torch.bool)
        dense = generated(nothing)
        if not torch.equal(generated(nothing), dense):
            raise ValueError("generate gave other videos at the second call; the same seeds at every call are allowed")
        gains = []
        for axis, sums in ((0, by_bucket), (1, by_layer)):
            place = torch.ones_like(choice.table.bands).cumsum(axis) - 1
            errors = [float((generated(place == index) - dense).square().mean()) for index in range(len(sums))]
            gains.append(torch.tensor(errors, dtype=torch.float64) / sums)
    finally:
        model.set_routing_table(None)
    product = gains[0][:, None] * gains[1]
    if not bool(product.any()):
        raise ValueError("generate gives the same videos whatever the routing table is; one that runs `model` is allowed")
    return product / product.mean()
