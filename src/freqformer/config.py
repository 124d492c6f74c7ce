"""What a FreqFormer attention layer does, as one frozen record."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from enum import IntEnum
from functools import lru_cache
from operator import index
from typing import Any, Literal, get_args

from torch import Tensor

from freqformer._older import current_fields
from freqformer._validate import check_choice, check_number, check_whole
from freqformer.grid import TILE_SLOTS
from freqformer.tracing import PlainFields, constant_result

BandFeatures = Literal["full", "high_pass_values", "band_gains", "own_band"]
MidPattern = Literal["topk", "axial", "radial"]
LowOutput = Literal["interpolate", "inverse_dct"]
AllocationRule = Literal["high", "thirds", "dense"]
Routing = Literal["soft", "timestep", "hard", "fixed"]
Prior = Literal["none", "noise_level"]
WEIGHING: tuple[Routing, ...] = ("soft", "timestep")
"""Routing that weighs each head's band and LOW."""
LAYER_FIELDS = (
    "allocation",
    "routing",
    "low_branch",
    "prior",
    "deterministic",
    "learned_summaries",
)
"""Fields of the record that no plan depends on."""


class Band(IntEnum):
    """The operator that a head uses: its frequency band, or exact dense attention."""

    LOW = 0
    MID = 1
    HIGH = 2
    DENSE = 3


@dataclass(frozen=True)
class FreqFormerConfig(PlainFields):
    """How tokens are split into bands, what each band's heads see, and which head has which band.

    `FreqFormerConfig()` is the default of the layer, the model and the simulator;
    `FreqFormerConfig.paper()` is the method of arXiv 2604.22808.

    Args:
        tile: (frames, rows, columns) of a tile, at most 128 tokens; None lets the grid choose. Pin
            it to use one model at several sizes.
        compression: tokens per low-frequency token, from 1 to 128.
        mid_cutoff: normalised frequency radius at which the mid band ends, in (0, 1].
        band_features: what queries, keys and values of MID and HIGH heads are made of. `full`: all
            bands; `high_pass_values`: values without the low band; `band_gains`: a learned gain per
            head and band; `own_band`: only the head's own band.
        mid_pattern: which tiles a MID head sees: `topk` best by tile means, `axial` or `radial`.
        mid_tiles: tiles per query tile for `topk`; None keeps every tile, whatever the pattern.
        radial_radius: reach of the radial pattern at time distance 0, in tiles.
        window: tiles that a HIGH head sees along (time, height, width).
        summary_tokens: most summary tokens per band; 0 for none.
        low_output: how outputs of LOW heads return to all tokens: linear interpolation across
            tiles, or the inverse cosine transform of every block, which inverts compression.
        deterministic: same bits at every run. False lets a backend add gradients up by atomics,
            in whatever order they come, where it has such code. The Triton and PyTorch backends
            have none: both give the same bits at every run either way, and False makes neither
            faster. Tables and models that differ in it alone go together.
        allocation: the band of every head; with `routing="hard"` where the router starts. `high`
            and `thirds` (a third of the heads in each band) fit any number of heads, a tuple has a
            `Band` for each. `dense` makes layers exact attention, without router and LOW branch.
        routing: `soft` keeps the allocation, and by the layer's statistics and timestep weighs
            each head's band and the LOW branch: best in docs/quality.md. `timestep` does so by
            timestep alone, nearly free. `hard` chooses a band for each head instead. `fixed` does
            neither.
        low_branch: whether every head adds a LOW branch to its own, each weighted by a gate for
            every token and head, to which a router that weighs adds. At first the own branch alone
            counts, or nearly.
        prior: of a router that chooses: `noise_level` adds fixed logits by timestep, see
            `RoutingNetwork`; `none` adds nothing.
        learned_summaries: whether layers learn summaries of the mid and high band too, where there
            are summaries. False leaves those of the low band, which have nothing to learn.

    Raises:
        ValueError: for a value out of range, NaN included, and for values that can't act together.
    """

    tile: tuple[int, int, int] | None = None
    compression: float = 32
    mid_cutoff: float = 0.5
    band_features: BandFeatures = "full"
    mid_pattern: MidPattern = "topk"
    mid_tiles: int | None = 16
    radial_radius: int = 4
    window: tuple[int, int, int] = (3, 3, 3)
    summary_tokens: int = 0
    low_output: LowOutput = "interpolate"
    deterministic: bool = True
    allocation: AllocationRule | tuple[int, ...] = "high"
    routing: Routing = "soft"
    low_branch: bool = True
    prior: Prior = "none"
    learned_summaries: bool = True

    def __post_init__(self) -> None:
        # JSON gives lists; a frozen record that is hashed needs tuples.
        object.__setattr__(self, "window", _triple("window", self.window))
        if self.tile is not None:
            object.__setattr__(self, "tile", _triple("tile", self.tile))
            if math.prod(self.tile) > TILE_SLOTS:
                raise ValueError(
                    f"tile is {self.tile}; at most {TILE_SLOTS} tokens are allowed: choose a "
                    "smaller box"
                )
        check_number("compression", self.compression, 1, TILE_SLOTS)
        check_number("mid_cutoff", self.mid_cutoff, 1e-9, 1)
        check_whole("radial_radius", self.radial_radius, 0)
        check_whole("summary_tokens", self.summary_tokens, 0)
        if self.mid_tiles is not None:
            check_whole("mid_tiles", self.mid_tiles, 1)
        for name, allowed in (
            ("band_features", BandFeatures),
            ("mid_pattern", MidPattern),
            ("low_output", LowOutput),
            ("routing", Routing),
            ("prior", Prior),
        ):
            check_choice(name, getattr(self, name), get_args(allowed))
        for name in ("deterministic", "low_branch", "learned_summaries"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {getattr(self, name)!r}; True or False is allowed")
        object.__setattr__(self, "allocation", _allocation(self.allocation))
        self._check_together()

    def _check_together(self) -> None:
        """Raise ValueError for values of which one could not act beside the others."""
        if self.is_dense and (self.routing != "fixed" or self.low_branch):
            raise ValueError(
                f"allocation is 'dense', with routing {self.routing!r} and low_branch "
                f"{self.low_branch}; dense heads see everything and take routing 'fixed' and "
                "low_branch False: take FreqFormerConfig.dense()"
            )
        if self.prior != "none" and self.routing != "hard":
            raise ValueError(
                f"prior is {self.prior!r} with routing {self.routing!r}; only a router that "
                "chooses has a prior: take prior 'none', or routing 'hard'"
            )
        if self.weighs and not self.low_branch:
            raise ValueError(
                f"low_branch is False with routing {self.routing!r}, which weighs each head's band "
                "and LOW; True is allowed: take routing 'fixed' for heads without LOW"
            )
        bands = () if isinstance(self.allocation, str) else self.allocation
        if self.routing != "fixed" and Band.DENSE.value in bands:
            raise ValueError(
                f"allocation is {self.allocation} with routing {self.routing!r}; bands 0 to 2 are "
                "allowed (LOW, MID, HIGH): take routing 'fixed' for DENSE heads"
            )

    @classmethod
    def paper(cls) -> FreqFormerConfig:
        """The method of arXiv 2604.22808: a third of the heads in each band at first, a router
        that chooses with a prior by noise level, and 256 summaries a band."""
        return cls(
            allocation="thirds",
            routing="hard",
            prior="noise_level",
            summary_tokens=256,
            low_branch=False,
        )

    @classmethod
    def dense(cls) -> FreqFormerConfig:
        """Exact attention in every head."""
        return cls(allocation="dense", routing="fixed", low_branch=False)

    @property
    def is_dense(self) -> bool:
        """Whether layers are exact attention (`DenseAttention`), rather than heads of bands."""
        return self.allocation == "dense"

    @property
    def weighs(self) -> bool:
        """Whether a router weighs each head's band and LOW."""
        return self.routing in WEIGHING

    def bands(self, num_heads: int) -> tuple[int, ...]:
        """The `Band` of every head of a layer with so many.

        Args:
            num_heads: from 1 up.

        Raises:
            ValueError: where `allocation` is a tuple of another length.
        """
        check_whole("num_heads", num_heads, 1)
        if self.allocation == "thirds":
            return tuple(even_allocation(num_heads))
        if isinstance(self.allocation, str):
            band = Band.DENSE if self.is_dense else Band.HIGH
            return (band.value,) * num_heads
        return tuple(checked_bands(self.allocation, num_heads))

    @constant_result
    def for_plan(self) -> FreqFormerConfig:
        """The record with `LAYER_FIELDS` at their defaults, on which no plan depends. Records that
        share a plan are equal in it."""
        return _for_plan(self)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-able values; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> FreqFormerConfig:
        """The record with these fields, the others at their defaults.

        `preset` may name `paper` or `dense`, whose values the others then have; `to_dict` names
        every field instead.

        Words of older versions are taken, with a FutureWarning that names today's.

        Raises:
            ValueError: for unknown names, and for anything but a dict.
        """
        known = sorted(field.name for field in fields(cls))
        if not isinstance(values, dict):
            raise ValueError(f"config is {values!r}; a dict with fields of {known} is allowed")
        unknown = [name for name in values if name not in (*known, "preset")]
        if unknown:
            raise ValueError(
                f"config has unknown fields {unknown}; allowed are {known}: remove or rename them"
            )
        made = current_fields(values)
        preset = made.pop("preset", "default")
        check_choice("preset", preset, ("default", "paper", "dense"))
        if preset == "default":
            return cls(**made)
        return replace(cls.paper() if preset == "paper" else cls.dense(), **made)


@lru_cache(maxsize=256)
def _for_plan(config: FreqFormerConfig) -> FreqFormerConfig:
    """Cached, since every call asks, and a new record is checked field by field."""
    defaults = {field.name: field.default for field in fields(config)}
    return replace(config, **{name: defaults[name] for name in LAYER_FIELDS})


def even_allocation(num_heads: int) -> list[int]:
    """A third of the heads in each band, LOW first; what is left over goes to HIGH, then to LOW."""
    high = -(-num_heads // 3)
    low = -(-(num_heads - high) // 2)
    return (
        [Band.LOW.value] * low
        + [Band.MID.value] * (num_heads - high - low)
        + [Band.HIGH.value] * high
    )


def checked_bands(allocation: Sequence[int], num_heads: int | None = None) -> list[int]:
    """The band of every head as plain numbers.

    Args:
        allocation: a list, a tuple or a tensor.
        num_heads: how many there must be; None takes any number from 1 up.

    Raises:
        ValueError: for other than so many whole numbers from 0 to 3.
    """
    try:
        given = allocation.tolist() if isinstance(allocation, Tensor) else list(allocation)
        bands = None if any(isinstance(one, bool) for one in given) else list(map(index, given))
    except TypeError:  # nothing to go through, or numbers that aren't whole
        bands = None
    fits = bands and num_heads in (None, len(bands))
    if not bands or not fits or not all(0 <= band <= Band.DENSE for band in bands):
        shown = allocation if bands is None else bands
        wanted = "bands" if num_heads is None else f"{num_heads} bands"
        raise ValueError(
            f"allocation is {shown}; {wanted} from 0 to 3 are allowed (LOW, MID, HIGH, DENSE), one "
            "per head"
        )
    return bands


def _allocation(value: Any) -> AllocationRule | tuple[int, ...]:
    if isinstance(value, str):
        rules = get_args(AllocationRule)
        check_choice("allocation", value, rules, "or a tuple with the Band of every head")
        return value  # type: ignore[return-value]
    return tuple(checked_bands(value))


PLAN_FIELDS = tuple(
    field.name for field in fields(FreqFormerConfig) if field.name not in LAYER_FIELDS
)
"""Fields of the record that a plan depends on."""


def _triple(name: str, value: Any) -> tuple[int, int, int]:
    if not isinstance(value, tuple | list) or len(value) != 3:
        raise ValueError(
            f"{name} is {value!r}; three whole numbers (time, height, width) are allowed, like (3, "
            "3, 3)"
        )
    for side in value:
        check_whole(name, side, 1)
    return (value[0], value[1], value[2])
