"""Frequency attention inside a video transformer of diffusers: one call on, one call off, and no class is patched.

Self-attention layers get another processor, and a hook on the transformer tells it the token grid and the timestep of the
call, which reach no processor by themselves. So far for Wan (`WanTransformer3DModel`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from freqformer.attention import ImplChoice, frequency_attention
from freqformer.config import Band, FreqFormerConfig
from freqformer.grid import Grid
from freqformer.routing import RoutingTable, timestep_bucket
from freqformer.routing.table import attend_by_bucket

MODELS = ("WanTransformer3DModel",)
TRAIN_TIMESTEPS = 1000.0
"""What a model of diffusers calls pure noise."""


@dataclass
class _Call:
    """What the transformer's layers need to know of the call in progress."""

    grid: Grid | None = None
    timestep: Tensor | None = None
    """(B,) in [0, 1], 1 is the most noise."""


@dataclass
class FrequencyAttentionHandle:
    """What `enable_frequency_attention` changed; `remove` undoes it. Usable as a context manager."""

    transformer: nn.Module
    originals: dict[str, tuple[nn.Module, Any]] = field(default_factory=dict)
    """By name of the attention layer: itself and its own processor."""
    hook: RemovableHandle | None = None

    def remove(self) -> None:
        """Give every layer its own processor back; once more does nothing."""
        for layer, processor in self.originals.values():
            layer.set_processor(processor)  # type: ignore[operator]
        self.originals.clear()
        if self.hook is not None:
            self.hook.remove()
            self.hook = None

    def __enter__(self) -> FrequencyAttentionHandle:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def enable_frequency_attention(
    transformer: nn.Module, table: RoutingTable, *, min_tokens: int = 0, impl: ImplChoice = "auto"
) -> FrequencyAttentionHandle:
    """Replace the self-attention of a trained video transformer by frequency attention, without training.

    Low summaries stand for what a head doesn't see; nothing learned is added. A layer whose heads are DENSE at every
    timestep keeps its own processor, to the last bit: give first and last layers such rows to guard them, and buckets of
    timesteps to guard first and last steps.

    Args:
        transformer: a `WanTransformer3DModel`.
        table: the band of every head by timestep bucket and layer.
        min_tokens: video tokens below which a call runs the layers' own processors.
        impl: as in `frequency_attention`.

    Returns: the handle that takes it back. Weights and `state_dict` stay as they are.

    Raises:
        ValueError: for another kind of model, a table of other layers or heads, or a model that has it already. A call
            raises it for an attention mask, fused projections or a parallel configuration.
    """
    name = type(transformer).__name__
    if name not in MODELS:
        raise ValueError(f"transformer is a {name}; {', '.join(MODELS)} is allowed: its layers are known")
    blocks: Any = transformer.blocks
    layers = [(f"blocks.{place}.attn1", block.attn1) for place, block in enumerate(blocks)]
    if any(isinstance(layer.processor, FrequencyProcessor) for _, layer in layers):
        raise ValueError("transformer has frequency attention already: call remove() on its handle first")
    if table.shape[1] != len(layers):
        raise ValueError(
            f"table has {table.shape[1]} layers; {len(layers)} are allowed, as many as the transformer has blocks: make a "
            "table for this model"
        )
    call, handle = _Call(), FrequencyAttentionHandle(transformer)
    chosen = [table.for_layer(place, layer.heads, table.config) for place, (_, layer) in enumerate(layers)]
    for (name, layer), (bands, configs) in zip(layers, chosen, strict=True):
        if bool((bands == Band.DENSE).all()):
            continue
        own = layer.processor
        handle.originals[name] = (layer, own)
        layer.set_processor(FrequencyProcessor(call, bands, configs, own, min_tokens=min_tokens, impl=impl))
    handle.hook = transformer.register_forward_pre_hook(partial(_note, call), with_kwargs=True)
    return handle


def _note(call: _Call, transformer: Any, args: tuple, kwargs: dict[str, Any]) -> None:
    """Before the transformer runs: the grid and the timestep of this call."""
    given = dict(zip(("hidden_states", "timestep"), args, strict=False)) | kwargs
    frames, height, width = (
        side // patch for side, patch in zip(given["hidden_states"].shape[2:], transformer.config.patch_size, strict=True)
    )
    timestep = given["timestep"]
    # Image to video gives every token a timestep, 0 to the frames that are given: the video's own is the largest.
    timestep = timestep if timestep.ndim == 1 else timestep.amax(1)
    call.grid, call.timestep = Grid(frames, height, width), timestep.float() / TRAIN_TIMESTEPS


class FrequencyProcessor:
    """The processor of one self-attention layer of Wan.

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
        call: _Call,
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

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """(B, N, C) -> (B, N, C), tokens in raster order."""
        grid, timestep = self.call.grid, self.call.timestep
        assert grid is not None  # the hook came first
        assert timestep is not None
        if grid.num_tokens < self.min_tokens:
            return self.own(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
        self._check(attn, attention_mask)
        projected = (attn.norm_q(attn.to_q(hidden_states)), attn.norm_k(attn.to_k(hidden_states)), attn.to_v(hidden_states))
        query, key, value = (x.unflatten(2, (attn.heads, -1)) for x in projected)
        if rotary_emb is not None:
            query, key = _rotated(query, *rotary_emb), _rotated(key, *rotary_emb)
        self.bands = self.bands.to(hidden_states.device)
        out = attend_by_bucket(
            partial(frequency_attention, grid=grid, impl=self.impl),
            (query, key, value),
            self.bands[timestep_bucket(timestep, len(self.bands))],
            self.configs,
            timestep,
        )
        out = out.flatten(2).type_as(query)
        return attn.to_out[1](attn.to_out[0](out))

    def _check(self, attn: Any, attention_mask: Tensor | None) -> None:
        for what, given, remedy in (
            ("attention_mask", attention_mask is not None, "pass none to the transformer"),
            ("fused projections", bool(getattr(attn, "fused_projections", False)), "call unfuse_qkv_projections()"),
            ("a parallel configuration", self._parallel_config is not None, "run the transformer on one GPU"),
        ):
            if given:
                raise ValueError(f"frequency attention was given {what}, and none is allowed: {remedy}")


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, N, H, D) with neighbouring channels rotated, as Wan does; cos and sin (1, N, 1, D) hold each angle twice."""
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    return torch.stack([first * cos - second * sin, first * sin + second * cos], -1).flatten(-2).type_as(x)
