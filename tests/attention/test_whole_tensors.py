"""No pass over a layer's whole tensors, forward or backward, but in projections and kernels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from freqformer.attention import FreqAttention
from freqformer.attention.projections import project_all
from freqformer.config import FreqFormerConfig
from freqformer.distributed import ContextParallel
from freqformer.grid import Grid

triton = pytest.importorskip("triton")
if not triton.knobs.runtime.interpret:
    pytest.skip("TRITON_INTERPRET=1 is not set: kernels would need a GPU", allow_module_level=True)

from tests.support.interpreter import patch_language_once  # noqa: E402
from triton.runtime.interpreter import GridExecutor  # noqa: E402

from freqformer.ops import fused_operation  # noqa: E402

# The interpreter's own: it turns arrays of one element into loop bounds.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Conversion of an array with ndim:DeprecationWarning"
)
GRID, HEADS, HEAD_DIM, BATCH = Grid(2, 4, 3), 3, 16, 2
CHANNELS = HEADS * HEAD_DIM
WHOLE = BATCH * GRID.num_tokens * CHANNELS
ALLOWED = {"addmm", "mm", "addmm_", "sum", "detach", "_unsafe_view"}
"""Projections, their gradients, the bias's sum over tokens, and what passes over nothing."""
ROTARY = (
    torch.zeros(GRID.num_tokens, HEAD_DIM // 2),
    torch.ones(GRID.num_tokens, HEAD_DIM // 2),
)
OPERATIONS = {
    "freqformer::attention": fused_operation._attention,
    "freqformer::attention_backward": fused_operation._attention_backward,
}
"""Whose own operations of PyTorch count too."""


class Passes(TorchDispatchMode):
    """Notes PyTorch's operations over whole tensors, but for views, projections and empty ones.

    Whole are those of any multiple of `whole` numbers.
    """

    def __init__(self, whole: int) -> None:
        super().__init__()
        self.found: list[str] = []
        self._whole = whole

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if name in OPERATIONS:
            with self:
                return OPERATIONS[name]._init_fn(*args, **(kwargs or {}))
        out = func(*args, **(kwargs or {}))
        name = name.removeprefix("aten::")
        sizes = [x.numel() for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
        # Weights of the router are as large, and no multiple of it.
        whole = any(size > 0 and size % self._whole == 0 for size in sizes)
        if whole and not func.is_view and "::" not in name and "empty" not in name:
            self.found += [] if name in ALLOWED else [name]
        return out


@pytest.fixture(autouse=True, scope="module")
def _fast_interpreter() -> None:
    patch_language_once()


def hide_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter computes with PyTorch's operations, which are none of the layer's."""
    run = GridExecutor.__call__

    def launched(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes():
            return run(self, *args, **kwargs)

    monkeypatch.setattr(GridExecutor, "__call__", launched)


@pytest.mark.parametrize("name", ["default", "paper", "learned summaries"])
def test_a_layer_passes_over_no_whole_tensor(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {
        "default": FreqFormerConfig(),
        "paper": replace(FreqFormerConfig.paper(), summary_tokens=2),
        "learned summaries": FreqFormerConfig(summary_tokens=2),
    }[name]
    config = replace(config, tile=(2, 2, 3), compression=8, mid_tiles=1, window=(1, 1, 1))
    layer = FreqAttention(CHANNELS, HEADS, config).to(torch.bfloat16)
    hide_launches(monkeypatch)
    hidden = torch.randn(BATCH, GRID.num_tokens, CHANNELS, dtype=torch.bfloat16, requires_grad=True)
    grad = torch.randn(BATCH, GRID.num_tokens, CHANNELS, dtype=torch.bfloat16)
    with Passes(WHOLE) as passes:
        out = layer(hidden, GRID, torch.tensor([0.2, 0.9]), ROTARY, impl="triton")
        out.backward(grad)
    assert passes.found == []


def test_nor_does_a_rank_that_shares_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of two, each with half of the tokens and heads; what would arrive is not looked at."""
    channels = 4 * HEAD_DIM
    config = FreqFormerConfig(tile=(2, 2, 3), compression=8, mid_tiles=1, window=(1, 1, 1))
    layer = FreqAttention(channels, 4, config).to(torch.bfloat16)
    layer.router.float()
    hide_launches(monkeypatch)
    tokens = GRID.num_tokens // 2
    hidden = torch.randn(1, tokens, channels, dtype=torch.bfloat16, requires_grad=True)
    grad = torch.randn(1, tokens, channels, dtype=torch.bfloat16)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        layer.set_context(ContextParallel(cast(Any, dist.group.WORLD), 2, 0))
        with Passes(tokens * 2 * HEAD_DIM) as passes:
            out = layer(
                hidden, GRID, torch.tensor([0.2]), ROTARY, token_order="tile", impl="triton"
            )
            out.backward(grad)
    finally:
        dist.destroy_process_group()
    # A sample is gathered, which of so small a video is all of it.
    sampled = ["index_select", "clone", "repeat", "masked_fill"]
    assert [name for name in passes.found if name not in sampled] == []


def layers_and_tokens() -> tuple[list[nn.Linear], Tensor]:
    generator = torch.Generator().manual_seed(5)
    layers = [nn.Linear(6, 4), nn.Linear(6, 6, bias=False), nn.Linear(6, 2)]
    for parameter in (x for layer in layers for x in layer.parameters()):
        nn.init.normal_(parameter, generator=generator)
    return [x.double() for x in layers], torch.randn(2, 5, 6, generator=generator).double()


def test_projections_have_the_gradients_of_linear_layers() -> None:
    layers, tokens = layers_and_tokens()
    tokens.requires_grad_()
    weights = [x for layer in layers for x in layer.parameters()]
    results = []
    for outputs in (project_all(tokens, layers), [layer(tokens) for layer in layers]):
        # Of the last layer nothing is made.
        loss = torch.cat(outputs[:2], -1).square().sum()
        given = torch.autograd.grad(loss, [tokens, *weights[:3]], create_graph=True)
        cubes = torch.cat([x.flatten() for x in given]).pow(3).sum()
        second = torch.autograd.grad(cubes, tokens)
        results.append([*outputs, *given, *second])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)


def test_a_layer_that_is_more_than_linear_is_called() -> None:
    layers, tokens = layers_and_tokens()
    tokens.requires_grad_()
    layers[1].register_forward_hook(lambda layer, given, out: out.mul(2))
    doubled = project_all(tokens, layers)[1]
    torch.testing.assert_close(doubled, 2 * nn.functional.linear(tokens, layers[1].weight))


def test_autocast_is_that_of_linear_layers() -> None:
    layers, tokens = layers_and_tokens()
    layers = [layer.float() for layer in layers]
    tokens = tokens.float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        together = project_all(tokens, layers)
        apart = [layer(tokens) for layer in layers]
    for actual, expected in zip(together, apart, strict=True):
        assert actual.dtype == torch.bfloat16
        assert torch.equal(actual, expected)
    together[0].sum().backward()
    for x in (tokens, layers[0].weight):
        assert x.grad is not None
        assert x.grad.dtype == torch.float32
