"""Frequency attention on and off: who can have it, and what takes it back."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from freqformer._validate import check_choice
from freqformer.config import Band
from freqformer.integrations.diffusers import cogvideox, hunyuan_video, ltx, wan
from freqformer.integrations.diffusers.processor import CurrentCall, Family, FrequencyProcessor
from freqformer.integrations.diffusers.session import Replaced, Session, session_of
from freqformer.integrations.diffusers.ulysses import class_name
from freqformer.ops.backends import IMPLS, ImplChoice
from freqformer.routing import RoutingTable

FAMILIES = {
    "WanTransformer3DModel": wan.FAMILY,
    "LTXVideoTransformer3DModel": ltx.FAMILY,
    "CogVideoXTransformer3DModel": cogvideox.FAMILY,
    "HunyuanVideoTransformer3DModel": hunyuan_video.FAMILY,
}
WRAPPED = {"module": "a parallel wrapper", "_orig_mod": "a compiled module"}
"""Where other libraries keep a model that they wrap."""


class FrequencyAttentionHandle:
    """What `enable_frequency_attention` changed; `remove` undoes it. Usable as a context manager.

    Args:
        transformer: the enabled model.
        session: the state that lives in it.
    """

    def __init__(self, transformer: nn.Module, session: Session) -> None:
        self.transformer = transformer
        self._session = session

    @property
    def layer_names(self) -> list[str]:
        """The attention layers that have another processor; none after `remove`."""
        return list(self._session.replaced) if self._session.hooks else []

    def remove(self) -> None:
        """Give every layer its own processor back; once more does nothing."""
        self._session.stop()

    def __enter__(self) -> FrequencyAttentionHandle:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def enable_frequency_attention(
    transformer: nn.Module, table: RoutingTable, *, min_tokens: int = 0, impl: ImplChoice = "auto"
) -> FrequencyAttentionHandle:
    """Replace the self-attention of a trained video transformer by frequency attention, without
    training.

    Low summaries stand for what a head doesn't see; nothing learned is added. Where all heads of a
    layer are DENSE, at every timestep or at that of a call, the layer runs its own processor, to
    the last bit and at its speed: give first and last layers such rows to guard them, and buckets
    of timesteps to guard first and last steps.

    A copy or pickle of an enabled model is enabled too; `disable_frequency_attention` takes it back
    there. Saving a model or pipeline writes what it would write without.

    Args:
        transformer: a `WanTransformer3DModel`, `LTXVideoTransformer3DModel`,
            `CogVideoXTransformer3DModel` or `HunyuanVideoTransformer3DModel`.
        table: the band of every head by timestep bucket and layer.
        min_tokens: video tokens below which a call runs the layers' own processors.
        impl: as in `frequency_attention`.

    Returns: the handle that takes it back. Weights and `state_dict` stay as they are.

    Raises:
        ValueError: for another kind of model, a table of other layers or heads or made from another
            model, processors that aren't the model's own, or one that has it already. A call raises
            it for an attention mask, fused projections, ring attention, an unknown token grid,
            timesteps that aren't 0 to 1000, processors set in between, or activations
            recomputed by other means than `enable_gradient_checkpointing`.
    """
    family = _family(transformer)
    layers = family.layers(transformer)
    _check_options(table, min_tokens, impl)
    _check_layers(layers, family, table)
    current = CurrentCall()
    replaced = {}
    for place, (name, layer) in enumerate(layers):
        bands, configs = table.for_layer(place, layer.heads, table.config)
        if bool((bands == Band.DENSE).all()):
            continue
        own = layer.processor
        banded = family.processor(current, bands, configs, own, min_tokens=min_tokens, impl=impl)
        replaced[name] = Replaced(layer, own, banded)
    names = tuple(inspect.signature(type(transformer).forward).parameters)[1:]
    session = Session(family, names, current, replaced)
    session.start(transformer)
    return FrequencyAttentionHandle(transformer, session)


def disable_frequency_attention(transformer: nn.Module) -> None:
    """Take frequency attention back without its handle, as in a copy of an enabled model.

    Does nothing where it isn't on.
    """
    session = session_of(transformer)
    if session is not None:
        session.stop()


def _family(transformer: Any) -> Family:
    name = class_name(transformer)
    if name in FAMILIES:
        return FAMILIES[name]
    known = ", ".join(FAMILIES)
    components = getattr(transformer, "components", None)
    if isinstance(components, dict):
        parts = [part for part, model in components.items() if type(model).__name__ in FAMILIES]
        remedy = f"pass its transformer, pipeline.{parts[0]}" if parts else "it holds none of them"
        if len(parts) > 1:
            remedy = "call it for each of pipeline." + " and pipeline.".join(parts)
        raise ValueError(f"transformer is a {name}, a pipeline; {known} are allowed: {remedy}")
    for attribute, what in WRAPPED.items():
        if type(getattr(transformer, attribute, None)).__name__ in FAMILIES:
            raise ValueError(
                f"transformer is a {name}, {what}; {known} are allowed: pass its .{attribute}"
            )
    remedy = "their layers are known"
    if name == "FreqFormerTransformer3DModel":
        remedy = "this library's own model takes a table by set_routing_table(table)"
    raise ValueError(f"transformer is a {name}; {known} are allowed: {remedy}")


def _check_options(table: RoutingTable, min_tokens: int, impl: ImplChoice) -> None:
    if not isinstance(table, RoutingTable):
        raise ValueError(
            f"table is a {type(table).__name__}; a RoutingTable is allowed: make one, or read it "
            "with "
            "RoutingTable.load(folder)"
        )
    if isinstance(min_tokens, bool) or not isinstance(min_tokens, int) or min_tokens < 0:
        raise ValueError(f"min_tokens is {min_tokens!r}; an integer >= 0 is allowed")
    check_choice("impl", impl, IMPLS)


def _check_layers(layers: list[tuple[str, Any]], family: Family, table: RoutingTable) -> None:
    if any(isinstance(layer.processor, FrequencyProcessor) for _, layer in layers):
        raise ValueError(
            "transformer has frequency attention already: call remove() on its handle first, or "
            "disable_frequency_attention(transformer)"
        )
    for name, layer in layers:
        found = type(layer.processor).__name__
        if found != family.replaces:
            raise ValueError(
                f"{name} has a {found}; {family.replaces} is allowed: give the model its own "
                "processors back"
            )
    if table.shape[1] != len(layers):
        raise ValueError(
            f"table has {table.shape[1]} layers; {len(layers)} are allowed, as many as the "
            "transformer "
            "has blocks: make a table for this model"
        )
    table.check_layers([layer for _, layer in layers])
