"""How much a layer launches on a GPU in addition to its projections: limits that hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from freqformer.attention import FreqAttention
from freqformer.config import FreqFormerConfig
from freqformer.grid import Grid
from freqformer.routing import RoutingTable

triton = pytest.importorskip("triton")
if not triton.knobs.runtime.interpret:
    pytest.skip(
        "TRITON_INTERPRET=1 is not set: launches are counted in the interpreter",
        allow_module_level=True,
    )

from tests.support.interpreter import patch_language_once  # noqa: E402
from tests.support.launches import MOST, beside_projections, launches  # noqa: E402

# The interpreter's own: it turns arrays of one element into loop bounds.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Conversion of an array with ndim:DeprecationWarning"
)
GRID, HEADS, HEAD_DIM = Grid(2, 4, 3), 3, 16
TIMESTEP = torch.tensor([0.2, 0.9])
ROTARY = (torch.zeros(GRID.num_tokens, HEAD_DIM // 2), torch.ones(GRID.num_tokens, HEAD_DIM // 2))
OPERATION = ["prepare_tiles", "finish_rows", "attention_kernel", "merge_kernel"]
SELECTING = [*OPERATION[:2], "select_tiles", *OPERATION[2:]]


@pytest.fixture(autouse=True, scope="module")
def _fast_interpreter() -> None:
    patch_language_once()


def make_layer(**options: Any) -> FreqAttention:
    config = FreqFormerConfig(
        tile=(2, 2, 3), compression=8, mid_tiles=1, window=(1, 1, 1), **options
    )
    return FreqAttention(HEADS * HEAD_DIM, HEADS, config)


def make_table(layer: FreqAttention, *buckets: tuple[int, ...]) -> RoutingTable:
    bands = torch.tensor(buckets)[:, None]
    return RoutingTable(bands, torch.ones_like(bands), layer.config)


def counted(layer: FreqAttention, patch: pytest.MonkeyPatch) -> list[str]:
    hidden = torch.randn(len(TIMESTEP), GRID.num_tokens, HEADS * HEAD_DIM)
    return beside_projections(
        launches(lambda: layer(hidden, GRID, TIMESTEP, ROTARY, impl="triton"), patch)
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["sum_tiles", "score_heads", *OPERATION]),
        ({"routing": "timestep"}, ["score_heads", *OPERATION]),
        ({"routing": "timestep", "allocation": "thirds"}, ["score_heads", *SELECTING]),
        ({"routing": "fixed"}, OPERATION),
        ({"routing": "fixed", "low_branch": False}, OPERATION[:3]),
        ({"routing": "hard", "allocation": "thirds"}, ["sum_tiles", "score_heads", *SELECTING]),
    ],
)
def test_a_layer(
    options: dict[str, Any], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no head is MID nothing selects tiles, and weights of branches come with the scores."""
    assert counted(make_layer(**options), monkeypatch) == expected


@pytest.mark.parametrize("row", list(MOST))
def test_rows_that_the_performance_page_lists(row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {
        "layer default": {},
        "layer timestep": {"routing": "timestep"},
        "layer frozen": {"routing": "hard"},
        "layer fixed gates": {"routing": "fixed"},
        "layer windows": {"routing": "fixed", "low_branch": False},
    }
    layer = make_layer(**options[row])
    if row == "layer frozen":
        layer.set_routing_table(make_table(layer, (2, 2, 2)))
    assert len(counted(layer, monkeypatch)) <= MOST[row]


@pytest.mark.parametrize(
    ("buckets", "expected"),
    [
        ([(2, 2, 2)], OPERATION),
        ([(2, 2, 1), (2, 2, 1)], SELECTING),
        ([(2, 2, 2), (0, 2, 2)], ["take_bands", *OPERATION]),
        ([(0, 1, 2), (2, 2, 2)], ["take_bands", *SELECTING]),
    ],
)
@pytest.mark.parametrize("routing", ["hard", "timestep"])
def test_a_frozen_table(
    buckets: list[tuple[int, ...]],
    expected: list[str],
    routing: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A table that says the same at every timestep isn't looked into on the device; a router that
    weighs goes on beside one."""
    layer = make_layer(routing=routing)
    layer.set_routing_table(make_table(layer, *buckets))
    launched = counted(layer, monkeypatch)
    assert [name for name in launched if name != "score_heads"] == expected
    assert launched.count("score_heads") == int(routing == "timestep")
    assert len(expected) <= 6
