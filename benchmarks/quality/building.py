"""Models of variants."""

from __future__ import annotations

from dataclasses import replace

import torch
from benchmarks.quality.linear import TilesAndLinear, WindowAndLinear
from benchmarks.quality.operators import MixedAttention
from benchmarks.quality.sizes import Size
from benchmarks.quality.variants import VARIANTS, Variant, bands, config_at
from torch import nn

from freqformer.attention import FreqAttention
from freqformer.config import FreqFormerConfig
from freqformer.models.transformer import FreqFormerTransformer3DModel
from freqformer.routing import RoutingTable
from freqformer.training.seeding import derive_seed


def build(variant: Variant, size: Size, seed: int) -> FreqFormerTransformer3DModel:
    """The model of a variant; what variants have in common starts alike at equal seeds."""
    torch.manual_seed(derive_seed(seed, "weights"))
    # Their bands are what variants don't have in common.
    common = _model(VARIANTS["dense"], size).state_dict()
    common = {name: x for name, x in common.items() if not name.endswith("allocation")}
    torch.manual_seed(derive_seed(seed, "own weights"))
    model = _model(variant, size)
    if variant.mixing is not None or variant.linear is not None:
        for block in model.transformer_blocks:
            block.attn1 = _layer(variant, size)
    for layer in model.attentions:
        if getattr(layer, "summary_offsets", None) is not None:
            layer.summary_offsets.data[:, 0] = variant.low_offset  # type: ignore[index]
    unknown = model.load_state_dict(common, strict=False).unexpected_keys
    assert not unknown
    if len(variant.splits) > 1:
        model.set_routing_table(table_of(variant, size))
    return model


def _model(variant: Variant, size: Size) -> FreqFormerTransformer3DModel:
    return FreqFormerTransformer3DModel(
        patch_size=size.patch,
        num_layers=size.layers,
        num_attention_heads=size.heads,
        attention_head_dim=size.head_dim,
        frequency=record_of(variant, size),
        absolute_positions=True,
    )


def _layer(variant: Variant, size: Size) -> FreqAttention:
    """A layer that the library doesn't have."""
    config = config_at(variant, size)
    split = bands(variant.splits[0], size.heads)
    if variant.mixing is not None:
        return MixedAttention(size.width, config, split, variant.mixing, routed=variant.learned)
    kind = WindowAndLinear if variant.linear == "all" else TilesAndLinear
    return kind(size.width, size.heads, replace(config, allocation=tuple(split)))


def record_of(variant: Variant, size: Size) -> FreqFormerConfig:
    """What the layers of a variant do, but for what a head does beside its own band."""
    config = config_at(variant, size)
    if variant.dense:
        return replace(config, allocation="dense", routing="fixed", low_branch=False)
    return replace(
        config,
        allocation=tuple(bands(variant.splits[0], size.heads)),
        routing="hard" if variant.learned else "fixed",
        low_branch=False,
        prior=variant.prior if variant.learned else "none",
    )


def table_of(variant: Variant, size: Size) -> RoutingTable | None:
    """The schedule of a variant's bands by timestep; None where they stay."""
    if len(variant.splits) == 1:
        return None
    config = config_at(variant, size)
    split = torch.tensor([bands(split, size.heads) for split in variant.splits])
    table = split[:, None].expand(-1, size.layers, -1).contiguous()
    return RoutingTable(table, torch.full_like(table, config.mid_tiles or 0), config)


def used_parameters(model: nn.Module) -> int:
    """Parameters that have a say in the loss: those whose last gradient is not zero throughout."""
    given = [parameter for parameter in model.parameters() if parameter.grad is not None]
    return sum(parameter.numel() for parameter in given if bool(parameter.grad.any()))  # type: ignore[union-attr]
