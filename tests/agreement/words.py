"""From the words of the kept cases to today's: the only place that knows how names have changed."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from freqformer.attention import FreqAttention, frequency_attention
from freqformer.config import Band, FreqFormerConfig
from freqformer.ops import parameters as operation_parameters

VALUES = {
    "values": "high_pass_values",
    "gains": "band_gains",
    "strict": "own_band",
    "synthesis": "inverse_dct",
    "timed": "timestep",
    "learned": "hard",
    "paper": "noise_level",
}
"""Old values and new ones."""
WHOLE_RECORD = "routing" in {field.name for field in fields(FreqFormerConfig)}
"""Whether the record holds what a layer's arguments held."""
LAYER_DEFAULTS: dict[str, Any] = {
    "routing": "soft",
    "allocation": None,
    "prior": None,
    "low_beside": None,
}
OPERATION = {"routing": "fixed", "low_beside": False}
"""What the record of a call without a layer says of layers: nothing in addition to the bands."""


def config_of(words: dict[str, Any], layer: dict[str, Any] = OPERATION) -> FreqFormerConfig:
    """The record of these fields, and of the layer's arguments where the record has them."""
    asked = words | _recorded(LAYER_DEFAULTS | layer) if WHOLE_RECORD else words
    return _known(FreqFormerConfig, asked)


def _known(make: Any, asked: dict[str, Any]) -> Any:
    """The same made with new values, or with old ones where these are the code's: new ones first,
    since old ones may still be taken, with a warning."""
    try:
        return make(**{name: _today(value) for name, value in asked.items()})
    except ValueError:
        return make(**asked)


def _today(value: Any) -> Any:
    return VALUES.get(value, value) if isinstance(value, str) else value


def _recorded(layer: dict[str, Any]) -> dict[str, Any]:
    """A layer's arguments as fields of the record, what was None made plain."""
    weighs, chooses = layer["routing"] in ("soft", "timed"), layer["routing"] == "learned"
    return {
        "routing": _today(layer["routing"]),
        "allocation": layer["allocation"] or ("high" if weighs else "thirds"),
        "prior": _today(layer["prior"] or ("paper" if chooses else "none")),
        "low_branch": weighs if layer["low_beside"] is None else layer["low_beside"],
    }


def make_layer(dim: int, heads: int, words: dict[str, Any], layer: dict[str, Any]) -> nn.Module:
    """The attention layer of a case."""
    if not WHOLE_RECORD:
        asked = {name: value for name, value in layer.items() if value is not None}
        config = config_of(words)
        return _known(lambda **options: FreqAttention(dim, heads, config, **options), asked)
    if layer.get("attention") == "dense":
        from freqformer.attention import DenseAttention  # pyright: ignore

        return DenseAttention(dim, heads)
    return FreqAttention(dim, heads, config_of(words, layer))


def router_logits(layer: Any) -> Tensor | None:
    """The router's logits of the layer's last call."""
    return layer.router_logits if hasattr(layer, "router_logits") else layer.last_logits


def attend_with_low(
    tensors: tuple[Tensor, Tensor, Tensor],
    *,
    by_token: Tensor | None,
    by_sample: Tensor | None,
    **call: Any,
) -> Tensor:
    """Own band and LOW of every head, added by gates (B, N, 2, H) and (B, 2, H)."""
    if hasattr(operation_parameters, "BranchGates"):
        gates = operation_parameters.BranchGates(by_token=by_token, by_sample=by_sample)
        return frequency_attention(*tensors, low_branch=gates, **call)
    from freqformer.ops.gates.api import gated_sum

    own = frequency_attention(*tensors, **call)
    call["allocation"] = torch.full((own.shape[2],), Band.LOW.value)
    low = frequency_attention(*tensors, **call)
    return gated_sum(own, low, by_token, by_sample, fused=call["impl"] == "triton")
