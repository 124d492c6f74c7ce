"""Lengths: tokens and durations, and what is neither."""

from __future__ import annotations

import pytest

from freqformer.simulate import ProfileError, load_model
from freqformer.simulate.model.lengths import parse_length

MODEL = load_model("wan2.1-14b")


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("65536", 65_536),
        ("64K", 65_536),
        ("64k", 65_536),
        ("1M", 1_048_576),
        ("0.5M", 524_288),
        ("1e6", 1_000_000),
        ("6.4E4", 64_000),
        (" +16384 ", 16_384),
    ],
)
def test_numbers_of_tokens(text: str, tokens: int) -> None:
    assert parse_length(MODEL, text) == (MODEL.grid_for_tokens(tokens, "720p"), None)
    assert parse_length(MODEL, tokens) == parse_length(MODEL, text)


def test_durations() -> None:
    assert parse_length(MODEL, "5s") == (MODEL.grid(21, "720p"), None)
    assert parse_length(MODEL, "5s@480p/24") == (MODEL.grid(31, "480p"), 24.0)


@pytest.mark.parametrize(
    "text",
    [
        "five",
        "",
        "5m",
        "1.5",
        "64KB",
        "64Ki",
        "1e400",
        "1e-3",
        "inf",
        "nan",
        "-3",
        "0K",
        "99M",
        "5s@9000p",
        "5s/0",
    ],
)
def test_what_is_neither_is_refused(text: str) -> None:
    with pytest.raises(ProfileError, match=r"is .*(allowed|choose one)"):
        parse_length(MODEL, text)


def test_numbers_out_of_range_are_refused() -> None:
    for number in (0, -1, 10**30, 10**5000, True):
        with pytest.raises(ProfileError, match="tokens is"):
            parse_length(MODEL, number)


def test_very_long_durations_are_refused() -> None:
    with pytest.raises(ProfileError, match="seconds is inf"):
        parse_length(MODEL, "9" * 400 + "s")
