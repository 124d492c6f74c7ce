"""What a head may become instead of dense."""

from __future__ import annotations

from dataclasses import dataclass, replace

from freqformer.config import Band, FreqFormerConfig
from freqformer.grid import Extents, Grid, tile_layout
from freqformer.plan import build_plan


@dataclass(frozen=True)
class Candidates:
    """The operators whose errors are measured: LOW, MID with some tile counts and HIGH with some
    windows.

    Args:
        config: bands, patterns and summaries; its `mid_tiles` and `window` give way to those below.
        mid_tiles: tiles per query tile of MID, rising.
        windows: windows of HIGH.

    Raises:
        ValueError: for none, for counts that do not rise, for band features that have to be
            learned, or for choices that a fixed `mid_pattern` does not leave.
    """

    config: FreqFormerConfig
    mid_tiles: tuple[int, ...]
    windows: tuple[Extents, ...]

    def __post_init__(self) -> None:
        if self.config.band_features == "band_gains":
            raise ValueError(
                "config.band_features is 'band_gains', which are learned; 'full', "
                "'high_pass_values' or 'own_band' is allowed"
            )
        counts, windows = self.mid_tiles, self.windows
        none = len(counts) == 0 or len(windows) == 0
        if none or list(counts) != sorted(set(counts)) or len(set(windows)) < len(windows):
            raise ValueError(
                f"mid_tiles is {counts} and windows {windows}; one at least of each, rising and "
                "different, is allowed"
            )
        # The axial pattern reaches as far as the window, so a table with another window would
        # change MID too.
        if self.config.mid_pattern != "topk" and (
            len(counts) > 1 or windows != (self.config.window,)
        ):
            raise ValueError(
                f"mid_tiles is {counts} and windows {windows} for mid_pattern "
                f"{self.config.mid_pattern!r}, which has one "
                "list of tiles; take one count and the config's window, or mid_pattern 'topk'"
            )
        object.__setattr__(
            self,
            "config",
            replace(self.config.for_plan(), mid_tiles=self.mid_tiles[0], window=self.windows[0]),
        )
        _ = self.operators  # FreqFormerConfig refuses counts and windows that are out of range

    @classmethod
    def usual(cls, config: FreqFormerConfig) -> Candidates:
        """MID with 8, 16 and 32 tiles or its fixed pattern, HIGH with the config's window and one
        two tiles longer a side.

        Args:
            config: bands, patterns and summaries.
        """
        if config.mid_pattern != "topk":
            return cls(config, (config.mid_tiles or 1,), (config.window,))
        time, height, width = config.window
        return cls(config, (8, 16, 32), (config.window, (time + 2, height + 2, width + 2)))

    @property
    def operators(self) -> tuple[tuple[Band, FreqFormerConfig], ...]:
        """Band and config of every candidate: LOW, then MID by `mid_tiles`, then HIGH by
        `windows`."""
        return (
            (Band.LOW, self.config),
            *((Band.MID, replace(self.config, mid_tiles=count)) for count in self.mid_tiles),
            *((Band.HIGH, replace(self.config, window=window)) for window in self.windows),
        )

    @property
    def names(self) -> tuple[str, ...]:
        """A short name of every candidate, like `low`, `mid-8` and `high-3x3x3`."""
        middle = (f"mid-{count}" for count in self.mid_tiles)
        return ("low", *middle, *("high-" + "x".join(map(str, window)) for window in self.windows))

    def columns(self, mid: int, window: int) -> tuple[int, int, int]:
        """The places among `operators` of LOW, of one of the MID counts, and of one of the
        windows."""
        return (0, 1 + mid, 1 + len(self.mid_tiles) + window)

    def pinned(self, grid: Grid) -> Candidates:
        """The same with the tile pinned as this grid has it."""
        return replace(
            self, config=replace(self.config, tile=tile_layout(grid, self.config.tile).tile)
        )

    def costs(
        self, grid: Grid, *, num_heads: int, head_dim: int, num_text_tokens: int = 0
    ) -> list[float]:
        """Useful attention FLOPs of one head as every candidate, and as DENSE at the end."""
        costs = []
        for band, config in (*self.operators, (Band.DENSE, self.config)):
            plan = build_plan(
                grid,
                config,
                num_heads=num_heads,
                head_dim=head_dim,
                num_text_tokens=num_text_tokens,
            )
            costs.append(plan.band_flops(band).useful)
        return costs
