"""What a FreqFormer attention layer does, as one frozen record."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from enum import IntEnum
from typing import Any, Literal, get_args

from freqformer._validate import check_choice, check_number, check_whole
from freqformer.grid import TILE_SLOTS
from freqformer.tracing import PlainFields

BandFeatures = Literal["full", "values", "gains", "strict"]
MidPattern = Literal["topk", "axial", "radial"]
LowOutput = Literal["interpolate", "synthesis"]


class Band(IntEnum):
    """The operator that a head uses: its frequency band, or exact dense attention."""

    LOW = 0
    MID = 1
    HIGH = 2
    DENSE = 3


@dataclass(frozen=True)
class FreqFormerConfig(PlainFields):
    """How tokens are split into bands and what each band's heads see.

    Args:
        tile: (frames, rows, columns) of a tile, at most 128 tokens; None lets the grid choose. Pin
            it to use one model at several sizes.
        compression: tokens per low-frequency token, from 1 to 128.
        mid_cutoff: normalised frequency radius at which the mid band ends, in (0, 1].
        band_features: what queries, keys and values of MID and HIGH heads are made of. `full`: all
            bands; `values`: values without the low band; `gains`: a learned gain per head and band;
            `strict`: only the head's own band.
        mid_pattern: which tiles a MID head sees: `topk` best by tile means, `axial` or `radial`.
        mid_tiles: tiles per query tile for `topk`; None keeps every tile, whatever the pattern.
        radial_radius: reach of the radial pattern at time distance 0, in tiles.
        window: tiles that a HIGH head sees along (time, height, width).
        summary_tokens: most summary tokens per band; 0 for none.
        low_output: how outputs of LOW heads return to all tokens: linear interpolation across
            tiles, or the block synthesis that inverts compression.
        deterministic: same bits at every run, which all code of this version gives. False allows
            code that doesn't, and there is none, so it changes nothing. Tables and models that
            differ in it alone go together.

    Raises:
        ValueError: for a value out of range, NaN included.
    """

    tile: tuple[int, int, int] | None = None
    compression: float = 32
    mid_cutoff: float = 0.5
    band_features: BandFeatures = "full"
    mid_pattern: MidPattern = "topk"
    mid_tiles: int | None = 16
    radial_radius: int = 4
    window: tuple[int, int, int] = (3, 3, 3)
    summary_tokens: int = 256
    low_output: LowOutput = "interpolate"
    deterministic: bool = True

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
        ):
            check_choice(name, getattr(self, name), get_args(allowed))
        if not isinstance(self.deterministic, bool):
            raise ValueError(f"deterministic is {self.deterministic!r}; True or False is allowed")

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-able values; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> FreqFormerConfig:
        """The config with these fields; ValueError for unknown names and for anything but a
        dict."""
        known = sorted(field.name for field in fields(cls))
        if not isinstance(values, dict):
            raise ValueError(f"config is {values!r}; a dict with fields of {known} is allowed")
        unknown = [name for name in values if name not in known]
        if unknown:
            raise ValueError(
                f"config has unknown fields {unknown}; allowed are {known}: remove or rename them"
            )
        return cls(**values)


def _triple(name: str, value: Any) -> tuple[int, int, int]:
    if not isinstance(value, tuple | list) or len(value) != 3:
        raise ValueError(
            f"{name} is {value!r}; three whole numbers (time, height, width) are allowed, like (3, "
            "3, 3)"
        )
    for side in value:
        check_whole(name, side, 1)
    return (value[0], value[1], value[2])
