"""What the processors of all families share: what they know of the call, and attention by bands.

Shape legend: B batch, N tokens, C channels, H heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from freqformer.attention import frequency_attention
from freqformer.config import FreqFormerConfig
from freqformer.grid import Grid
from freqformer.ops.implementation import ImplChoice
from freqformer.routing import timestep_bucket
from freqformer.routing.table import attend_by_bucket


@dataclass
class Call:
    """What the transformer's layers need to know of the call in progress."""

    grid: Grid | None = None
    timestep: Tensor | None = None
    """(B,) in [0, 1], 1 is the most noise."""


class FrequencyProcessor:
    """The processor of one self-attention layer; a family's own says how it projects.

    Args:
        call: what the transformer's hook notes.
        bands: of every head by timestep bucket, int64 (T, H).
        configs: of every bucket.
        own: the processor that it replaces, for calls below `min_tokens`.
        min_tokens, impl: as in `enable_frequency_attention`.
    """

    # diffusers sets these on processors.
    _attention_backend = None
    _parallel_config = None

    def __init__(
        self,
        call: Call,
        bands: Tensor,
        configs: Sequence[FreqFormerConfig],
        own: Any,
        *,
        min_tokens: int,
        impl: ImplChoice,
    ) -> None:
        self.call, self.bands, self.configs, self.own = call, bands, configs, own
        self.min_tokens = min_tokens
        self.impl: ImplChoice = impl

    def grid(self) -> Grid:
        """The token grid of the call in progress."""
        assert self.call.grid is not None  # the hook came first
        return self.call.grid

    def is_short(self) -> bool:
        """Whether the call has too few tokens, and `own` is to run."""
        return self.grid().num_tokens < self.min_tokens

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, num_text_tokens: int = 0, text_mask: Tensor | None = None
    ) -> Tensor:
        """(B, N, H, D), video tokens in raster order and text behind -> (B, N, C); options as in `frequency_attention`."""
        timestep = self.call.timestep
        assert timestep is not None  # the hook came first
        self.bands = self.bands.to(query.device)
        out = attend_by_bucket(
            partial(_attend, grid=self.grid(), num_text_tokens=num_text_tokens, impl=self.impl),
            (query, key, value) if text_mask is None else (query, key, value, text_mask),
            self.bands[timestep_bucket(timestep, len(self.bands))],
            self.configs,
            timestep,
        )
        return out.flatten(2)

    def refuse(self, attention_mask: Tensor | None = None, *, fused: bool = False) -> None:
        """Raise ValueError for what no band can do."""
        for what, given, remedy in (
            ("attention_mask", attention_mask is not None, "pass none to the transformer"),
            ("fused projections", fused, "call unfuse_qkv_projections()"),
            ("a parallel configuration", self._parallel_config is not None, "run the transformer on one GPU"),
        ):
            if given:
                raise ValueError(f"frequency attention was given {what}, and none is allowed: {remedy}")


def _attend(query: Tensor, key: Tensor, value: Tensor, text_mask: Tensor | None = None, **options: Any) -> Tensor:
    """`frequency_attention` that takes all that goes by sample by place."""
    return frequency_attention(query, key, value, text_mask=text_mask, **options)


@dataclass(frozen=True)
class Family:
    """How one kind of transformer is read."""

    layers: Callable[[Any], list[tuple[str, Any]]]
    """The self-attention layers of a transformer in order, by name."""
    grid: Callable[[Any, dict[str, Any]], Grid]
    """The token grid of a call, from the transformer and the call's arguments by name."""
    processor: type[FrequencyProcessor]
    replaces: str
    """The class of the layers' own processor, whose work `processor` knows."""


def block_layers(transformer: Any, blocks: str, attention: str) -> list[tuple[str, Any]]:
    """The attention layers of one list of blocks, by name."""
    return [
        (f"{blocks}.{place}.{attention}", getattr(block, attention))
        for place, block in enumerate(getattr(transformer, blocks))
    ]
