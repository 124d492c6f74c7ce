"""Between a layer's tokens and its heads on other ranks nothing passes over the tokens but products
and all-to-alls. Values and gradients are held in tests/distributed/test_shared_video.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from freqformer.attention.exchanged import (
    Projection,
    project_returned,
    send_projected,
    writes_in_place,
)
from freqformer.distributed import ContextParallel
from freqformer.distributed.exchange import Route, at_heads

HEADS, WIDTH, TOKENS = 6, 8, 1009
CHANNELS = HEADS * WIDTH
SMALLEST = TOKENS * 2 * WIDTH
"""Numbers of a rank's tokens and the fewest of its heads; weights have fewer."""
PRODUCTS = {"mm", "addmm", "addmm_"}
EXCHANGES = {"all_to_all_single", "wait_tensor"}
NO_PASS = {"new_empty", "new_empty_strided", "empty_like", "detach", "_unsafe_view"}


class Passes(TorchDispatchMode):
    """Counts all-to-alls, and operations over as many numbers as a rank's tokens of some heads, but
    for views."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.partition("::")[2]
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)]
        large = any(x.numel() >= SMALLEST for x in tensors)
        if name in EXCHANGES or (large and not func.is_view and name not in NO_PASS):
            self.found[name] += 1
        return out


@pytest.fixture
def two_ranks() -> Iterator[Any]:
    """The group of a first rank; what it sends goes nowhere."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield dist.group.WORLD
    dist.destroy_process_group()


def passes(group: Any, batch: int) -> Counter[str]:
    """Of a layer's exchange forward and backward, without the attention between."""
    order = torch.randperm(HEADS)
    route = Route(ContextParallel(group, 2, 0), (TOKENS, TOKENS + 7), (order[:4], order[4:]))
    layers = [nn.Linear(CHANNELS, CHANNELS) for _ in range(4)]
    gates = nn.Linear(CHANNELS, 2 * HEADS)
    parts = [*map(Projection, layers[:3]), Projection(gates, branches=2)]
    hidden = torch.randn(batch, TOKENS, CHANNELS, requires_grad=True)
    with Passes() as counted:
        *qkv, gate = map(at_heads, send_projected(hidden, parts, route))
        out = project_returned(qkv[2], layers[3], route)
        ends = (out, qkv[0], qkv[1], gate)
        torch.autograd.backward(ends, [torch.empty_like(x) for x in ends])
    return counted.found


def test_one_sample_is_copied_nowhere(two_ranks: Any) -> None:
    found = passes(two_ranks, 1)
    # A bias's gradient reads what a product reads.
    assert set(found) <= PRODUCTS | EXCHANGES | {"sum"}
    # Queries, keys, values and gates, and the output: there and back.
    assert found["all_to_all_single"] == found["wait_tensor"] == 10


def test_several_samples_lie_side_by_side_as_they_travel(two_ranks: Any) -> None:
    found = passes(two_ranks, 2)
    assert set(found) <= PRODUCTS | EXCHANGES | {"sum", "clone", "copy_"}


def test_layers_that_are_more_than_products_are_called() -> None:
    layer = nn.Linear(8, 8)
    assert writes_in_place([layer, nn.Linear(8, 8)])
    layer.register_forward_hook(lambda *_: None)
    assert not writes_in_place([nn.Linear(8, 8), layer])
