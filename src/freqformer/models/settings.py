"""What the transformer's settings may be; a config file or a command line can hold anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from freqformer._validate import check_choice, check_whole
from freqformer.attention.options import Attention, Routing
from freqformer.routing import Prior

LEAST_HEAD_DIM = 6
"""Rotary embedding turns a pair of channels per axis at least."""
CHOICES: dict[str, tuple[Any, ...]] = {
    "attention": get_args(Attention),
    "routing": (None, *get_args(Routing)),
    "prior": (None, *get_args(Prior)),
    "absolute_positions": (False, True, "space"),
    "prediction_type": ("velocity", "sample"),
    "low_beside": (None, True, False),
}


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise ValueError for a setting of a wrong kind or out of range, naming it.

    Args:
        settings: all arguments of `FreqFormerTransformer3DModel` by name.
    """
    for name, allowed in CHOICES.items():
        check_choice(name, settings[name], allowed)
    for name in ("in_channels", "num_layers", "num_heads"):
        check_whole(name, settings[name], 1)
    if settings["text_dim"] is not None:
        check_whole("text_dim", settings["text_dim"], 1, "None makes a model without text")
    patch, head_dim = settings["patch_size"], settings["head_dim"]
    if isinstance(patch, list | tuple):
        for side in patch:
            check_whole("patch_size", side, 1)
    whole = isinstance(head_dim, int) and not isinstance(head_dim, bool)
    triple = isinstance(patch, list | tuple) and len(patch) == len(("frames", "rows", "columns"))
    if not triple or not whole or head_dim < LEAST_HEAD_DIM or head_dim % 2:
        raise ValueError(
            f"patch_size is {patch!r} and head_dim {head_dim!r}; (frames, rows, columns) and an "
            "even number from "
            f"{LEAST_HEAD_DIM} up are allowed: rotary embedding turns a pair of channels per axis "
            "at least"
        )
    frequency = settings["frequency"]
    if frequency is not None and not isinstance(frequency, Mapping):
        raise ValueError(
            f"frequency is {frequency!r}; a dict of FreqFormerConfig's fields or None is allowed: "
            "pass config.to_dict()"
        )


def allocation_by_layer(allocation: Any, num_layers: int) -> list[Sequence[int] | None]:
    """The allocation of every layer.

    Raises:
        ValueError: unless it is None, one list of bands, or a list of them for every layer.
    """
    if allocation is None:
        return [None] * num_layers
    if not isinstance(allocation, Sequence) or isinstance(allocation, str):
        raise ValueError(f"allocation is {allocation!r}; {_ALLOWED.format(num_layers)}")
    nested = [isinstance(bands, Sequence) and not isinstance(bands, str) for bands in allocation]
    if not any(nested):
        return [allocation] * num_layers
    if len(allocation) != num_layers or not all(nested):
        raise ValueError(f"allocation has {len(allocation)} entries; {_ALLOWED.format(num_layers)}")
    return list(allocation)


_ALLOWED = "one band per head, or {} lists of them are allowed"
