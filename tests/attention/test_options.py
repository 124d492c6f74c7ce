"""Options of a layer that could not act are refused, and defaults drop nothing."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.layers import CONFIG, DIM, HEADS

from freqformer import FreqAttention, FreqFormerTransformer3DModel

IDLE: list[tuple[dict[str, Any], str]] = [
    ({"attention": "dense", "routing": "soft"}, "routing='soft' can't act: attention is 'dense'"),
    ({"attention": "dense", "allocation": [0, 1, 2]}, "leave allocation out"),
    ({"attention": "dense", "low_beside": True}, "low_beside=True can't act"),
    ({"attention": "dense", "prior": "none", "routing": "learned"}, "leave routing and prior out"),
    ({"prior": "paper"}, "prior='paper' can't act: routing is 'soft'"),
    ({"routing": "timed", "prior": "paper"}, "routing='learned', has a prior"),
    ({"routing": "fixed", "prior": "none"}, "leave prior out"),
    ({"routing": ["soft"]}, r"routing is \['soft'\]; choose one of"),
    ({"low_beside": 1}, "low_beside is 1"),
]


@pytest.mark.parametrize(("options", "message"), IDLE)
def test_options_that_could_not_act_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FreqAttention(DIM, HEADS, CONFIG, **options)
    with pytest.raises(ValueError, match=message):
        FreqFormerTransformer3DModel(num_layers=1, num_heads=HEADS, head_dim=8, **options)


@pytest.mark.parametrize(("dim", "heads"), [(24.0, 3), (24, True), ("24", 3), (24, None)])
def test_sizes_of_a_wrong_kind_are_named(dim: Any, heads: Any) -> None:
    with pytest.raises(ValueError, match="whole numbers"):
        FreqAttention(dim, heads, CONFIG)


def test_defaults_say_what_acts() -> None:
    soft, dense = (
        FreqAttention(DIM, HEADS, CONFIG),
        FreqAttention(DIM, HEADS, CONFIG, attention="dense"),
    )
    learned = FreqAttention(DIM, HEADS, CONFIG, routing="learned")
    assert (soft.routing, dense.routing) == ("soft", None)
    assert soft.router is not None
    assert soft.router.prior == "none"
    assert learned.router is not None
    assert learned.router.prior == "paper"
