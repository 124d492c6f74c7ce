"""Configurations with a name: the library's own default, the source's method, and dense
attention."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from freqformer.config import FreqFormerConfig
from freqformer.simulate.model.allocations import Routing
from freqformer.simulate.model.profiles import ProfileError
from freqformer.training_free.dials import Dials, checked_dials

Attention = Literal["frequency", "dense"]
"""Heads of bands, or exact attention in every head."""


@dataclass(frozen=True)
class Preset:
    """What a model does in its attention layers, as a record says."""

    name: str
    title: str
    """What it is, in a few words."""
    config: FreqFormerConfig
    """Where dials say what is computed: of what is dense."""
    dials: Dials | None = None

    @property
    def routing(self) -> Routing:
        """Who decides which band each head belongs to."""
        return Routing.of(self.config)

    @property
    def attention(self) -> Attention:
        """`dense` for exact attention in every head."""
        return "dense" if self.config.is_dense else "frequency"


PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            "default",
            "the library's default: a window and a gated LOW branch in every head, weighed by a "
            "router",
            FreqFormerConfig(),
        ),
        Preset(
            "paper",
            "the method of arXiv 2604.22808: a third of the heads in each band, which a router "
            "chooses by noise level",
            FreqFormerConfig.paper(),
        ),
        Preset("dense", "dense attention in every head", FreqFormerConfig.dense()),
        Preset(
            "training-free",
            "what `enable_frequency_attention` makes of a trained dense model without a table",
            FreqFormerConfig.dense(),
            checked_dials(),
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
