"""The attention variants of the study: one model size, one amount of attention FLOPs.

How a variant's FLOPs meet the target is data here: its window, its tiles kept, its summaries. Tiles
are cubes of 64 tokens rather than boxes of 128, since at this size a symmetric window of 3 x 3 x 3
boxes would be 21% of the video already.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from benchmarks.quality.operators import MixedAttention, Mixing
from torch import Tensor, nn

from freqformer.config import Band, FreqFormerConfig
from freqformer.grid import Extents, Grid
from freqformer.models.transformer import FreqFormerTransformer3DModel
from freqformer.plan import build_plan
from freqformer.routing import Prior, RoutingTable
from freqformer.training.seeding import derive_seed

TARGET_DENSITY = 36 / 256
"""Attention FLOPs of every variant relative to dense attention: 36 of 256 tiles."""
TOLERANCE = 0.1
"""How far a variant may be from the target, relatively."""
Split = tuple[int, int, int]
"""LOW, MID and HIGH heads of a layer."""


@dataclass(frozen=True)
class Size:
    """A model and its clips."""

    video: Extents = (16, 64, 64)
    """Frames, rows and columns in pixels."""
    patch: Extents = (1, 2, 2)
    layers: int = 6
    heads: int = 6
    head_dim: int = 64
    batch: int = 4
    """Clips of a step."""
    validation_clips: int = 24
    """A multiple of the batch."""

    @property
    def grid(self) -> Grid:
        """Tokens of a clip."""
        frames, height, width = (
            side // patch for side, patch in zip(self.video, self.patch, strict=True)
        )
        return Grid(frames, height, width)


STUDY = Size()
SIZES = {"16k": STUDY, "64k": Size(video=(64, 64, 64), batch=2, validation_clips=12)}
"""By tokens of a clip. The longer one has four times the frames: what covers all times at 16K is 6%
of them here."""
CUBES = FreqFormerConfig(
    tile=(4, 4, 4), compression=64, window=(4, 3, 3), mid_tiles=55, summary_tokens=256
)
"""What FreqFormer variants share: 32 tokens a low token (two of every tile), windows of all times
and 3 x 3 tiles, one summary per tile. With 2/2/2 heads it meets the target."""


@dataclass(frozen=True)
class Variant:
    """One kind of attention in every layer."""

    about: str
    config: FreqFormerConfig = CUBES
    splits: tuple[Split, ...] = ((2, 2, 2),)
    """Heads per band: one split, or one for each of equal parts of the timesteps, least noise
    first; a router's start."""
    dense: bool = False
    """Whether every head sees every token, in place of all else."""
    mixing: Mixing | None = None
    """What heads do beside their own band."""
    learned: bool = False
    """Whether a router chooses bands."""
    prior: Prior = "noise_level"
    """Of the router."""
    low_offset: float = 0.0
    """Offset of the low summaries at first. At 0 and with scores near 0 they take the weight of all
    that they stand for: beside a window of 27 of 256 tiles 89%. Lower, heads begin with what they
    see exactly."""

    @property
    def fixed(self) -> bool:
        """Whether nothing of it follows from statistics or timestep, but what a schedule says."""
        return not (
            self.learned or (self.mixing is not None and (self.mixing.soft or self.mixing.weighed))
        )


PLAIN = replace(CUBES, summary_tokens=0)
MID, HIGH = (0, 6, 0), (0, 0, 6)
BESIDE = Mixing(low_branch=True, gates="token")
VARIANTS: dict[str, Variant] = {
    "dense": Variant("every head sees every token; more FLOPs, for reference", dense=True),
    "window": Variant("every head a window", PLAIN, (HIGH,)),
    "window_summaries": Variant(
        "every head a smaller window and summaries", replace(CUBES, window=(3, 3, 3)), (HIGH,)
    ),
    "window_quiet": Variant(
        "every head a smaller window and summaries that start nearly unseen",
        replace(CUBES, window=(3, 3, 3)),
        (HIGH,),
        low_offset=-4.0,
    ),
    "topk_summaries": Variant(
        "every head its best tiles and summaries", replace(CUBES, mid_tiles=28), (MID,)
    ),
    "vsa": Variant(
        "like VSA: gated sum of attention between tile means and to the best tiles",
        replace(PLAIN, mid_tiles=36, compression=128, low_output="inverse_dct"),
        (MID,),
        mixing=BESIDE,
    ),
    "gated_window": Variant(
        "every head a gated sum of LOW and of a window with summaries",
        replace(CUBES, window=(3, 3, 3)),
        (HIGH,),
        mixing=BESIDE,
    ),
    "gated_plain": Variant(
        "every head a gated sum of LOW and of a window without summaries",
        PLAIN,
        (HIGH,),
        mixing=BESIDE,
    ),
    "window_gate": Variant(
        "every head a window whose output is gated", PLAIN, (HIGH,), mixing=Mixing(gates="token")
    ),
    "window_weighed": Variant(
        "every head a window and few summaries, which a router weighs by noise level",
        replace(CUBES, summary_tokens=32),
        (HIGH,),
        mixing=Mixing(weighed=True),
        low_offset=-2.0,
    ),
    "window_weighed_gate": Variant(
        "as window_weighed, output gated",
        replace(CUBES, summary_tokens=32),
        (HIGH,),
        mixing=Mixing(gates="token", weighed=True),
        low_offset=-2.0,
    ),
    "window_few": Variant(
        "every head a window and few summaries that start nearly unseen",
        replace(CUBES, summary_tokens=32),
        (HIGH,),
        low_offset=-4.0,
    ),
    "radial": Variant(
        "radial pattern", replace(PLAIN, mid_pattern="radial", radial_radius=2), (MID,)
    ),
    "axial": Variant(
        "axial pattern", replace(PLAIN, mid_pattern="axial", window=(4, 5, 7)), (MID,)
    ),
    "freq_full": Variant("FreqFormer 2/2/2, full features"),
    "freq_values": Variant(
        "FreqFormer 2/2/2, values without the low band",
        replace(CUBES, band_features="high_pass_values"),
    ),
    "freq_gains": Variant(
        "FreqFormer 2/2/2, learned gains", replace(CUBES, band_features="band_gains")
    ),
    "freq_strict": Variant(
        "FreqFormer 2/2/2, only the own band", replace(CUBES, band_features="own_band")
    ),
    "freq_105_quiet": Variant(
        "FreqFormer 1/0/5, low summaries start nearly unseen", CUBES, ((1, 0, 5),), low_offset=-4.0
    ),
    "prior": Variant(
        "2/2/2 moved by the paper's prior alone, as before any training",
        splits=((0, 2, 4), *[(2, 2, 2)] * 4, (4, 2, 0)),
    ),
    "schedule": Variant(
        "1/1/4 at low noise, 2/2/2, 4/1/1 at high noise",
        replace(CUBES, mid_tiles=69),
        ((1, 1, 4), (2, 2, 2), (4, 1, 1)),
    ),
    "router": Variant("learned router that starts from 2/2/2", learned=True),
    "router_114_quiet": Variant(
        "learned router that starts from 1/1/4, low summaries start nearly unseen",
        replace(CUBES, mid_tiles=31),
        ((1, 1, 4),),
        learned=True,
        low_offset=-4.0,
    ),
    "router_window": Variant(
        "learned router that starts from the window",
        replace(PLAIN, mid_tiles=36),
        (HIGH,),
        learned=True,
    ),
    "beside_routed": Variant(
        "as gated_plain, gates by a routing network",
        PLAIN,
        (HIGH,),
        mixing=replace(BESIDE, gates="routed"),
    ),
    "beside_both": Variant(
        "as gated_plain, gates by the token and by a routing network: soft routing, the default",
        PLAIN,
        (HIGH,),
        mixing=replace(BESIDE, gates="both"),
    ),
    "beside_timed": Variant(
        "as beside_both, the routing network sees no statistics: routing by the timestep alone",
        PLAIN,
        (HIGH,),
        mixing=replace(BESIDE, gates="both", statistics=False),
    ),
    "gated_fine": Variant(
        "as gated_plain, 16 tokens a low token",
        replace(PLAIN, compression=32),
        (HIGH,),
        mixing=BESIDE,
    ),
    "router_beside": Variant(
        "as gated_plain, own bands by a router that starts from the window",
        replace(PLAIN, mid_tiles=36),
        (HIGH,),
        mixing=BESIDE,
        learned=True,
    ),
    "gated_mixed": Variant(
        "every head a gated sum of LOW and of its own band: five smaller windows, one that reaches "
        "far",
        replace(PLAIN, mid_tiles=80, window=(3, 3, 3)),
        ((0, 1, 5),),
        mixing=BESIDE,
    ),
    "router_mixed": Variant(
        "as gated_mixed, own bands by a router: far at high noise, near at low noise",
        replace(PLAIN, mid_tiles=80, window=(3, 3, 3)),
        ((0, 1, 5),),
        mixing=BESIDE,
        learned=True,
    ),
}


def chosen(name: str) -> Variant:
    """The variant of that name; ValueError for another."""
    if name not in VARIANTS:
        raise ValueError(f"variant is {name!r}; choose among {', '.join(VARIANTS)}")
    return VARIANTS[name]


def bands(split: Split) -> list[int]:
    """The band of every head, LOW first."""
    return [band.value for band, heads in zip(Band, split, strict=False) for _ in range(heads)]


def head_costs(variant: Variant, size: Size = STUDY) -> tuple[float, float, float, float]:
    """Useful attention FLOPs of one head and clip as LOW, MID, HIGH and DENSE, by the plan."""
    plan = build_plan(
        size.grid,
        variant.config,
        num_heads=size.heads,
        head_dim=size.head_dim,
        learned_summaries=True,
    )
    low, mid, high, dense = plan.band_costs()
    beside = low if variant.mixing is not None and variant.mixing.low_branch else 0.0
    return (low, beside + mid, beside + high, dense)


def density(variant: Variant, size: Size = STUDY) -> float:
    """Attention FLOPs relative to dense, expected over the timesteps of training; of a router,
    where it starts."""
    if variant.dense:
        return 1.0
    costs = head_costs(variant, size)
    means = [
        sum(heads * cost for heads, cost in zip(split, costs, strict=False))
        for split in variant.splits
    ]
    chances = bucket_chances(len(variant.splits))
    return sum(chance * mean for chance, mean in zip(chances, means, strict=True)) / (
        size.heads * costs[Band.DENSE]
    )


def bucket_chances(buckets: int) -> list[float]:
    """How often training's timesteps, whose logit is standard normal, fall in each of equal parts
    of [0, 1]."""
    ends = torch.special.ndtr(
        torch.special.logit(torch.linspace(0, 1, buckets + 1, dtype=torch.float64))
    )
    return ends.diff().tolist()


def build(variant: Variant, size: Size, seed: int) -> FreqFormerTransformer3DModel:
    """The model of a variant; what variants have in common starts alike at equal seeds."""
    torch.manual_seed(derive_seed(seed, "weights"))
    # Their bands are what variants don't have in common.
    common = _model(VARIANTS["dense"], size).state_dict()
    common = {name: x for name, x in common.items() if not name.endswith("allocation")}
    torch.manual_seed(derive_seed(seed, "own weights"))
    model = _model(variant, size)
    if variant.mixing is not None:
        for block in model.transformer_blocks:
            width, split = size.heads * size.head_dim, bands(variant.splits[0])
            block.attn1 = MixedAttention(
                width, variant.config, split, variant.mixing, routed=variant.learned
            )
    for layer in model.attentions:
        if getattr(layer, "summary_offsets", None) is not None:
            layer.summary_offsets.data[:, 0] = variant.low_offset  # type: ignore[index]
    unknown = model.load_state_dict(common, strict=False).unexpected_keys
    assert not unknown
    if len(variant.splits) > 1:
        model.set_routing_table(_table(variant, size))
    return model


def _model(variant: Variant, size: Size) -> FreqFormerTransformer3DModel:
    return FreqFormerTransformer3DModel(
        patch_size=size.patch,
        num_layers=size.layers,
        num_attention_heads=size.heads,
        attention_head_dim=size.head_dim,
        frequency=_record(variant),
        absolute_positions=True,
    )


def _record(variant: Variant) -> FreqFormerConfig:
    """What the layers of a variant do, but for what a head does beside its own band."""
    if variant.dense:
        dense = {"allocation": "dense", "routing": "fixed", "low_branch": False}
        return replace(variant.config, **dense)  # type: ignore[arg-type]
    return replace(
        variant.config,
        allocation=tuple(bands(variant.splits[0])),
        routing="hard" if variant.learned else "fixed",
        low_branch=False,
        prior=variant.prior if variant.learned else "none",
    )


def _table(variant: Variant, size: Size) -> RoutingTable:
    split = torch.tensor([bands(split) for split in variant.splits])
    table = split[:, None].expand(-1, size.layers, -1).contiguous()
    return RoutingTable(
        table, torch.full_like(table, variant.config.mid_tiles or 0), variant.config
    )


def used_parameters(model: nn.Module) -> int:
    """Parameters that have a say in the loss: those whose last gradient is not zero throughout."""
    given = [parameter for parameter in model.parameters() if parameter.grad is not None]
    return sum(parameter.numel() for parameter in given if bool(parameter.grad.any()))  # type: ignore[union-attr]


def allocation_density(allocation: Tensor, variant: Variant, size: Size) -> float:
    """Attention FLOPs of observed bands, int (..., heads), relative to dense."""
    costs = torch.tensor(head_costs(variant, size), dtype=torch.float64)
    return float(costs[allocation.cpu()].mean() / costs[Band.DENSE])
