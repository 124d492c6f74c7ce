"""Shapes of video diffusion transformers, as data: what decides their cost."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from freqformer.grid import Grid
from freqformer.simulate.model.profiles import (
    ProfileError,
    check_number,
    check_whole,
    read_profile,
    record,
    shown,
)

TextStyle = Literal["none", "cross", "joint-separate", "joint-shared"]
"""How text enters a block: not at all; by cross-attention; as tokens of the self-attention with
their own weights, or with the video's weights."""

MAX_TOKENS = 1 << 24
"""Longest video that is simulated, in tokens."""
MOST_HEADS = 4096
"""Heads of a layer: the bands of all of them are a list."""


@dataclass(frozen=True)
class BlockGroup:
    """`count` equal transformer blocks."""

    count: int
    ffn: int
    """Hidden width of the feed-forward network."""
    text: TextStyle

    def __post_init__(self) -> None:
        check_whole("count", self.count, 1, 10_000)
        check_whole("ffn", self.ffn, 1, 1 << 20)
        if self.text not in get_args(TextStyle):
            raise ProfileError(
                f"text is {shown(self.text)}; choose one of {', '.join(get_args(TextStyle))}"
            )


@dataclass(frozen=True)
class ModelShape:
    """One model.

    Raises:
        ProfileError: for a value out of range.
    """

    name: str
    title: str
    heads: int
    head_dim: int
    blocks: tuple[BlockGroup, ...]
    text_tokens: int
    parameters: int
    """Weights of the transformer; 0 counts those of its blocks' matrices."""
    patch: tuple[int, int, int]
    """Latent frames, rows and columns of a token."""
    vae: tuple[float, int, int]
    """Video frames, rows and columns of a latent; the first frame is a latent of its own. A VAE
    that codes chunks may have a fraction of frames, on average."""
    fps: float
    resolutions: dict[str, tuple[int, int]]
    """Name to (rows, columns) of pixels."""
    resolution: str
    steps: int
    """Denoising steps of a generation."""
    guidance_passes: int
    """Model calls per step: 2 with classifier-free guidance."""
    shift: float
    """Timestep shift: sigma = shift s / (1 + (shift - 1) s)."""
    sources: dict[str, str]
    channels: int | None = None
    """Of the residual stream, where they aren't heads times head_dim."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", tuple(self.blocks))
        for name in ("patch", "vae"):
            value = getattr(self, name)
            if not isinstance(value, tuple | list) or len(value) != 3:
                raise ProfileError(
                    f"{name} is {shown(value)}; three numbers (time, height, width) are allowed"
                )
            time, *sides = value
            check = check_number if name == "vae" else check_whole
            check(f"{name} in time", time, 1, 1024)
            for side in sides:
                check_whole(name, side, 1, 1024)
            object.__setattr__(self, name, tuple(value))
        if self.channels is not None:
            check_whole("channels", self.channels, 1, 1 << 20)
        object.__setattr__(self, "resolutions", _checked_resolutions(self.resolutions))
        check_whole("heads", self.heads, 1, MOST_HEADS)
        check_whole("head_dim", self.head_dim, 1, 4096)
        check_whole("text_tokens", self.text_tokens, 0, 1 << 20)
        check_whole("parameters", self.parameters, 0, 10**14)
        check_whole("steps", self.steps, 1, 10_000)
        check_whole("guidance_passes", self.guidance_passes, 1, 16)
        check_number("fps", self.fps, 1e-3, 1e4)
        check_number("shift", self.shift, 1e-3, 1e3)
        if not self.blocks:
            raise ProfileError("blocks is empty; at least one group of blocks is allowed")
        self.size(self.resolution)

    @property
    def width(self) -> int:
        """Channels of a token's queries, keys or values: heads times head_dim."""
        return self.heads * self.head_dim

    @property
    def residual_width(self) -> int:
        """Channels of a token between layers."""
        return self.width if self.channels is None else self.channels

    @property
    def num_layers(self) -> int:
        """Transformer blocks."""
        return sum(group.count for group in self.blocks)

    @property
    def joint_text_tokens(self) -> int:
        """Text tokens inside the self-attention."""
        return (
            self.text_tokens if any(group.text.startswith("joint") for group in self.blocks) else 0
        )

    @property
    def weights(self) -> int:
        """Weights of the transformer."""
        return self.parameters or sum(
            group.count * self.block_weights(group) for group in self.blocks
        )

    def block_weights(self, group: BlockGroup) -> int:
        """Matrix weights of one block: four projections, the feed-forward network, and those that
        text adds."""
        own, shared = self.token_weights(group)
        # Text has keys and values of its own in cross-attention.
        return own + {"cross": 2 * shared, "joint-separate": own}.get(group.text, 0)

    def token_weights(self, group: BlockGroup) -> tuple[int, int]:
        """Matrix weights of one block that every token meets, and those of cross-attention that
        video tokens and text tokens meet each."""
        projection = self.residual_width * self.width
        own = 4 * projection + 2 * self.residual_width * group.ffn
        return own, 2 * projection if group.text == "cross" else 0

    def size(self, resolution: str) -> tuple[int, int]:
        """Pixels (rows, columns) of a named resolution.

        Raises:
            ProfileError: for an unknown name, or one that does not divide into latents and patches.
        """
        if not isinstance(resolution, str) or resolution not in self.resolutions:
            raise ProfileError(
                f"resolution is {shown(resolution)}; {self.name} has "
                f"{', '.join(self.resolutions)}: choose one"
            )
        rows, columns = self.resolutions[resolution]
        for name, extent, side in (("rows", rows, 1), ("columns", columns, 2)):
            step = self.vae[side] * self.patch[side]
            check_whole(f"{name} of {resolution}", extent, 1, 1 << 16)
            if extent % step:
                raise ProfileError(
                    f"{name} of {resolution} is {extent}; multiples of {step} are allowed (latent "
                    "times patch)"
                )
        return rows, columns

    def grid(self, token_frames: int, resolution: str) -> Grid:
        """The token grid of `token_frames` token rows in time."""
        rows, columns = self.size(resolution)
        return Grid(
            token_frames,
            rows // (self.vae[1] * self.patch[1]),
            columns // (self.vae[2] * self.patch[2]),
        )

    def grid_for_tokens(self, tokens: int, resolution: str) -> Grid:
        """The grid whose token count is nearest to `tokens`, by a whole number of token frames.

        Raises:
            ProfileError: for a count below 1 or above 2^24.
        """
        check_whole("tokens", tokens, 1, MAX_TOKENS)
        frame = self.grid(1, resolution).num_tokens
        return self.grid(max(1, round(tokens / frame)), resolution)

    def grid_for_seconds(self, seconds: float, resolution: str, fps: float | None = None) -> Grid:
        """The grid of a video of `seconds` at `fps` frames per second (None: the model's own), in
        whole tokens.

        Raises:
            ProfileError: for a duration that is not positive, or more than 2^24 tokens.
        """
        check_number("seconds", seconds, 1e-3, 1e6)
        rate = self.fps if fps is None else fps
        check_number("fps", rate, 1e-3, 1e4)
        frames = max(1, round(seconds * rate))
        latents = 1 + math.ceil((frames - 1) / self.vae[0])
        grid = self.grid(math.ceil(latents / self.patch[0]), resolution)
        check_whole("tokens of this video", grid.num_tokens, 1, MAX_TOKENS)
        return grid

    def seconds(self, grid: Grid, fps: float | None = None) -> float:
        """Seconds of video in a grid; a single frame lasts 1 / fps."""
        latents = grid.num_frames * self.patch[0]
        return (1 + (latents - 1) * self.vae[0]) / (self.fps if fps is None else fps)

    def with_head_dim(self, head_dim: int) -> ModelShape:
        """The same width cut into heads of another size.

        Raises:
            ProfileError: where it does not divide the width.
        """
        check_whole("head_dim", head_dim, 1, 4096)
        if self.width % head_dim:
            raise ProfileError(
                f"head_dim is {head_dim}; divisors of the width {self.width} are allowed"
            )
        return replace(self, heads=self.width // head_dim, head_dim=head_dim)


def _checked_resolutions(value: Any) -> dict[str, tuple[int, int]]:
    """Resolutions as tuples; ProfileError unless it is an object of pairs of whole numbers."""
    sizes = list(value.values()) if isinstance(value, dict) else [None]
    pairs = all(isinstance(size, list | tuple) and len(size) == 2 for size in sizes)
    if not sizes or not pairs:
        raise ProfileError(
            f"resolutions is {shown(value)}; an object of names, each with rows and columns of "
            "pixels, is allowed"
        )
    for name, size in value.items():
        for side in size:
            check_whole(f"resolutions, {name}", side, 1, 1 << 16)
    return {name: (size[0], size[1]) for name, size in value.items()}


def load_model(name: str | Path) -> ModelShape:
    """The model shape of this name, or of a JSON file.

    Raises:
        ProfileError: for an unknown name, a missing field or a value out of range.
    """
    short, values = read_profile("models", name)
    groups = values.get("blocks")
    if isinstance(groups, list) and all(isinstance(group, dict) for group in groups):
        values["blocks"] = tuple(record(BlockGroup, group, f"{short}, blocks") for group in groups)
    elif "blocks" in values:
        raise ProfileError(
            f"profile {short}: blocks is {shown(groups)}; a list of objects is allowed"
        )
    return record(ModelShape, values, short, name=short)
