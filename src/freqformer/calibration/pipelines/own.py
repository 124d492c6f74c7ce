"""A model of this library that is calibrated, whose layers are dense and watched by hooks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from freqformer.attention import DenseAttention
from freqformer.attention.base import AttentionLayer
from freqformer.calibration.measure import Attended, LayerWatch
from freqformer.calibration.pipelines.energies import (
    Energies,
    MakeCandidates,
    energy_parts,
    gram_of,
)
from freqformer.grid import tile_layout
from freqformer.models.transformer import FreqFormerTransformer3DModel
from freqformer.ops.tokens import reorder
from freqformer.routing import RoutingTable


class OwnSubject:
    """One transformer of this library.

    Args:
        transformer: with `frequency=FreqFormerConfig.dense()`.
    """

    def __init__(self, transformer: FreqFormerTransformer3DModel) -> None:
        self.transformer = transformer
        self.layers = list(transformer.attentions)

    def check(self) -> None:
        """As `Subject.check`."""
        for place, layer in enumerate(self.layers):
            tabled = layer.table_bands is not None
            if not isinstance(layer, DenseAttention) or tabled:
                has = "a routing table" if tabled else f"a {type(layer).__name__}"
                raise ValueError(
                    f"pipe's transformer has {has} in layer {place}; dense layers are allowed: "
                    "call set_routing_table(None), or load a model with "
                    "frequency=FreqFormerConfig.dense()"
                )

    def energies(self, make: MakeCandidates) -> Energies:
        """As `Subject.energies`."""
        return Energies(len(self.layers), self.layers[0].num_heads, make)

    @contextmanager
    def measuring(self, energies: Energies) -> Iterator[None]:
        """As `Subject.measuring`."""
        with ExitStack() as hooks:
            for place, layer in enumerate(self.layers):
                meter = _Meter(layer, energies, place)
                for handle in LayerWatch(layer, meter.add).hooks():
                    hooks.callback(handle.remove)
            yield

    @contextmanager
    def banded(self, table: RoutingTable) -> Iterator[None]:
        """As `Subject.banded`."""
        self.transformer.set_routing_table(table)
        try:
            yield
        finally:
            self.transformer.set_routing_table(None)


class _Meter:
    """Adds what one layer's candidates change."""

    def __init__(self, layer: AttentionLayer, energies: Energies, place: int) -> None:
        self._layer = layer
        self._energies = energies
        self._place = place
        self._gram: Tensor | None = None

    @torch.no_grad()
    def add(self, attended: Attended) -> None:
        """Add those of this call."""
        dense = attended.output
        if self._gram is None:
            # Called beside the layer, whose own projection is being watched.
            self._gram = gram_of(
                self._layer.to_out.forward, dense.shape[2], dense[:1, :1].flatten(2)
            )
        candidates = self._energies.of(attended.grid, 0)
        layout = tile_layout(attended.grid, candidates.config.tile)
        level = attended.timestep.double().cpu().expand(len(dense))
        for place, (band, config) in enumerate(candidates.operators):
            difference = attended.by(band.value, config, self._layer.impl) - dense
            raster = reorder(difference, layout, attended.token_order, "raster")
            energy = energy_parts(raster, self._gram, layout)
            self._energies.add(self._place, place, level, energy)
