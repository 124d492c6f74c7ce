"""Heads are dealt so that ranks finish together."""

from __future__ import annotations

import pytest
import torch

from freqformer.distributed import deal_heads
from freqformer.distributed.heads import head_costs


def load(costs: torch.Tensor, ranks: int) -> list[float]:
    return [float(costs[heads].sum()) for heads in deal_heads(costs, ranks)]


def test_every_head_goes_to_one_rank() -> None:
    for heads, ranks in ((1, 1), (5, 2), (24, 4), (7, 7), (40, 16)):
        dealt = deal_heads(torch.rand(heads), ranks)
        assert sorted(torch.cat(dealt).tolist()) == list(range(heads))
        assert min(map(len, dealt)) >= 1


def test_a_third_of_the_heads_in_each_band_is_even() -> None:
    """In order two ranks would have 8 cheap heads and 4 middle ones, and the dear ones beside."""
    costs = torch.tensor([1.0] * 8 + [5.0] * 8 + [9.0] * 8)
    assert load(costs, 2) == [60.0, 60.0]
    assert load(costs, 8) == [15.0] * 8
    in_order = [float(part.sum()) for part in costs.chunk(2)]
    assert max(in_order) > 1.4 * max(load(costs, 2))


def test_ranks_with_one_head_less_get_the_dearest() -> None:
    costs = torch.tensor([1.0, 9.0, 1.0])
    assert [heads.tolist() for heads in deal_heads(costs, 2)] == [[1], [0, 2]]


def test_more_ranks_than_heads_are_refused() -> None:
    with pytest.raises(ValueError, match=r"cp is 4 and the layer has 3 heads.*lower cp"):
        deal_heads(torch.ones(3), 4)


def test_a_head_costs_what_it_does_in_all_samples() -> None:
    bands = torch.tensor([[0, 1, 3], [3, 1, 0]])
    assert head_costs((1.0, 5.0, 7.0, 20.0), bands).tolist() == [21.0, 10.0, 21.0]
