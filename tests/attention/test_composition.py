"""Attention inside torch.compile, torch.func and gradients of gradients, on the CPU."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.support.layers import CONFIG, GRID, HEADS, TIMESTEP, make_input, make_layer, make_rotary
from torch import Tensor

from freqformer import FreqFormerConfig, Grid, frequency_attention
from freqformer.config import Band

GRIDS = (Grid(3, 4, 6), Grid(4, 8, 5), Grid(5, 5, 9))
SMALL = FreqFormerConfig(
    tile=(1, 2, 4), compression=4, mid_tiles=2, window=(1, 1, 1), summary_tokens=3
)


def tensors_for(grid: Grid, heads: int = 3, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [
        torch.randn(1, grid.num_tokens, heads, 4, dtype=dtype).requires_grad_() for _ in range(3)
    ]


@pytest.mark.parametrize("impl", ["eager", "reference"])
def test_compiled_graphs_hold_the_call_whole(impl: str) -> None:
    """In a process without run-time type checks, which no trace can follow."""
    program = [sys.executable, "-m", "tests.support.compiled_calls", "cpu", "aot_eager", impl]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:-1] == ["same bits", "2 graphs", "2 2 layer graphs", "refused"]


@pytest.mark.parametrize("band", list(Band))
def test_gradients_have_gradients(band: Band) -> None:
    grid = Grid(2, 4, 4)
    tensors = [
        x[:, :, :1].detach().requires_grad_() for x in tensors_for(grid, dtype=torch.float64)
    ]

    def attend(*given: Tensor) -> Tensor:
        return frequency_attention(*given, grid=grid, allocation=[band], config=SMALL, impl="eager")

    assert torch.autograd.gradgradcheck(attend, tensors, fast_mode=True)


def test_torch_func_takes_gradients_of_the_layer() -> None:
    layer, hidden = make_layer(routing="soft"), make_input()
    weights = {name: x.detach() for name, x in layer.named_parameters()}

    def loss(given: dict[str, Tensor]) -> Tensor:
        return (
            torch.func.functional_call(layer, given, (hidden, GRID, TIMESTEP, make_rotary()))
            .square()
            .sum()
        )

    grads = torch.func.grad(loss)(weights)
    loss(dict(layer.named_parameters())).backward()
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(grads[name], parameter.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit.script.*:DeprecationWarning"
)  # torch's own forward mode
def test_vmap_and_forward_mode_are_refused_with_the_remedy() -> None:
    grid = GRIDS[0]
    tensors = [x.detach() for x in tensors_for(grid)]

    def attend(query: Tensor) -> Tensor:
        return frequency_attention(
            query, *tensors[1:], grid=grid, allocation=[2] * 3, config=CONFIG, impl="eager"
        )

    with pytest.raises(ValueError, match="fold the mapped axis into the batch"):
        torch.vmap(attend)(torch.stack([tensors[0]] * 2))
    with pytest.raises(ValueError, match="fold the mapped axis into the batch"):
        torch.vmap(torch.func.grad(lambda x: attend(x).sum()))(torch.stack([tensors[0]] * 2))
    layer = make_layer(routing="fixed")
    with pytest.raises(ValueError, match="fold the mapped axis into the batch"):
        torch.vmap(lambda x: layer(x, GRID, TIMESTEP))(torch.stack([make_input()] * 2))
    with pytest.raises(ValueError, match="take reverse mode"):
        torch.func.jvp(attend, (tensors[0],), (torch.ones_like(tensors[0]),))


@pytest.mark.parametrize("routing", ["soft", "timestep", "hard", "fixed"])
def test_every_parameter_gets_a_gradient_in_one_step(routing: Any) -> None:
    """A process of several that finds a parameter without one waits for it, unless told that some
    are unused."""
    for config in (
        CONFIG,
        replace(CONFIG, summary_tokens=0),
        replace(CONFIG, band_features="band_gains"),
    ):
        for allocation in (
            [Band.HIGH] * HEADS,
            [Band.LOW] * HEADS,
            [0, 1, 2],
            [Band.DENSE] * HEADS,
        ):
            if allocation[0] == Band.DENSE and routing != "fixed":
                continue
            if (
                allocation[1] == Band.LOW
                and routing == "hard"
                and config.band_features == "band_gains"
            ):
                continue  # which bands a router chooses decides whether gains are used
            layer = make_layer(config, routing=routing, allocation=allocation).train()
            if routing == "hard":
                layer.set_router_training("all")
            layer(make_input(), GRID, TIMESTEP).square().mean().backward()
            assert [name for name, x in layer.named_parameters() if x.grad is None] == []
