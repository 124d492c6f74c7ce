"""Loss by noise level on clips that training never shows, and what routing networks do there.

Shape legend: B clips of a step, L layers, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from benchmarks.quality import data
from benchmarks.quality.building import table_of
from benchmarks.quality.costs import allocation_density
from benchmarks.quality.operators import MixedAttention
from benchmarks.quality.sizes import Size
from benchmarks.quality.variants import Variant
from torch import Tensor

from freqformer.config import Band
from freqformer.models.transformer import FreqFormerTransformer3DModel
from freqformer.routing import RoutingTable
from freqformer.training.objective import flow_matching_loss, sample_timesteps
from freqformer.training.seeding import derive_generator, derive_seed

NOISE_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""The middles of five equal parts of the timesteps."""


@torch.no_grad()
def validate(
    model: FreqFormerTransformer3DModel, variant: Variant, size: Size, device: torch.device
) -> dict[str, Any]:
    """Loss by noise level, the same clips and noise for every run; bands, gates and tables where a
    network has a say."""
    frames, side, _ = size.video
    count = size.validation_clips
    clips = data.draw_scenes(
        count, derive_seed("validation clips"), device, held_out=True, frames=frames, side=side
    ).video
    noise = data.Draw(derive_seed("validation noise"), device).normal(*clips.shape)
    seen = _Seen(model, clips, noise, size.batch)
    levels = [torch.full((count,), level) for level in NOISE_LEVELS]
    passes = [seen.at(level) for level in levels]
    result: dict[str, Any] = {"losses": _by_level(passes)}
    if variant.learned:
        result["allocation"] = _shares(passes)
    if seen.soft:
        result["gates"] = [_mean_gates(seen, x) for x in passes]
    if variant.learned or seen.soft:
        result |= _of_networks(seen, variant, size, levels, passes)
    return result


@torch.no_grad()
def losses_on(
    model: FreqFormerTransformer3DModel, clips: Tensor, noise: Tensor, batch: int
) -> dict[str, float]:
    """The mean loss by noise level on clips and noise (B, 3, F, S, S)."""
    seen = _Seen(model, clips, noise, batch)
    return _by_level([seen.at(torch.full((len(clips),), level)) for level in NOISE_LEVELS])


@dataclass(frozen=True, eq=False)
class _Pass:
    """One pass over the validation clips."""

    loss: float
    allocation: Tensor
    """(clips, L, H)."""
    logits: Tensor | None
    """(clips, L, H, 3); None where no router ran."""


@dataclass(frozen=True, eq=False)
class _Seen:
    model: FreqFormerTransformer3DModel
    clips: Tensor
    noise: Tensor
    batch: int

    @property
    def soft(self) -> list[MixedAttention]:
        """The layers that route softly: all or none."""
        layers = [layer for layer in self.model.attentions if isinstance(layer, MixedAttention)]
        return [layer for layer in layers if layer.mixing.soft]

    def at(self, timestep: Tensor) -> _Pass:
        """Validate at these timesteps, (clips,)."""
        losses, allocations, logits = [], [], []
        parts = (
            x.split(self.batch) for x in (self.clips, timestep.to(self.clips.device), self.noise)
        )
        for clip, time_, noise in zip(*parts, strict=True):
            with torch.autocast(clip.device.type, torch.bfloat16):
                losses.append(flow_matching_loss(self.model, clip, time_, noise))
            allocations.append(torch.stack([x for x in self.model.allocations if x is not None], 1))
            logits.append([x for x in self.model.routing_logits if x is not None])
        scores = (
            torch.cat([torch.stack(layers, 1) for layers in logits]).cpu() if logits[0] else None
        )
        return _Pass(
            float(torch.stack(losses).double().mean()), torch.cat(allocations).cpu(), scores
        )


def _by_level(passes: list[_Pass]) -> dict[str, float]:
    return {
        str(level): round(seen.loss, 6) for level, seen in zip(NOISE_LEVELS, passes, strict=True)
    }


def _shares(passes: list[_Pass]) -> list[Any]:
    """Share of clips by level, layer, head and band."""
    bands = torch.arange(len(Band))
    return [
        [
            [_rounded(h) for h in layer]
            for layer in (x.allocation[..., None] == bands).double().mean(0)
        ]
        for x in passes
    ]


def _mean_logits(seen: _Pass) -> Tensor:
    """(L, H, 3)."""
    assert seen.logits is not None
    return seen.logits.double().mean(0)


def _mean_gates(seen: _Seen, done: _Pass) -> list[list[list[float]]]:
    """By layer, for the own branch and for LOW, by head."""
    logits = _mean_logits(done).to(seen.clips.device)
    pairs = zip(seen.soft, logits, strict=True)
    return [[_rounded(branch) for branch in layer.gates_of(one[None])[0]] for layer, one in pairs]


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]


def _of_networks(
    seen: _Seen, variant: Variant, size: Size, levels: list[Tensor], passes: list[_Pass]
) -> dict[str, Any]:
    """The loss with tables made of what the networks said, and FLOPs of a router's choice over the
    timesteps of training.

    A table holds bands and gates of every layer and head, by noise level or one mean for all.
    """
    # Validation clips, at timesteps distributed as in training.
    timesteps = sample_timesteps(len(seen.clips), 1.0, derive_generator("validation timesteps"))
    usual = seen.at(timesteps)
    result: dict[str, Any] = {"tables": {}}
    own = table_of(variant, size)
    frozen: dict[str, RoutingTable | None] = {"by_level": own, "averaged": own}
    if variant.learned:
        assert usual.logits is not None
        result["density"] = allocation_density(usual.allocation, variant, size)
        logits = torch.cat([x.logits for x in passes if x.logits is not None])
        times, count = torch.cat(levels), len(NOISE_LEVELS)
        frozen["by_level"] = RoutingTable.freeze(times, logits, variant.config, num_buckets=count)
        frozen["averaged"] = RoutingTable.freeze(
            timesteps, usual.logits, variant.config, num_buckets=1
        )
    for name, table in frozen.items():
        seen.model.set_routing_table(table)
        tabled = []
        for level, live in zip(levels, passes, strict=True):
            _hold_logits(seen, live if name == "by_level" else usual)
            tabled.append(seen.at(level))
        result["tables"][name] = {"losses": _by_level(tabled)}
        if variant.learned:
            result["tables"][name]["density"] = allocation_density(
                seen.at(timesteps).allocation, variant, size
            )
    seen.model.set_routing_table(own)
    for layer in seen.soft:
        layer.held_logits = None
    return result


def _hold_logits(seen: _Seen, source: _Pass) -> None:
    if seen.soft:
        for layer, logits in zip(seen.soft, _mean_logits(source), strict=True):
            layer.held_logits = logits.float().to(seen.clips.device)
