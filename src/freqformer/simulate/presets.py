"""Configurations with a name: the library's own default, the source's method, and dense
attention."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from freqformer.config import FreqFormerConfig
from freqformer.simulate.allocations import Routing
from freqformer.simulate.profiles import ProfileError

Attention = Literal["frequency", "dense"]
"""As `attention` of `FreqAttention`."""


@dataclass(frozen=True)
class Preset:
    """What a model does in its attention layers."""

    name: str
    title: str
    """What it is, in a few words."""
    config: FreqFormerConfig
    routing: Routing
    attention: Attention = "frequency"


PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            "default",
            "the library's default: a window and a gated LOW branch in every head, weighed by a "
            "router",
            FreqFormerConfig(),
            Routing(),
        ),
        Preset(
            "paper",
            "the method of arXiv 2604.22808: a third of the heads in each band, which a router "
            "chooses by noise level",
            FreqFormerConfig.paper(),
            Routing(kind="hard"),
        ),
        Preset(
            "dense",
            "dense attention in every head",
            FreqFormerConfig.dense(),
            Routing(kind="fixed"),
            "dense",
        ),
    )
}
"""The presets by name."""


def preset_named(name: str) -> Preset:
    """The preset of this name.

    Raises:
        ProfileError: for an unknown name, naming the known ones and the nearest.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(str(name).lower(), PRESETS, n=1, cutoff=0.4)
        hint = f"; the nearest is {near[0]!r}" if near else ""
        raise ProfileError(f"preset is {name!r}{hint}; known are {', '.join(PRESETS)}: choose one")
    return PRESETS[name]
