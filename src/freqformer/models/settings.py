"""What the transformer's settings may be; a config file or a command line can hold anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from freqformer._validate import check_choice, check_whole
from freqformer.config import FreqFormerConfig

LEAST_HEAD_DIM = 6
"""Rotary embedding turns a pair of channels per axis at least."""
CHOICES: dict[str, tuple[Any, ...]] = {
    "absolute_positions": (False, True, "space"),
    "prediction_type": ("velocity", "sample"),
}


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise ValueError for a setting of a wrong kind or out of range, naming it.

    Args:
        settings: all arguments of `FreqFormerTransformer3DModel` by name.
    """
    for name, allowed in CHOICES.items():
        check_choice(name, settings[name], allowed)
    for name in ("in_channels", "num_layers", "num_attention_heads"):
        check_whole(name, settings[name], 1)
    if settings["cross_attention_dim"] is not None:
        remedy = "None makes a model without text"
        check_whole("cross_attention_dim", settings["cross_attention_dim"], 1, remedy)
    patch, head_dim = settings["patch_size"], settings["attention_head_dim"]
    if isinstance(patch, list | tuple):
        for side in patch:
            check_whole("patch_size", side, 1)
    whole = isinstance(head_dim, int) and not isinstance(head_dim, bool)
    triple = isinstance(patch, list | tuple) and len(patch) == len(("frames", "rows", "columns"))
    if not triple or not whole or head_dim < LEAST_HEAD_DIM or head_dim % 2:
        raise ValueError(
            f"patch_size is {patch!r} and attention_head_dim {head_dim!r}; (frames, rows, columns) "
            f"and an even number from {LEAST_HEAD_DIM} up are allowed: rotary embedding turns a "
            "pair of channels per axis at least"
        )
    frequency = settings["frequency"]
    if not isinstance(frequency, FreqFormerConfig | Mapping | None):
        raise ValueError(
            f"frequency is {frequency!r}; a FreqFormerConfig, a dict of its fields or None is "
            "allowed: FreqFormerConfig() is the default"
        )


def records_by_layer(
    config: FreqFormerConfig, layer_allocations: Any, num_layers: int
) -> list[FreqFormerConfig]:
    """The record of every layer.

    Args:
        config: the model's.
        layer_allocations: bands of every layer's heads, or None.
        num_layers: of the model.

    Raises:
        ValueError: for other than one list of bands a layer, or for dense layers with any.
    """
    if layer_allocations is None:
        return [config] * num_layers
    if config.is_dense:
        raise ValueError(
            "layer_allocations is given and frequency's allocation is 'dense', whose layers have "
            "no bands; None is allowed: leave it out, or take another allocation"
        )
    listed = isinstance(layer_allocations, list | tuple)
    if not listed or len(layer_allocations) != num_layers:
        raise ValueError(
            f"layer_allocations is {layer_allocations!r}; {num_layers} lists of one band per head "
            "are allowed: where all layers are alike, set frequency's allocation"
        )
    return [replace(config, allocation=tuple(_listed(bands))) for bands in layer_allocations]


def _listed(bands: Any) -> list[int]:
    if not isinstance(bands, list | tuple):
        raise ValueError(
            f"layer_allocations holds {bands!r}; a list of one band per head for each layer is "
            "allowed: where all layers are alike, set frequency's allocation"
        )
    return list(bands)
