"""diffusers' context parallelism by Ulysses with frequency attention, on two ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from tests.support.ranks import run_ranks
from torch import Tensor

from freqformer.config import FreqFormerConfig
from freqformer.distributed import ContextParallel
from freqformer.grid import Grid
from freqformer.integrations.diffusers.query_key import Queries
from freqformer.integrations.diffusers.ulysses import attend_across, ulysses_of
from freqformer.ops.parameters import AttentionParameters, KnownBands

TOLERANCE = 1e-5
"""In float32, gradients included."""


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank found."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    run_ranks("shared_diffusers.py", 2, folder)
    files = [folder / f"errors-{rank}.json" for rank in range(2)]
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


@pytest.mark.parametrize("family", ["Wan", "LTX", "LTX-2", "LTX-2.3", "MiniMax-H3"])
def test_two_ranks_give_what_one_gives(errors: list[dict[str, Any]], family: str) -> None:
    """In either order of the two calls; for Wan gradients too, weights sharded by FSDP2, and
    compiled attention, one graph for all layers and timesteps."""
    for found in errors:
        assert len(found[family]) >= (5 if "LTX-2" in family else 7)
        assert not {name: x for name, x in found[family].items() if not x <= TOLERANCE}


@pytest.mark.parametrize("family", ["Wan", "LTX", "LTX-2", "LTX-2.3", "MiniMax-H3"])
def test_projections_lie_between_start_and_wait(errors: list[dict[str, Any]], family: str) -> None:
    """Values are projected while queries and keys travel, and the first half of the output while
    the second does."""
    for found in errors:
        expected = (
            "to_q to_k start start to_v start wait wait wait start start wait to_out wait to_out"
        )
        assert expected in found["calls"][family]


def test_a_ring_is_refused_with_the_reason(errors: list[dict[str, Any]]) -> None:
    for found in errors:
        assert "ring_degree is 2" in found["ring"]
        assert "take ulysses_degree" in found["ring"]


@pytest.mark.parametrize("case", ["LTX-2", "LTX-2.3", "LTX-2, masked"])
def test_what_diffusers_cannot_do_by_itself(errors: list[dict[str, Any]], case: str) -> None:
    """When one of these passes, diffusers mended its plan, or its masks of heads: then what the
    plug-in does about it can go."""
    for found in errors:
        assert "must match the size of tensor" in found["alone"][case]


def attend(x: Tensor, context: ContextParallel, bands: KnownBands, **named: Any) -> Tensor:
    queries = Queries(x, x, AttentionParameters())
    config = FreqFormerConfig()
    return attend_across(
        queries, lambda: x, context, lambda out, _: out,
        grid=Grid(5, 3, 9), allocation=bands, config=config, **named,
    )  # fmt: skip


def test_one_gpu_is_no_context() -> None:
    assert ulysses_of(None) is None


@pytest.mark.parametrize(
    ("tokens", "named", "message"),
    [
        (68, {"num_text_tokens": 4}, "given 68 tokens on rank 0; 70 are allowed"),
        (67, {}, "given 67 tokens on rank 0; 68 are allowed"),
    ],
)
def test_what_ranks_cannot_share_is_refused(tokens: int, named: dict, message: str) -> None:
    context = ContextParallel(cast(Any, None), 2, 0)
    x = torch.zeros(1, tokens, 2, 8)
    bands = KnownBands(torch.tensor([[0, 2]]), (0, 2))
    with pytest.raises(ValueError, match=message):
        attend(x, context, bands, **named)


def test_more_ranks_than_heads_are_refused() -> None:
    context = ContextParallel(cast(Any, None), 3, 0)
    x = torch.zeros(1, 45, 2, 8)
    bands = KnownBands(torch.tensor([[0, 2]]), (0, 2))
    with pytest.raises(ValueError, match="ulysses_degree is 3 and the layers have 2 heads"):
        attend(x, context, bands)
