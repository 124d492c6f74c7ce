"""Norms and rotary embeddings of other models: what they are, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from freqformer.attention import RotaryEmbedding, frequency_attention
from freqformer.config import FreqFormerConfig
from freqformer.grid import Grid
from freqformer.ops.parameters import AttentionParameters
from freqformer.ops.query_key import prepared

GRID = Grid(2, 3, 4)
VIDEO, TEXT, HEADS, WIDTH = 24, 3, 2, 8
CONFIG = FreqFormerConfig(tile=(1, 2, 2), mid_tiles=2, summary_tokens=2)
ALLOCATION = [0, 1]


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def qkv(text: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    query, key, value = (draw(1, VIDEO + text, HEADS, WIDTH) for _ in range(3))
    return query, key, value


def attend(tensors: tuple[Tensor, ...], text: int = 0, **named: Any) -> Tensor:
    return frequency_attention(
        *tensors,
        grid=GRID,
        allocation=ALLOCATION,
        config=CONFIG,
        num_text_tokens=text,
        impl="reference",
        **named,
    )


def turned(x: Tensor, angle: Tensor, pairs: list[tuple[int, int]]) -> Tensor:
    """x (..., D) by its definition, pair by pair; angle (..., P)."""
    out = x.clone()
    for index, (first, second) in enumerate(pairs):
        cos, sin = angle[..., index].cos(), angle[..., index].sin()
        out[..., first] = x[..., first] * cos - x[..., second] * sin
        out[..., second] = x[..., first] * sin + x[..., second] * cos
    return out


@pytest.mark.parametrize("pairs", ["interleaved", "halved"])
@pytest.mark.parametrize("count", [4, 3])
def test_pairs_by_their_definition(pairs: Any, count: int) -> None:
    """Of every head and text token, and with P = 3 of some channels alone."""
    query, key, _ = qkv(TEXT)
    angle = draw(1, VIDEO + TEXT, HEADS, count)
    given = AttentionParameters(rotary=RotaryEmbedding(angle.cos(), angle.sin(), pairs))
    places = [(2 * i, 2 * i + 1) for i in range(count)]
    if pairs == "halved":
        places = [(i, i + count) for i in range(count)]
    found = prepared(query, key, given, VIDEO)
    torch.testing.assert_close(found, tuple(turned(x, angle, places) for x in (query, key)))


def test_text_stays_where_tables_are_of_the_video() -> None:
    query, key, _ = qkv(TEXT)
    angle = draw(VIDEO, WIDTH // 2)
    given = AttentionParameters(rotary=RotaryEmbedding(angle.cos(), angle.sin()))
    for found, x in zip(prepared(query, key, given, VIDEO), (query, key), strict=True):
        assert torch.equal(found[:, VIDEO:], x[:, VIDEO:])
        assert not torch.equal(found[:, :VIDEO], x[:, :VIDEO])


@pytest.mark.parametrize("norm_text", [True, False])
def test_a_norm_across_heads_by_its_definition(norm_text: bool) -> None:
    query, key, _ = qkv(TEXT)
    weight = draw(HEADS, WIDTH)
    given = AttentionParameters(
        query_norm=weight, norm_across_heads=True, norm_eps=0.1, norm_text=norm_text
    )
    length = (query.square().mean((2, 3), keepdim=True) + 0.1).sqrt()
    wanted = query / length * weight
    if not norm_text:
        wanted[:, VIDEO:] = query[:, VIDEO:]
    found, same = prepared(query, key, given, VIDEO)
    torch.testing.assert_close(found, wanted)
    assert same is key


@pytest.mark.parametrize("impl", ["reference", "eager"])
def test_the_operation_takes_them_as_steps_before_it(impl: str) -> None:
    """Every band, with text that is turned and normalised too."""
    tensors = qkv(TEXT)
    angle = draw(1, VIDEO + TEXT, HEADS, 3)
    given = AttentionParameters(
        rotary=RotaryEmbedding(angle.cos(), angle.sin(), "halved"),
        query_norm=draw(HEADS, WIDTH),
        key_norm=draw(HEADS, WIDTH),
        norm_across_heads=True,
    )
    query, key, value = tensors
    named: dict[str, Any] = {
        "grid": GRID,
        "config": CONFIG,
        "num_text_tokens": TEXT,
        "impl": impl,
    }
    for bands in ([0, 1], [2, 3]):
        wanted = frequency_attention(
            *prepared(query, key, given, VIDEO), value, allocation=bands, **named
        )
        out = frequency_attention(*tensors, allocation=bands, parameters=given, **named)
        torch.testing.assert_close(out, wanted)


def tables(*shape: int) -> RotaryEmbedding:
    return RotaryEmbedding(torch.ones(shape), torch.zeros(shape))


def changed(record: Any, name: str, value: Any) -> Any:
    """A record with a value that types forbid."""
    object.__setattr__(record, name, value)
    return record


REFUSED = {
    "too many pairs": (tables(VIDEO, 5), r"rotary.cos is .*\(24, 5\).* and P up to 4 pairs"),
    "tokens": (tables(VIDEO + 1, 4), "with 24 tokens of the video or all 27"),
    "heads": (tables(1, VIDEO, 3, 4), r"\(1 or 1, tokens, 1 or 2, P\)"),
    "axes": (tables(VIDEO, HEADS, 4), r"floats \(tokens, P\)"),
    "shapes": (
        RotaryEmbedding(torch.ones(VIDEO, 4), torch.ones(VIDEO, 3)),
        r"rotary.sin is \(24, 3\); the shape of cos, \(24, 4\)",
    ),
    "pairs": (changed(tables(VIDEO, 4), "pairs", "thirds"), "pairs is 'thirds'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_tables_that_do_not_fit_are_refused(name: str) -> None:
    rotary, match = REFUSED[name]
    with pytest.raises(ValueError, match=match):
        attend(qkv(TEXT), TEXT, parameters=AttentionParameters(rotary=rotary))


def test_tables_of_another_kind_are_refused() -> None:
    given = changed(AttentionParameters(), "rotary", torch.ones(VIDEO, 4))
    with pytest.raises(ValueError, match="rotary is a Tensor; a RotaryEmbedding, or a pair"):
        attend(qkv(), parameters=given)


@pytest.mark.parametrize(("across", "shape"), [(True, (WIDTH,)), (False, (HEADS, WIDTH))])
def test_weights_of_the_other_norm_are_refused(across: bool, shape: tuple[int, ...]) -> None:
    given = AttentionParameters(key_norm=torch.ones(shape), norm_across_heads=across)
    with pytest.raises(ValueError, match=r"parameters.key_norm is .* are allowed"):
        attend(qkv(), parameters=given)
