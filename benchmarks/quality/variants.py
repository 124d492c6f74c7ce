"""The attention variants of the study: one model size, one amount of attention FLOPs.

How a variant's FLOPs meet the target is data here: its window, its tiles kept, its summaries. Tiles
are cubes of 64 tokens rather than boxes of 128, since at this size a symmetric window of 3 x 3 x 3
boxes would be 21% of the video already.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmarks.quality.linear import Linear
from benchmarks.quality.names import OLD_NAMES
from benchmarks.quality.operators import Mixing
from benchmarks.quality.sizes import Size

from freqformer.config import Band, FreqFormerConfig
from freqformer.routing import Prior

TARGET_DENSITY = 36 / 256
"""Attention FLOPs of every variant relative to dense attention: 36 of 256 tiles."""
TOLERANCE = 0.1
"""How far a variant may be from the target, relatively."""
Split = tuple[int, int, int]
"""LOW, MID and HIGH heads of six."""
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
    linear: Linear | None = None
    """What linear attention sees beside a head's own band; None where there is none."""
    learned: bool = False
    """Whether a router chooses bands."""
    prior: Prior = "noise_level"
    """Of the router."""
    low_offset: float = 0.0
    """Offset of the low summaries at first. At 0 and with scores near 0 they take the weight of all
    that they stand for: beside a window of 27 of 256 tiles 89%. Lower, heads begin with what they
    see exactly."""
    cheaper: bool = False
    """Whether it is meant to take fewer FLOPs than the others."""
    expected: str = ""
    """What was predicted of it before it ran; empty where nothing was."""

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
    "window_and_summaries": Variant(
        "every head a smaller window and summaries", replace(CUBES, window=(3, 3, 3)), (HIGH,)
    ),
    "window_and_quiet_summaries": Variant(
        "every head a smaller window and summaries that start nearly unseen",
        replace(CUBES, window=(3, 3, 3)),
        (HIGH,),
        low_offset=-4.0,
    ),
    "best_tiles_and_summaries": Variant(
        "every head its best tiles and summaries", replace(CUBES, mid_tiles=28), (MID,)
    ),
    "video_sparse_attention": Variant(
        "like VSA: gated sum of attention between tile means and to the best tiles",
        replace(PLAIN, mid_tiles=36, compression=128, low_output="inverse_dct"),
        (MID,),
        mixing=BESIDE,
    ),
    "window_with_summaries_and_low": Variant(
        "every head a gated sum of LOW and of a window with summaries",
        replace(CUBES, window=(3, 3, 3)),
        (HIGH,),
        mixing=BESIDE,
    ),
    "window_and_low": Variant(
        "every head a gated sum of LOW and of a window without summaries",
        PLAIN,
        (HIGH,),
        mixing=BESIDE,
    ),
    "window_times_gate": Variant(
        "every head a window whose output is gated", PLAIN, (HIGH,), mixing=Mixing(gates="token")
    ),
    "window_and_weighed_summaries": Variant(
        "every head a window and few summaries, which a router weighs by noise level",
        replace(CUBES, summary_tokens=32),
        (HIGH,),
        mixing=Mixing(weighed=True),
        low_offset=-2.0,
    ),
    "weighed_summaries_times_gate": Variant(
        "as window_and_weighed_summaries, output gated",
        replace(CUBES, summary_tokens=32),
        (HIGH,),
        mixing=Mixing(gates="token", weighed=True),
        low_offset=-2.0,
    ),
    "window_and_few_summaries": Variant(
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
    "thirds": Variant("FreqFormer 2/2/2, full features"),
    "thirds_high_pass_values": Variant(
        "FreqFormer 2/2/2, values without the low band",
        replace(CUBES, band_features="high_pass_values"),
    ),
    "thirds_band_gains": Variant(
        "FreqFormer 2/2/2, learned gains", replace(CUBES, band_features="band_gains")
    ),
    "thirds_own_band": Variant(
        "FreqFormer 2/2/2, only the own band", replace(CUBES, band_features="own_band")
    ),
    "one_low_and_five_windows": Variant(
        "FreqFormer 1/0/5, low summaries start nearly unseen", CUBES, ((1, 0, 5),), low_offset=-4.0
    ),
    "thirds_moved_by_prior": Variant(
        "2/2/2 moved by the paper's prior alone, as before any training",
        splits=((0, 2, 4), *[(2, 2, 2)] * 4, (4, 2, 0)),
    ),
    "thirds_by_schedule": Variant(
        "1/1/4 at low noise, 2/2/2, 4/1/1 at high noise",
        replace(CUBES, mid_tiles=69),
        ((1, 1, 4), (2, 2, 2), (4, 1, 1)),
    ),
    "paper": Variant(
        "FreqFormerConfig.paper(): a router that chooses bands and starts from 2/2/2", learned=True
    ),
    "hard_routing_from_1_1_4": Variant(
        "learned router that starts from 1/1/4, low summaries start nearly unseen",
        replace(CUBES, mid_tiles=31),
        ((1, 1, 4),),
        learned=True,
        low_offset=-4.0,
    ),
    "hard_routing_from_window": Variant(
        "learned router that starts from the window",
        replace(PLAIN, mid_tiles=36),
        (HIGH,),
        learned=True,
    ),
    "soft_routing_alone": Variant(
        "as window_and_low, gates by a routing network alone",
        PLAIN,
        (HIGH,),
        mixing=replace(BESIDE, gates="routed"),
    ),
    "soft_routing": Variant(
        "as window_and_low, gates by the token and by a routing network: the default",
        PLAIN,
        (HIGH,),
        mixing=replace(BESIDE, gates="both"),
    ),
    "timestep_routing": Variant(
        "as soft_routing, the routing network sees the timestep alone",
        PLAIN,
        (HIGH,),
        mixing=replace(BESIDE, gates="both", statistics=False),
    ),
    "window_and_fine_low": Variant(
        "as window_and_low, 16 tokens a low token",
        replace(PLAIN, compression=32),
        (HIGH,),
        mixing=BESIDE,
    ),
    "hard_routing_and_low": Variant(
        "as window_and_low, own bands by a router that starts from the window",
        replace(PLAIN, mid_tiles=36),
        (HIGH,),
        mixing=BESIDE,
        learned=True,
    ),
    "mixed_windows_and_low": Variant(
        "every head a gated sum of LOW and of its own band: five smaller windows, one that reaches "
        "far",
        replace(PLAIN, mid_tiles=80, window=(3, 3, 3)),
        ((0, 1, 5),),
        mixing=BESIDE,
    ),
    "hard_routing_of_mixed_windows": Variant(
        "as mixed_windows_and_low, own bands by a router: far at high noise, near at low noise",
        replace(PLAIN, mid_tiles=80, window=(3, 3, 3)),
        ((0, 1, 5),),
        mixing=BESIDE,
        learned=True,
    ),
    "paper_band_gains": Variant(
        "as paper, with learned gains of the bands and low summaries that start nearly unseen",
        replace(CUBES, band_features="band_gains"),
        learned=True,
        low_offset=-4.0,
    ),
    "window_and_linear": Variant(
        "every head a gated sum of a window and of linear attention over the whole video",
        PLAIN,
        (HIGH,),
        linear="all",
    ),
    "best_tiles_and_linear": Variant(
        "every head its best tiles, and linear attention to the other tiles behind a projection",
        replace(PLAIN, mid_tiles=33),
        (MID,),
        linear="others",
    ),
    "soft_routing_by_log_snr": Variant(
        "as timestep_routing, with the logarithm of the signal-to-noise ratio as a second clock",
        PLAIN,
        (HIGH,),
        mixing=replace(BESIDE, gates="both", log_snr=True),
        expected="the loss of soft_routing within 0.0003, since statistics act as a clock",
    ),
    "soft_routing_band_gains": Variant(
        "as soft_routing, with learned gains of the bands of queries, keys and values",
        replace(PLAIN, band_features="band_gains"),
        (HIGH,),
        mixing=replace(BESIDE, gates="both"),
        expected="0.0005 less loss than soft_routing: gains took 2% off the loss of thirds",
    ),
    "soft_routing_few_tiles_in_noise": Variant(
        "as soft_routing, at most 12 tiles where the timestep is above two thirds",
        replace(PLAIN, mid_pattern="radial", radial_radius=1),
        (HIGH, HIGH, MID),
        mixing=replace(BESIDE, gates="both"),
        cheaper=True,
        expected="the loss of soft_routing within 0.0003 at a sixth fewer FLOPs: LOW leads there",
    ),
}


def chosen(name: str) -> Variant:
    """The variant of that name, or of one that results had before; ValueError for another."""
    known = OLD_NAMES.get(name, name) if name not in VARIANTS else name
    if known not in VARIANTS:
        raise ValueError(f"variant is {name!r}; choose among {', '.join(VARIANTS)}")
    return VARIANTS[known]


def bands(split: Split, heads: int = 6) -> list[int]:
    """The band of every head, LOW first.

    Args:
        split: heads of six in each band.
        heads: of the layer, a multiple of 6.
    """
    pairs = zip(Band, split, strict=False)
    return [band.value for band, share in pairs for _ in range(share * heads // 6)]


def config_at(variant: Variant, size: Size) -> FreqFormerConfig:
    """The variant's record with the tiles of a size; the same low tokens of every tile."""
    side = size.tile_side
    return replace(variant.config, tile=(side, side, side))
