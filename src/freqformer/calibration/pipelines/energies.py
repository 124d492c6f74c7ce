"""What candidates change in a model's layers, by noise level.

Shape legend: B batch, N tokens, H heads, D head_dim, C channels, L layers, K candidates, T tiles,
S slots of a tile. Energies come in two parts (2), see `energy_parts`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from freqformer.calibration.candidates import Candidates
from freqformer.grid import Grid, TileLayout

DIGITS = 6
"""To which noise levels are told apart."""
COARSE = 3.0
"""What tiles miss on the whole counts so many times more. Later steps repair what differs from
token to token, and build on what the tiles hold on the whole."""
MakeCandidates = Callable[[Grid, int], Candidates]
"""From a call's grid and its exact tokens to what is measured."""


class Energies:
    """Sums of squares of one transformer, by `energy_parts`: of what a candidate in one head adds
    to the stream of tokens, beside dense attention.

    Args:
        layers, heads: of the transformer.
        make: the candidates, once the grid is known.
    """

    def __init__(self, layers: int, heads: int, make: MakeCandidates) -> None:
        self.layers = layers
        self.heads = heads
        self._make = make
        self.grid: Grid | None = None
        self.exact = 0
        """Tokens beside the video."""
        self.candidates: Candidates | None = None
        self.by_level: dict[float, Tensor] = {}
        """Noise level -> float64 (L, H, K, 2) on the CPU."""

    def of(self, grid: Grid, exact: int) -> Candidates:
        """The candidates of this grid.

        Raises:
            ValueError: for another grid than that of the first call.
        """
        if self.candidates is None:
            self.grid = grid
            self.exact = exact
            self.candidates = self._make(grid, exact)
        if grid != self.grid:
            raise ValueError(
                f"prompts make videos of {grid} after others of {self.grid}; one size is allowed: "
                "calibrate each by itself"
            )
        return self.candidates

    def add(self, layer: int, place: int, level: Tensor, energy: Tensor) -> None:
        """Add the energies of one layer and candidate.

        Args:
            layer, place: of the layer and of the candidate.
            level: noise levels (B,) on the host.
            energy: (B, H, 2).
        """
        energy = energy.double().cpu()
        for row, noise in enumerate(level.tolist()):
            key = round(noise, DIGITS)
            if key not in self.by_level:
                assert self.candidates is not None
                count = len(self.candidates.operators)
                self.by_level[key] = torch.zeros(
                    self.layers, self.heads, count, 2, dtype=torch.float64
                )
            self.by_level[key][layer, :, place] += energy[row]


def gram_of(project: Callable[[Tensor], Tensor], heads: int, like: Tensor) -> Tensor:
    """How much each head's output counts once it is projected: W·Wᵀ of its rows, float32 (H, D, D).

    The projection is asked for its rows, so that it may be quantised, adapted or offloaded.

    Args:
        project: (N, C) -> (N, C'), linear but for a bias.
        heads: H.
        like: a tensor (..., C) of the dtype and device that it takes.
    """
    width = like.shape[-1]
    basis = torch.eye(width, dtype=like.dtype, device=like.device)
    rows = project(basis).float() - project(basis[:1] * 0).float()
    rows = rows.unflatten(0, (heads, -1))
    return rows @ rows.transpose(1, 2)


def projected_energy(difference: Tensor, gram: Tensor) -> Tensor:
    """Sums of squares of what differences make once projected: (B, N, H, D) and (H, D, D) -> (B,
    H)."""
    totals = []
    for head, weights in enumerate(gram):
        # One head at a time, since float32 takes twice the memory of what a model computes in.
        values = difference[:, :, head].float()
        totals.append(((values @ weights) * values).sum((1, 2)))
    return torch.stack(totals, 1)


def felt_energy(parts: Tensor, coarse: float = COARSE) -> Tensor:
    """How much differences count for the final latents, but for what their step weighs: (..., 2) ->
    (...).

    Args:
        parts: of `energy_parts`.
        coarse: how many times more what tiles miss on the whole counts.
    """
    return parts[..., 0] + coarse * parts[..., 1]


def energy_parts(difference: Tensor, gram: Tensor, layout: TileLayout, before: int = 0) -> Tensor:
    """The sum of squares of what differences make once projected, and that of its means over the
    video's tiles, each as often as its tile has tokens.

    Args:
        difference: (B, N, H, D), the video's tokens in raster order.
        gram: (H, D, D), of `gram_of`.
        layout: of the video.
        before: exact tokens before the video.

    Returns: float32 (B, H, 2).
    """
    video = difference[:, before : before + layout.grid.num_tokens]
    coarse = projected_energy(tile_sums(video, layout), gram)
    return torch.stack([projected_energy(difference, gram), coarse], -1)


def tile_sums(x: Tensor, layout: TileLayout) -> Tensor:
    """Sums over every tile, divided by the root of its number of tokens: x (B, N, H, D) in raster
    order -> float32 (B, T, H, D).

    Their squares are those of the tile's mean, as often as it has tokens.
    """
    tokens = layout.raster_to_tile[layout.padded_index()].to(x.device)
    held = torch.arange(layout.slots) < layout.counts[:, None]
    # Empty slots repeat a token, which counts once.
    weights = (held / layout.counts[:, None].sqrt()).to(x.device)[..., None]
    sums = [(x[:, :, head].float()[:, tokens] * weights).sum(2) for head in range(x.shape[2])]
    return torch.stack(sums, 2)
