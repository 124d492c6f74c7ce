"""Errors of every candidate in a dense model's own forward pass.

Hooks take the queries, keys and values of each layer, and the outputs of its heads just before they
are projected. Every query is compared: candidates run as they would later, with memory linear in
the tokens, and nothing is estimated from a sample of the queries.

Shape legend: B batch, N video tokens, H heads, D head_dim, L layers, C candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from freqformer.attention import NORM_EPS, QKV, AttentionLayer, frequency_attention
from freqformer.calibration.candidates import Candidates
from freqformer.config import FreqFormerConfig
from freqformer.ops.backends import ImplChoice
from freqformer.ops.parameters import AttentionParameters


@dataclass(frozen=True, eq=False)
class Energies:
    """Sums of squares over samples, queries and channels, float64 on the CPU."""

    error: Tensor
    """Of every candidate's difference from dense, (L, H, C)."""
    output: Tensor
    """Of the dense outputs, (L, H)."""


@contextmanager
def measured(layers: Sequence[AttentionLayer], candidates: Candidates) -> Iterator[Energies]:
    """Measure in every forward pass inside the block; the sums grow with each.

    Hooks are gone at the end, errors included.

    Args:
        layers: dense attention layers of one width.
        candidates: with the tile pinned.
    """
    heads, count = layers[0].num_heads, len(candidates.operators)
    energies = Energies(
        torch.zeros(len(layers), heads, count, dtype=torch.float64),
        torch.zeros(len(layers), heads, dtype=torch.float64),
    )
    with ExitStack() as hooks:
        for index, layer in enumerate(layers):
            meter = _Meter(layer, candidates, energies.error[index], energies.output[index])
            for handle in LayerWatch(layer, meter.add).hooks():
                hooks.callback(handle.remove)
        yield energies


@dataclass(frozen=True, eq=False)
class Attended:
    """What a dense layer of this library computed in one call."""

    qkv: QKV
    """Queries, keys and values (B, N, H, D), neither normalised nor rotated yet."""
    parameters: AttentionParameters
    """What does that."""
    grid: Any
    timestep: Tensor
    """(B,) in [0, 1]."""
    token_order: Any
    output: Tensor
    """Of the heads, (B, N, H, D)."""

    def by(self, band: int, config: FreqFormerConfig, impl: ImplChoice) -> Tensor:
        """What heads of this band would have given, (B, N, H, D)."""
        # As the layer does: bands are taken without autocast.
        with torch.autocast(self.output.device.type, enabled=False):
            return frequency_attention(
                *self.qkv,
                grid=self.grid,
                allocation=[band] * self.output.shape[2],
                config=config,
                parameters=self.parameters,
                token_order=self.token_order,
                impl=impl,
            )


class LayerWatch:
    """Hooks that tell what a layer of this library computes.

    Args:
        layer: dense.
        seen: called just before the heads' outputs are projected. Outputs (B, N, H, D) that it
            gives take their place.
    """

    def __init__(self, layer: AttentionLayer, seen: Callable[[Attended], Tensor | None]) -> None:
        self.layer = layer
        self.seen = seen
        self.call: dict[str, Any] = {}
        self.projected: dict[str, Tensor] = {}

    def hooks(self) -> Iterator[Any]:
        """Handles of all hooks, each removed by `remove`."""
        yield self.layer.register_forward_pre_hook(self._begin, with_kwargs=True)
        for name in ("to_q", "to_k", "to_v"):
            yield getattr(self.layer, name).register_forward_hook(partial(self._keep, name))
        yield self.layer.to_out.register_forward_pre_hook(self._tell)

    def _begin(self, layer: nn.Module, given: tuple, named: dict[str, Any]) -> None:
        names = ("hidden_states", "grid", "timestep", "rotary")
        self.call = {
            "rotary": None,
            "token_order": "raster",
            **dict(zip(names, given, strict=False)),
            **named,
        }

    def _keep(self, name: str, projection: nn.Module, given: tuple, output: Tensor) -> None:
        self.projected[name] = output.unflatten(2, (self.layer.num_heads, -1))

    def _tell(self, projection: nn.Module, given: tuple[Tensor]) -> tuple[Tensor] | None:
        qkv = QKV(*(self.projected[name] for name in ("to_q", "to_k", "to_v")))
        parameters = AttentionParameters(
            rotary=self.call["rotary"],
            query_norm=self.layer.query_norm,
            key_norm=self.layer.key_norm,
            norm_eps=NORM_EPS,
        )
        output = given[0].unflatten(2, qkv.query.shape[2:])
        attended = Attended(
            qkv,
            parameters,
            grid=self.call["grid"],
            timestep=self.call["timestep"],
            token_order=self.call["token_order"],
            output=output,
        )
        other = self.seen(attended)
        self.projected.clear()
        self.call = {}
        return None if other is None else (other.flatten(2),)


class _Meter:
    """What one layer is given and gives, and the energies it adds to."""

    def __init__(
        self, layer: AttentionLayer, candidates: Candidates, error: Tensor, output: Tensor
    ) -> None:
        self.layer, self.candidates, self.error, self.output = layer, candidates, error, output

    def add(self, attended: Attended) -> None:
        """Add the energies of this call."""
        self.output += _energy(attended.output)
        for place, (band, config) in enumerate(self.candidates.operators):
            out = attended.by(band.value, config, self.layer.impl)
            self.error[:, place] += _energy(out, attended.output)


def _energy(x: Tensor, other: Tensor | None = None) -> Tensor:
    """Sum of squares of x, or of its difference from another, per head: (B, N, H, D) -> float64
    (H,) on the CPU."""
    totals = []
    for head in range(x.shape[2]):
        # In double precision one head at a time: all of them would take four times the outputs'
        # memory.
        values = x[:, :, head].double()
        totals.append(
            (values if other is None else values - other[:, :, head].double()).square().sum()
        )
    return torch.stack(totals).cpu()
