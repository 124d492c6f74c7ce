"""What the processors of all families share: what they know of the call, and attention by bands.

Shape legend: B batch, N tokens, C channels, H heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from freqformer.config import FreqFormerConfig
from freqformer.grid import Grid
from freqformer.integrations.diffusers.converted.learned import LearnedLayer
from freqformer.integrations.diffusers.layer_bands import LayerBands
from freqformer.integrations.diffusers.steps import Schedule, plain_schedule
from freqformer.integrations.diffusers.ulysses import attend_shared, ulysses_of
from freqformer.ops.backends import ImplChoice
from freqformer.ops.parameters import AttentionParameters, BranchGates, KnownBands


@dataclass(frozen=True)
class VideoTokens:
    """Where the video's tokens lie among those that a layer attends to, in raster order of their
    grid."""

    grid: Grid
    before: int = 0
    """Exact tokens before the video, which see all and are seen by all: text, audio, keyframes."""
    behind: int = 0
    """Exact tokens behind it."""


@dataclass(frozen=True)
class Call:
    """One forward pass of the transformer, as its layers need to know it."""

    video: VideoTokens
    noise_level: Tensor
    """(B,) on the host, in [0, 1], 1 is the most noise."""
    dense: tuple[bool, ...]
    """Whether each sample runs the model's own attention in every layer: steps before
    `start_percent` and after `end_percent`, and videos below `min_tokens`."""


OUTSIDE = (
    "a layer with frequency attention ran outside a forward pass of its transformer, where its "
    "timestep and token grid are unknown; call the transformer, and recompute activations with "
    "its enable_gradient_checkpointing() alone"
)


class CurrentCall:
    """The forward pass in progress of a transformer."""

    def __init__(self) -> None:
        self.call: Call | None = None
        self.device = torch.device("cpu")
        """Of the call's tensors."""
        self.banded: tuple[Grid, int] | None = None
        """Grid and exact tokens beside it of the last banded call."""
        self.levels: set[float] = set()
        """Noise levels that were not left dense by steps or length."""


@dataclass(frozen=True)
class Share:
    """Samples of one call that run together, since their heads do the same."""

    video: VideoTokens
    rows: tuple[int, ...]
    """Which samples; all of the call's where there is one share."""
    config: FreqFormerConfig | None
    """None is the model's own attention."""
    bands: KnownBands | None
    """Of every head and sample; None where there is no config."""
    noise_level: Tensor | None = None
    """(B,) float32 on the layer's device; None where the layer has learned nothing."""


class FrequencyProcessor:
    """The processor of one self-attention layer; a family's own says how it projects.

    Args:
        current: the transformer's call in progress.
        bands: what the layer's heads do.
        own: the processor that it replaces, for what is dense.
        impl: as in `enable_frequency_attention`.
        learned: what the layer has learned by conversion, for what is banded; None for nothing.
    """

    def __init__(
        self,
        current: CurrentCall,
        bands: LayerBands,
        own: Any,
        *,
        impl: ImplChoice,
        learned: LearnedLayer | None = None,
    ) -> None:
        self.current = current
        self.bands = bands
        self.own = own
        self.learned = learned
        self.impl: ImplChoice = impl
        self.shares: tuple[Share, ...] = ()
        """Of the call in progress; none outside of one."""

    def prepare(self, call: Call | None, device: torch.device) -> bool:
        """Decide what every sample of a call does, before the transformer runs: so nothing of it is
        in a compiled graph.

        Args:
            call: the one that begins; None ends it.
            device: that the layer will run on, as far as that is known.

        Returns: whether some sample is banded.
        """
        if call is None:
            self.shares = ()
            return False
        video = call.video
        every = tuple(range(len(call.dense)))
        if all(call.dense):
            self.shares = (Share(video, every, None, None),)
            return False
        chosen = self.bands.configs(video.grid, call.noise_level, video.before + video.behind)
        rows_of: dict[FreqFormerConfig | None, list[int]] = {}
        for row in every:
            rows_of.setdefault(None if call.dense[row] else chosen[row], []).append(row)
        if self.learned is not None:
            self.learned.to(device)
        self.shares = tuple(
            self._share(video, rows, config, call.noise_level[rows], device)
            for config, rows in rows_of.items()
        )
        return any(share.config is not None for share in self.shares)

    def _share(
        self,
        video: VideoTokens,
        rows: list[int],
        config: FreqFormerConfig | None,
        level: Tensor,
        device: torch.device,
    ) -> Share:
        """The share of these samples, whose noise levels are on the host."""
        if config is None:
            return Share(video, tuple(rows), None, None)
        bands = self.bands.bands(level, device)
        seen = None if self.learned is None else level.to(device, torch.float32)
        return Share(video, tuple(rows), config, bands, seen)

    # diffusers sets these two on processors that have them. They belong to the layer's own, which
    # keeps them when this one is gone.
    @property
    def _attention_backend(self) -> Any:
        return self.own._attention_backend

    @_attention_backend.setter
    def _attention_backend(self, backend: Any) -> None:
        self.own._attention_backend = backend

    @property
    def _parallel_config(self) -> Any:
        return self.own._parallel_config

    @_parallel_config.setter
    def _parallel_config(self, config: Any) -> None:
        self.own._parallel_config = config

    def run(self, attn: Any, given: tuple[Any, ...]) -> Any:
        """What the layer's own processor makes of its arguments behind `attn`, in order.

        Those of `given` that hold samples are split by what the samples' heads do.

        Raises:
            ValueError: where the transformer isn't running.
        """
        if not self.shares:
            raise ValueError(OUTSIDE)
        if len(self.shares) == 1:
            return self._run(attn, self.shares[0], given)
        samples = sum(len(share.rows) for share in self.shares)
        outputs = [
            self._run(attn, share, _take(given, list(share.rows), samples)) for share in self.shares
        ]
        order = torch.tensor([row for share in self.shares for row in share.rows]).argsort()
        return _joined(outputs, order.to(given[0].device))

    def _run(self, attn: Any, share: Share, given: tuple[Any, ...]) -> Any:
        if share.config is None:
            return self.own(attn, *given)
        layer = attn if self.learned is None else self.learned.view(attn)
        return self.banded(layer, share, *given)

    def banded(self, attn: Any, share: Share, *given: Any, **named: Any) -> Any:
        """As the layer's own processor with these arguments, every head's attention by its band."""
        raise NotImplementedError

    def attend(
        self,
        share: Share,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        parameters: AttentionParameters,
        *,
        hidden_states: Tensor,
        text_mask: Tensor | None = None,
    ) -> Tensor:
        """(B, N, H, D) -> (B, N, C): video tokens in raster order with the exact tokens of
        `share.video` around them, or this rank's share of all of them.

        `parameters` say how queries and keys are normalised and turned. Tables of a rotary
        embedding are of all tokens in this order, or of the video's where these come first.
        `hidden_states` (B, N, C) are what the layer was given: the video and what comes before it.
        """
        assert share.config is not None
        assert share.bands is not None
        if share.config.band_features == "own_band":
            raise ValueError(
                "the table's config.band_features is 'own_band', which only a trained layer knows; "
                "'full' and 'high_pass_values' are allowed: calibrate with one of these"
            )
        bands = share.bands
        if bands.bands.device != query.device:
            bands = KnownBands(bands.bands.to(query.device), bands.present)
        context = ulysses_of(getattr(self, "_parallel_config", None))
        if context is not None and self.learned is not None:
            raise ValueError(
                "the transformer has a parallel configuration, and an adapter's gates know whole "
                "videos alone; None is allowed with an adapter: run it on one GPU"
            )
        out = attend_shared(
            (query, key, value),
            context,
            before=share.video.before,
            grid=share.video.grid,
            allocation=bands,
            config=share.config,
            num_text_tokens=share.video.before + share.video.behind,
            text_mask=text_mask,
            parameters=parameters,
            low_branch=self._low_branch(share, hidden_states),
            impl=self.impl,
        )
        return out.flatten(2)

    def _low_branch(self, share: Share, hidden_states: Tensor) -> BranchGates | None:
        """The gates of a converted layer; None where nothing was learned."""
        if self.learned is None:
            return None
        assert share.noise_level is not None
        first = share.video.before
        video = hidden_states[:, first : first + share.video.grid.num_tokens]
        return self.learned.branch(video, share.noise_level)

    def refuse(self, attention_mask: Tensor | None = None, *, fused: bool = False) -> None:
        """Raise ValueError for what no band can do."""
        for what, given, remedy in (
            ("attention_mask", attention_mask is not None, "pass none to the transformer"),
            ("fused projections", fused, "call unfuse_qkv_projections()"),
        ):
            if given:
                raise ValueError(
                    f"frequency attention was given {what}, and none is allowed: {remedy}"
                )


class UsualProcessor(FrequencyProcessor):
    """A processor with the arguments that most models' have."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Any:
        """What the layer's own processor takes and gives: tokens (B, N, C) in raster order.

        What is dense runs the model's own attention; samples of one config run together.
        """
        given = (hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        return self.run(attn, given)


def _take(given: Any, rows: list[int], samples: int) -> Any:
    """These samples of what a processor is given; what all samples share stays whole."""
    if isinstance(given, tuple):
        return tuple(_take(part, rows, samples) for part in given)
    # Rotary tables (N, D) have no batch, and those of one sample serve all; masks (B, N) have one.
    by_sample = isinstance(given, Tensor) and given.ndim >= (2 if given.dtype == torch.bool else 3)
    if not by_sample or len(given) != samples:
        return given
    return given[rows]


def _joined(outputs: list[Any], order: Tensor) -> Any:
    """Outputs of shares of a batch, tensors or tuples of them, with the samples in `order`."""
    if isinstance(outputs[0], tuple):
        return tuple(_joined(list(parts), order) for parts in zip(*outputs, strict=True))
    return torch.cat(outputs)[order]


def plain_timesteps(given: dict[str, Any]) -> Tensor:
    """The timestep of every sample of a call, (B,) float64 on the host, in the scheduler's unit.

    Image to video gives every token a timestep, 0 to the frames that are given: the video's own is
    the largest.
    """
    steps = torch.as_tensor(given["timestep"]).detach().double().cpu()
    return steps.flatten(1).amax(1) if steps.ndim > 1 else steps.reshape(-1)


def thousandths(timestep: Tensor) -> Tensor:
    """The noise level of a timestep from 0 (clean) to 1000 (noise)."""
    return timestep / 1000


@dataclass(frozen=True)
class Family:
    """How one kind of transformer is read; all of it can be pickled."""

    layers: Callable[[Any], list[tuple[str, Any]]]
    """The self-attention layers of a transformer in order, by name."""
    video: Callable[[Any, dict[str, Any]], VideoTokens]
    """The video's tokens in a call, from the transformer and the call's arguments by name."""
    processor: type[FrequencyProcessor]
    replaces: tuple[str, ...]
    """Classes of the layers' own processors, whose work `processor` knows."""
    timesteps: Callable[[dict[str, Any]], Tensor] = plain_timesteps
    """Timesteps from a call's arguments by name: (B,) or (1,) float64 on the host, as the scheduler
    counts."""
    noise_level: Callable[[Tensor], Tensor] = thousandths
    """From these to noise levels, where 0 is clean and 1 noise."""
    schedule: Schedule = plain_schedule
    """What calls are given at the steps of a scheduler, float64 on the host, as `timesteps` gives
    it; rounded as the transformer's dtype of timesteps does."""


def layers_in(blocks: str, attention: str) -> Callable[[Any], list[tuple[str, Any]]]:
    """What lists the attention layers of one list of blocks, by name."""
    return partial(block_layers, blocks=blocks, attention=attention)


def block_layers(transformer: Any, blocks: str, attention: str) -> list[tuple[str, Any]]:
    """The attention layers of one list of blocks, by name."""
    return [
        (f"{blocks}.{place}.{attention}", getattr(block, attention))
        for place, block in enumerate(getattr(transformer, blocks))
    ]
