"""A transformer of diffusers that is calibrated, by what its family says of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from freqformer.attention.record import CallRecord
from freqformer.calibration.pipelines.energies import (
    Energies,
    MakeCandidates,
    energy_parts,
    gram_of,
)
from freqformer.config import Band, FreqFormerConfig
from freqformer.grid import Grid, tile_layout
from freqformer.integrations.diffusers import enable_frequency_attention
from freqformer.integrations.diffusers.calls import CurrentCall, Share
from freqformer.integrations.diffusers.families import family_of
from freqformer.integrations.diffusers.processor import FrequencyProcessor
from freqformer.integrations.diffusers.session import Replaced, Session, session_of
from freqformer.integrations.diffusers.steps import SamplerSteps
from freqformer.ops.parameters import AttentionParameters, KnownBands
from freqformer.routing import RoutingTable


class PluggedSubject:
    """One transformer of diffusers.

    Args:
        transformer: of a known family.
    """

    def __init__(self, transformer: nn.Module) -> None:
        self.transformer = transformer
        self.family = family_of(transformer)
        self.named = self.family.layers(transformer)
        self.layers = [layer for _, layer in self.named]

    def check(self) -> None:
        """As `Subject.check`."""
        if session_of(self.transformer) is not None:
            raise ValueError(
                "pipe has frequency attention, and calibration compares with the model's own: call "
                "disable_frequency_attention(pipe) first"
            )
        if getattr(self.transformer, "is_cache_enabled", False):
            raise ValueError(
                "pipe's transformer has a cache, which skips what is to be measured; none is "
                "allowed: call disable_cache(), and enable it again afterwards"
            )
        if getattr(self.transformer, "_parallel_config", None) is not None:
            raise ValueError(
                "pipe's transformer has a parallel configuration; None is allowed: calibrate on "
                "one GPU, and share the video among several afterwards"
            )

    def energies(self, make: MakeCandidates) -> Energies:
        """As `Subject.energies`."""
        return Energies(len(self.layers), self.layers[0].heads, make)

    @contextmanager
    def measuring(self, energies: Energies) -> Iterator[None]:
        """As `Subject.measuring`."""
        current = CurrentCall()
        replaced = {}
        for place, (name, layer) in enumerate(self.named):
            own = layer.processor
            bands = MeasuredBands(energies, layer.heads)
            processor = self.family.processor(current, bands, own, impl="auto")
            project = output_projection(self.transformer, name, layer)
            LayerMeter(processor, energies, place, project).attach()
            replaced[name] = Replaced(layer, own, processor)
        session = Session(
            self.family,
            tuple(inspect.signature(type(self.transformer).forward).parameters)[1:],
            current,
            replaced,
            num_layers=len(replaced),
            steps=SamplerSteps(0.0, 1.0),
            min_tokens=0,
        )
        session.start(self.transformer)
        try:
            yield
        finally:
            session.stop()

    @contextmanager
    def banded(self, table: RoutingTable) -> Iterator[None]:
        """As `Subject.banded`."""
        with enable_frequency_attention(self.transformer, table):
            yield


class MeasuredBands:
    """What layers that are measured are told: heads are DENSE, in the candidates' config.

    Args:
        energies: whose candidates are asked for.
        heads: of the layer.
    """

    def __init__(self, energies: Energies, heads: int) -> None:
        self._energies = energies
        self._heads = heads

    def configs(
        self, grid: Grid, noise_level: Tensor, num_text_tokens: int
    ) -> list[FreqFormerConfig | None]:
        """As `LayerBands.configs`."""
        return [self._energies.of(grid, num_text_tokens).config] * len(noise_level)

    def bands(self, noise_level: Tensor, device: torch.device) -> KnownBands:
        """As `LayerBands.bands`."""
        return _alike(Band.DENSE, (len(noise_level), self._heads), device)

    def records(self, grid: Grid, num_text_tokens: int) -> set[CallRecord]:
        """As `LayerBands.records`."""
        config = self._energies.of(grid, num_text_tokens).config
        return {CallRecord(grid, config, num_text_tokens, (Band.DENSE.value,))}

    def density(
        self, grid: Grid, num_text_tokens: int, noise_levels: Sequence[float] = ()
    ) -> float:
        """As `LayerBands.density`: nothing is left out."""
        return 1.0


class LayerMeter:
    """What one layer's processor does while it is measured: the layer's own attention, and then
    every candidate on the same queries, keys and values.

    Args:
        processor: of the layer's family.
        energies: that grow.
        place: of the layer.
        project: the layer's output projection.
    """

    def __init__(
        self,
        processor: FrequencyProcessor,
        energies: Energies,
        place: int,
        project: Callable[[Tensor], Tensor],
    ) -> None:
        self._processor = processor
        self._attend = processor.attend
        self._energies = energies
        self._place = place
        self._project = project
        self._gram: Tensor | None = None

    def attach(self) -> None:
        """Take the processor's place where it runs and where it attends."""
        self._processor.run = self._run  # type: ignore[method-assign]
        self._processor.attend = self._compare  # type: ignore[method-assign]

    def _run(self, attn: Any, given: tuple[Any, ...]) -> Any:
        (share,) = self._processor.shares
        out = self._processor.own(attn, *given)
        with torch.no_grad():
            self._processor.banded(attn, share, *given)
        return out

    def _compare(
        self,
        share: Share,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        parameters: AttentionParameters,
        **named: Any,
    ) -> Tensor:
        qkv = (query, key, value)
        dense = self._attend(share, *qkv, parameters, **named)
        heads = query.shape[2]
        if self._gram is None:
            self._gram = gram_of(self._project, heads, dense[:1, :1]).cpu()
        gram = self._gram.to(dense.device)
        call = self._processor.current.call
        assert call is not None
        candidates = self._energies.candidates
        assert candidates is not None
        video = share.video
        layout = tile_layout(video.grid, candidates.config.tile)
        for place, (band, config) in enumerate(candidates.operators):
            bands = _alike(band, (len(share.rows), heads), dense.device)
            tried = replace(share, config=config, bands=bands)
            difference = self._attend(tried, *qkv, parameters, **named).sub_(dense)
            by_head = difference.unflatten(2, (heads, -1))
            energy = energy_parts(by_head, gram, layout, video.before)
            self._energies.add(self._place, place, call.noise_level, energy)
        return dense


def _alike(band: Band, shape: tuple[int, int], device: torch.device) -> KnownBands:
    return KnownBands(torch.full(shape, band.value, device=device), (band.value,))


def output_projection(transformer: nn.Module, name: str, layer: Any) -> Callable[[Tensor], Tensor]:
    """What projects a layer's heads back into the stream of tokens.

    A layer with one stream, as HunyuanVideo has, leaves that to its block, which projects heads and
    what else it computed together.

    Args:
        transformer, name, layer: the model, and one of its attention layers by name.
    """
    if layer.to_out is not None:
        return layer.to_out[0]
    block: Any = transformer.get_submodule(name.rpartition(".")[0])

    def project(x: Tensor) -> Tensor:
        return block.proj_out(functional.pad(x, (0, block.proj_out.in_features - x.shape[-1])))

    return project
