"""What frequency-banded attention gets wrong, by band, and a bound on it.

Attention is linear in the values, and the bands of the values add up, so the exact output is out =
A low(V) + A mid(V) + A high(V), and the error splits the same way. The banded operation is linear
in the values too: it has weights of its own, whatever tokens it compressed or summarised on the
way. So its error is at most 2 (misplaced attention mass) max |v|. Derivation:
docs/error-by-band.md.

Shape legend: B batch, N video tokens, H heads, D head_dim, C bands (LOW, MID, HIGH).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from freqformer.attention import frequency_attention
from freqformer.bands import band_energies, split_bands
from freqformer.config import Band, FreqFormerConfig
from freqformer.grid import Grid
from freqformer.ops.parameters import AttentionParameters
from freqformer.plan import Selection


@dataclass(frozen=True)
class ErrorByBand:
    """The error of banded attention against dense attention, float64. Energies sum squares over
    tokens and channels."""

    relative_error: Tensor
    """Norm of the error over the norm of the exact output, (B, H)."""
    output_energy: Tensor
    """Energy of A low(V), A mid(V) and A high(V), (B, H, 3). The three add up to the output, their
    energies need not: A mixes tokens, so they are not orthogonal."""
    error_by_source: Tensor
    """Energy of the error that each band of the values causes, (B, H, 3). The three errors add up
    to the whole one."""
    error_by_band: Tensor
    """Energy of the low, mid and high band of the error itself, (B, H, 3). These add up to its
    energy (Parseval)."""
    misplaced_mass: Tensor
    """Half the absolute difference of the two attention distributions, (B, N, H), from 0 to 1 where
    all weights are positive. For an operator that drops keys and renormalises it is the attention
    mass that it misses."""
    error_norm: Tensor
    """Norm of the error of every query, (B, N, H)."""
    bound: Tensor
    """2 misplaced_mass max |v|, (B, N, H): error_norm is never larger, rounding aside."""

    @property
    def tightness(self) -> Tensor:
        """Largest share of the bound that an error takes, (B, H)."""
        return (self.error_norm / self.bound.clamp_min(1e-300)).amax(1)


@torch.no_grad()
def error_by_band(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    grid: Grid,
    allocation: Tensor | Sequence[int],
    config: FreqFormerConfig,
    parameters: AttentionParameters | None = None,
    selection: Selection | None = None,
) -> ErrorByBand:
    """Measure the error of `frequency_attention` against dense attention, split it by band and
    bound it.

    Both attentions are run on unit values too, N / D times each, for their weights: a diagnosis of
    some thousand tokens, not of a long video. Memory is linear in N.

    Args:
        query, key, value: (B, N, H, D) in raster order, any float dtype; computed in float64.
        grid: the tokens' grid.
        allocation: `Band` of every head, (H,) or (B, H).
        config: bands, patterns and summaries.
        parameters: what is learned, as in `frequency_attention`; with `rotary`, queries and keys
            arrive not rotated.
        selection: the tiles of MID heads; None chooses them by tile means.

    Raises:
        ValueError: as `frequency_attention`.
    """
    query, key, value = (x.double() for x in (query, key, value))
    bands = torch.as_tensor(allocation)
    options = {"grid": grid, "config": config, "parameters": parameters, "selection": selection}

    def attend(v: Tensor, heads: Tensor) -> Tensor:
        return frequency_attention(query, key, v, allocation=heads, impl="eager", **options)  # type: ignore[arg-type]

    def exact(v: Tensor) -> Tensor:
        return attend(v, torch.full_like(bands, Band.DENSE.value))

    parts = [
        part.unflatten(2, value.shape[2:]) for part in split_bands(value.flatten(2), grid, config)
    ]
    outputs = [exact(part) for part in parts]
    errors = [attend(part, bands) - out for part, out in zip(parts, outputs, strict=True)]
    output = exact(value)
    error = attend(value, bands) - output
    mass = _misplaced_mass(lambda v: attend(v, bands) - exact(v), value)
    largest = value.norm(dim=-1).amax(1, keepdim=True)
    return ErrorByBand(
        relative_error=(_energy(error) / _energy(output)).sqrt(),
        output_energy=torch.stack([_energy(x) for x in outputs], -1),
        error_by_source=torch.stack([_energy(x) for x in errors], -1),
        error_by_band=band_energies(error.transpose(1, 2), grid, config),
        misplaced_mass=mass,
        error_norm=error.norm(dim=-1),
        bound=2 * mass * largest,
    )


def _energy(x: Tensor) -> Tensor:
    """(B, N, H, D) -> (B, H)."""
    return x.square().sum((1, 3))


def _misplaced_mass(difference: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    """Half the absolute difference of two attention matrices, (B, N, H), read off D columns at a
    time: with unit vectors as values, an attention's output is its weights.

    Args:
        difference: of the two attentions, a linear function of values (B, N, H, D).
        value: for its shape.
    """
    batch, tokens, heads, channels = value.shape
    total = value.new_zeros(batch, tokens, heads)
    for start in range(0, tokens, channels):
        columns = min(channels, tokens - start)
        unit = value.new_zeros(tokens, channels)
        unit[start : start + columns, :columns] = torch.eye(
            columns, dtype=unit.dtype, device=unit.device
        )
        total += difference(unit[None, :, None].expand(batch, -1, heads, -1)).abs().sum(-1)
    return total / 2
