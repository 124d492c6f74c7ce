"""Frequency attention on and off: what is changed in a transformer, and what takes it back."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from freqformer.config import Band
from freqformer.integrations.diffusers import cogvideox, hunyuan_video, ltx, wan
from freqformer.integrations.diffusers.processor import Call, Family, FrequencyProcessor
from freqformer.ops.implementation import ImplChoice
from freqformer.routing import RoutingTable

FAMILIES = {
    "WanTransformer3DModel": wan.FAMILY,
    "LTXVideoTransformer3DModel": ltx.FAMILY,
    "CogVideoXTransformer3DModel": cogvideox.FAMILY,
    "HunyuanVideoTransformer3DModel": hunyuan_video.FAMILY,
}
TRAIN_TIMESTEPS = 1000.0
"""What a model of diffusers calls pure noise."""


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
        transformer: a `WanTransformer3DModel`, `LTXVideoTransformer3DModel`, `CogVideoXTransformer3DModel` or
            `HunyuanVideoTransformer3DModel`.
        table: the band of every head by timestep bucket and layer.
        min_tokens: video tokens below which a call runs the layers' own processors.
        impl: as in `frequency_attention`.

    Returns: the handle that takes it back. Weights and `state_dict` stay as they are.

    Raises:
        ValueError: for another kind of model, a table of other layers or heads or made from another model, processors
            that aren't the model's own, or one that has it already. A call raises it for an attention mask, fused
            projections, a parallel configuration, an unknown token grid, or processors set in between.
    """
    name = type(transformer).__name__
    if name not in FAMILIES:
        raise ValueError(f"transformer is a {name}; {', '.join(FAMILIES)} are allowed: their layers are known")
    family = FAMILIES[name]
    layers = family.layers(transformer)
    _check(layers, family, table)
    call, handle = Call(), FrequencyAttentionHandle(transformer)
    chosen = [table.for_layer(place, layer.heads, table.config) for place, (_, layer) in enumerate(layers)]
    for (name, layer), (bands, configs) in zip(layers, chosen, strict=True):
        if bool((bands == Band.DENSE).all()):
            continue
        own = layer.processor
        handle.originals[name] = (layer, own)
        layer.set_processor(family.processor(call, bands, configs, own, min_tokens=min_tokens, impl=impl))
    if handle.originals:
        names = tuple(inspect.signature(type(transformer).forward).parameters)[1:]
        note = partial(_note, handle, call, family, names)
        handle.hook = transformer.register_forward_pre_hook(note, with_kwargs=True)
    return handle


def _check(layers: list[tuple[str, Any]], family: Family, table: RoutingTable) -> None:
    if any(isinstance(layer.processor, FrequencyProcessor) for _, layer in layers):
        raise ValueError("transformer has frequency attention already: call remove() on its handle first")
    for name, layer in layers:
        found = type(layer.processor).__name__
        if found != family.replaces:
            raise ValueError(f"{name} has a {found}; {family.replaces} is allowed: give the model its own processors back")
    if table.shape[1] != len(layers):
        raise ValueError(
            f"table has {table.shape[1]} layers; {len(layers)} are allowed, as many as the transformer has blocks: make a "
            "table for this model"
        )
    table.check_layers([layer for _, layer in layers])


def _note(
    handle: FrequencyAttentionHandle,
    call: Call,
    family: Family,
    names: tuple[str, ...],
    transformer: Any,
    args: tuple,
    kwargs: dict[str, Any],
) -> None:
    """Before the transformer runs: the grid and the timestep of this call."""
    for name, (layer, _) in handle.originals.items():
        if not isinstance(layer.processor, FrequencyProcessor):
            raise ValueError(
                f"{name} was given a {type(layer.processor).__name__} after frequency attention; none is allowed: call "
                "remove() on its handle, change the model, and enable it again"
            )
    given = dict(zip(names, args, strict=False)) | kwargs
    timestep = given["timestep"]
    # Image to video gives every token a timestep, 0 to the frames that are given: the video's own is the largest.
    timestep = timestep.flatten(1).amax(1) if timestep.ndim > 1 else timestep
    call.timestep = (timestep.float() / TRAIN_TIMESTEPS).expand(len(given["hidden_states"]))
    call.grid = family.grid(transformer, given)
