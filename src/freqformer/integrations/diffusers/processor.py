"""What the processors of all families share: what they know of the call, and attention by bands.

Shape legend: B batch, N tokens, C channels, H heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from freqformer.attention.record import CallRecord, RecordedBands, packed
from freqformer.config import FreqFormerConfig
from freqformer.integrations.diffusers.calls import OUTSIDE, Call, CurrentCall, Share, VideoTokens
from freqformer.integrations.diffusers.converted.learned import LearnedLayer
from freqformer.integrations.diffusers.layer_bands import LayerBands
from freqformer.integrations.diffusers.query_key import project_queries, project_values
from freqformer.integrations.diffusers.samples import join_samples, take_samples
from freqformer.integrations.diffusers.steps import Schedule, plain_schedule
from freqformer.integrations.diffusers.ulysses import (
    attend_across,
    attend_around,
    costs_by_band,
    ulysses_of,
)
from freqformer.ops.backends import ImplChoice
from freqformer.ops.parameters import AttentionParameters, BranchGates, KnownBands, RotaryEmbedding

Finish = Callable[[Tensor, slice], Tensor]
"""What follows a layer's attention, from (B, m, C) of the layer's tokens at this place among them:
all, or some where ranks share them."""


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

    def prepare(self, call: Call | None, device: torch.device, *, by_record: bool = False) -> bool:
        """Decide what every sample of a call does, before the transformer runs: so nothing of it is
        in a compiled graph.

        Args:
            call: the one that begins; None ends it.
            device: that the layer will run on, as far as that is known.
            by_record: whether compiled graphs are given what the call does, since other layers or
                steps do something else.

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
        chosen = self.bands.configs(video.grid, call.noise_level, video.exact)
        rows_of: dict[FreqFormerConfig | None, list[int]] = {}
        for row in every:
            rows_of.setdefault(None if call.dense[row] else chosen[row], []).append(row)
        if self.learned is not None:
            self.learned.to(device)
        self.shares = tuple(
            self._share(video, rows, config, call.noise_level[rows], device)
            for config, rows in rows_of.items()
        )
        if by_record:
            self.shares = tuple(self._recorded(share, device) for share in self.shares)
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
        if config.band_features == "own_band":
            raise ValueError(
                "the table's config.band_features is 'own_band', which only a trained layer knows; "
                "'full' and 'high_pass_values' are allowed: calibrate with one of these"
            )
        bands = self.bands.bands(level, device)
        # Samples that do the same may be views of one: strides of zero are another graph.
        bands = KnownBands(bands.bands.contiguous(), bands.present)
        seen = None if self.learned is None else level.to(device, torch.float32)
        return Share(video, tuple(rows), config, bands, seen)

    def _recorded(self, share: Share, device: torch.device) -> Share:
        """The share with what a compiled graph is given of it."""
        if share.config is None or share.bands is None:
            return share
        grid = share.video.grid
        record = CallRecord(grid, share.config, share.video.exact, share.bands.present)
        costs = None
        if self.current.ranks is not None:
            costs = costs_by_band(record, device)
        return replace(share, recorded=RecordedBands(share.bands.bands, packed(record), costs))

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
            self._run(attn, share, take_samples(given, list(share.rows), samples))
            for share in self.shares
        ]
        order = torch.tensor([row for share in self.shares for row in share.rows]).argsort()
        return join_samples(outputs, order.to(given[0].device))

    def _run(self, attn: Any, share: Share, given: tuple[Any, ...]) -> Any:
        if share.bands is None:
            return self.own(attn, *given)
        layer = attn if self.learned is None else self.learned.view(attn)
        return self.banded(layer, share, *given)

    def banded(self, attn: Any, share: Share, *given: Any, **named: Any) -> Any:
        """As the layer's own processor with these arguments, every head's attention by its band."""
        raise NotImplementedError

    def layer(
        self,
        attn: Any,
        share: Share,
        hidden_states: Tensor,
        rotary: RotaryEmbedding | None,
        *,
        across_heads: bool = False,
        value: Tensor | None = None,
        finish: Finish | None = None,
    ) -> Tensor:
        """A whole layer of video, and of exact tokens that share what it learned, (B, N, C) ->
        (B, N, C); of this rank's tokens where ranks share them.

        Args:
            attn: the layer.
            share: what its heads do.
            hidden_states: as `attend`.
            rotary: of the queries and keys.
            across_heads: as in `project_queries`.
            value: (B, N, H, D) where they were projected before.
            finish: what follows attention; None is the layer's `to_out`.

        Raises:
            ValueError: where ranks share the tokens of a converted layer.
        """
        finish = partial(_to_out, attn) if finish is None else finish
        context = ulysses_of(getattr(self, "_parallel_config", None))
        if context is None:
            query, key, parameters = project_queries(
                attn, hidden_states, rotary, across_heads=across_heads
            )
            value = project_values(attn, hidden_states) if value is None else value
            out = self.attend(share, query, key, value, parameters, hidden_states=hidden_states)
            return finish(out, slice(None))
        if self.learned is not None:
            raise ValueError(
                "the transformer has a parallel configuration, and an adapter's gates know whole "
                "videos alone; None is allowed with an adapter: run it on one GPU"
            )
        return attend_across(
            project_queries(attn, hidden_states, rotary, across_heads=across_heads),
            partial(project_values, attn, hidden_states) if value is None else lambda: value,
            context,
            finish,
            **self._operation(share, hidden_states.device),
        )

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
        `share.video` around them.

        `parameters` say how queries and keys are normalised and turned. Tables of a rotary
        embedding are of all tokens in this order, or of the video's where these come first.
        `hidden_states` (B, N, C) are what the layer was given: the video and what comes before it.
        """
        out = attend_around(
            (query, key, value),
            parameters=parameters,
            text_mask=text_mask,
            low_branch=self._low_branch(share, hidden_states),
            **self._operation(share, query.device),
        )
        return out.flatten(2)

    def _operation(self, share: Share, device: torch.device) -> dict[str, Any]:
        """What the operation is told of a call on a device, beside tensors of tokens."""
        assert share.bands is not None
        named = {
            "before": share.video.before,
            "grid": share.video.grid,
            "num_text_tokens": share.video.exact,
            "impl": self.impl,
        }
        if share.recorded is not None and torch.compiler.is_compiling():
            # Neither config nor present bands are looked at, on which a graph would depend.
            return named | {"allocation": share.recorded}
        assert share.config is not None
        known = KnownBands(share.bands.bands.to(device), share.bands.present)
        return named | {"allocation": known, "config": share.config}

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


def _to_out(attn: Any, out: Tensor, _: slice) -> Tensor:
    """The layer's own projection (and dropout) behind attention."""
    return attn.to_out[1](attn.to_out[0](out))


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
    video_tables: tuple[str, ...] = ()
    """Modules of the transformer that make rotary tables (..., N, D) from the video's coordinates
    (B, sides, N, ...), and that diffusers' plan for several GPUs may leave whole."""
    text_masks: tuple[str, ...] = ()
    """Arguments (B, L) that say which text is seen, 1 or 0: diffusers' layers can't take them where
    ranks share heads."""


def layers_in(blocks: str, attention: str) -> Callable[[Any], list[tuple[str, Any]]]:
    """What lists the attention layers of one list of blocks, by name."""
    return partial(block_layers, blocks=blocks, attention=attention)


def block_layers(transformer: Any, blocks: str, attention: str) -> list[tuple[str, Any]]:
    """The attention layers of one list of blocks, by name."""
    return [
        (f"{blocks}.{place}.{attention}", getattr(block, attention))
        for place, block in enumerate(getattr(transformer, blocks))
    ]
