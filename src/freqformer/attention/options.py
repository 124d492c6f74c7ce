"""What a layer is told when it is made, and which of it can act."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from freqformer._validate import check_choice, check_kind
from freqformer.config import Band, FreqFormerConfig
from freqformer.ops.checks import layer_bands
from freqformer.routing import Prior

Routing = Literal["soft", "timed", "learned", "fixed"]
SOFT: tuple[Routing, ...] = ("soft", "timed")
"""A router weighs each head's band and LOW."""
DEFAULT_ROUTING: Routing = "soft"
DEFAULT_PRIOR: Prior = "paper"
"""Of a router that chooses."""
Attention = Literal["frequency", "dense"]


@dataclass(frozen=True)
class LayerOptions:
    """The options of a layer, as they act."""

    routing: Routing | None
    """None in a dense layer."""
    prior: Prior | None
    """None where no router chooses."""
    bands: tuple[int, ...]
    """Of every head at the start."""
    low_beside: bool

    @property
    def weighs(self) -> bool:
        """Whether a router weighs each head's band and LOW."""
        return self.routing in SOFT


def check_size(dim: Any, num_heads: Any, config: Any) -> None:
    """Raise ValueError unless `num_heads` heads of an even head_dim make `dim` channels."""
    whole = all(isinstance(size, int) and not isinstance(size, bool) for size in (dim, num_heads))
    if not whole or num_heads < 1 or dim < 1 or dim % (2 * num_heads):
        raise ValueError(
            f"dim is {dim!r} and num_heads {num_heads!r}; dim = num_heads * an even head_dim is "
            "allowed, whole numbers"
        )
    check_kind("config", config, FreqFormerConfig, "FreqFormerConfig() is the default")


def layer_options(
    attention: Any, num_heads: int, *, routing: Any, allocation: Any, prior: Any, low_beside: Any
) -> LayerOptions:
    """The options of a layer from what its constructor was given, see `FreqAttention`.

    Raises:
        ValueError: for a value that is unknown, or that could not act.
    """
    check_choice("attention", attention, get_args(Attention))
    if attention == "dense":
        _refuse_any(
            "attention is 'dense', whose heads see everything and have no router and no LOW branch",
            {
                "routing": routing,
                "allocation": allocation,
                "prior": prior,
                "low_beside": low_beside,
            },
        )
        return LayerOptions(None, None, (Band.DENSE.value,) * num_heads, False)
    check_choice("routing", routing, (None, *get_args(Routing)))
    check_choice("prior", prior, (None, *get_args(Prior)))
    check_choice("low_beside", low_beside, (None, True, False))
    routing = routing or DEFAULT_ROUTING
    if routing != "learned":
        _refuse_any(
            f"routing is {routing!r}, and only a router that chooses, routing='learned', has a "
            "prior",
            {"prior": prior},
        )
    weighs = routing in SOFT
    if weighs and allocation is None:
        allocation = [Band.HIGH.value] * num_heads
    bands = layer_bands(allocation, num_heads)
    if weighs and (low_beside is False or Band.DENSE in bands):
        raise ValueError(
            f"low_beside is {low_beside} and allocation {bands}; with routing={routing!r}, which "
            "weighs each head's "
            "band and LOW, None or True and bands 0 to 2 are allowed: take routing='fixed' for "
            "others"
        )
    chosen = (prior or DEFAULT_PRIOR) if routing == "learned" else None
    return LayerOptions(routing, chosen, tuple(bands), bool(low_beside) or weighs)


def _refuse_any(why: str, options: dict[str, Sequence[Any] | Any]) -> None:
    """Raise ValueError where any of the options is given, since it could not act."""
    given = {name: value for name, value in options.items() if value is not None}
    if given:
        shown = ", ".join(f"{name}={value!r}" for name, value in given.items())
        raise ValueError(
            f"{shown} can't act: {why}; None is allowed: leave {' and '.join(given)} out"
        )
