"""Sessions made of bands by layer, and of what layers have learned."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from freqformer.integrations.diffusers.calls import CurrentCall
from freqformer.integrations.diffusers.converted.learned import LearnedLayers
from freqformer.integrations.diffusers.families import family_of
from freqformer.integrations.diffusers.layer_bands import LayerBands
from freqformer.integrations.diffusers.processor import Family, FrequencyProcessor
from freqformer.integrations.diffusers.session import Replaced, Session
from freqformer.integrations.diffusers.steps import SamplerSteps
from freqformer.ops.backends import ImplChoice

Layers = list[tuple[str, Any]]
"""The self-attention layers of a transformer by name, in order."""
ALL_STEPS = SamplerSteps(0.0, 1.0)


def make_session(
    transformer: nn.Module,
    bands: Mapping[str, LayerBands],
    *,
    learned: LearnedLayers | None = None,
    steps: SamplerSteps = ALL_STEPS,
    min_tokens: int = 0,
    impl: ImplChoice = "auto",
) -> Session:
    """The session of one transformer, not started yet.

    Args:
        transformer: of a known family, with its own processors.
        bands: what heads do, by name of the layer; others stay as they are.
        learned: by conversion, of those layers; None for nothing.
        steps: which of the sampler's steps are banded.
        min_tokens: video tokens below which a call is the model's own.
        impl: as in `enable_frequency_attention`.
    """
    family = family_of(transformer)
    layers = family.layers(transformer)
    check_processors(layers, family)
    by_name = dict(layers)
    parts = {} if learned is None else dict(learned.items())
    current = CurrentCall()
    replaced = {}
    for name, found in bands.items():
        own = by_name[name].processor
        banded = family.processor(current, found, own, impl=impl, learned=parts.get(name))
        replaced[name] = Replaced(by_name[name], own, banded)
    names = tuple(inspect.signature(type(transformer).forward).parameters)[1:]
    return Session(
        family,
        names,
        current,
        replaced,
        num_layers=len(layers),
        steps=steps,
        min_tokens=min_tokens,
    )


def check_processors(layers: Layers, family: Family) -> None:
    """Raise ValueError unless every layer has the model's own processor."""
    if any(isinstance(layer.processor, FrequencyProcessor) for _, layer in layers):
        raise ValueError(
            "transformer has frequency attention already: call remove() on its handle first, or "
            "disable_frequency_attention(transformer)"
        )
    for name, layer in layers:
        found = type(layer.processor).__name__
        if found not in family.replaces:
            raise ValueError(
                f"{name} has a {found}; {' or '.join(family.replaces)} is allowed: give the model "
                "its own processors back"
            )
