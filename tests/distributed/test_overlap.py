"""All-to-alls travel while a layer computes, which changes no bit; a rank that is lost is told of.

What overlaps is read off the order of calls: a collective starts at once, and only what comes after
its wait is held up.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.ranks import run_ranks
from tests.support.shared_overlap import CONFIGS, TIMEOUT_S

STATISTICS = "start start start wait wait wait"
"""A sample of queries, keys and the input, for routers that read them; all three travel at once."""
BACK = "start start wait to_out wait to_out"
BACKWARD = "to_out start to_out start wait wait"


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks found."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    run_ranks("shared_overlap.py", 2, folder)
    files = [folder / f"overlap-{rank}.json" for rank in range(2)]
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


@pytest.mark.parametrize(
    ("name", "before", "gates"),
    [
        ("default", f" {STATISTICS}", " gates"),
        ("bf16", f" {STATISTICS}", " gates"),
        ("paper", f" {STATISTICS}", ""),
        ("fixed", "", " gates"),
    ],
)
def test_projections_lie_between_start_and_wait(
    ranks: list[dict[str, Any]], name: str, before: str, gates: str
) -> None:
    """Values are projected while queries, keys and gates travel, and the first part of the output
    while the second does; backward the same the other way round."""
    gate = gates and " start"
    forward = (
        f"to_q to_k{before} start start{gates}{gate} to_v start wait wait{gates and ' wait'} wait"
    )
    starts = f"start start start{gate}"
    backward = f"{BACKWARD} {starts} wait to_v{gates and ' wait'}{gates} wait wait to_k to_q"
    expected = f"{forward} {BACK} backward {backward}"
    for found in ranks:
        assert " ".join(found[name]["calls"]) == expected


@pytest.mark.parametrize("name", [*CONFIGS, "bf16"])
def test_no_bit_depends_on_it(ranks: list[dict[str, Any]], name: str) -> None:
    """Output and every gradient, of shares that are not even; and the output without gradients."""
    for found in ranks:
        assert found[name]["differ"] == []
        assert found[name]["finite"]
        assert found[name]["calls"] != found[name]["calls waited for"]


def test_a_rank_that_does_not_answer_ends_the_others_by_the_timeout(
    ranks: list[dict[str, Any]],
) -> None:
    assert f"Timed out waiting {1000 * TIMEOUT_S:.0f}ms" in ranks[0]["silent"]


def test_a_rank_that_died_is_told_of(ranks: list[dict[str, Any]]) -> None:
    assert "Connection" in ranks[0]["dead"]
