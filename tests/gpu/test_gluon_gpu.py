"""The Gluon launch on a Hopper GPU, against float64, and as one of the backends."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from freqformer import buffers
from freqformer.attention import FreqAttention
from freqformer.config import FreqFormerConfig
from freqformer.grid import Grid
from freqformer.ops.backends import HOPPER, resolve

pytest.importorskip("triton")

from tests.support.attend_cases import LARGE, AttendCase, check_case, random_case
from tests.support.numerics import Pool, nan_filled_allocations

from freqformer.ops.block_sparse.gluon import launch
from freqformer.ops.block_sparse.triton import launch as triton_launch
from freqformer.plan import AttentionPlan

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() != HOPPER,
        reason="needs a Hopper GPU",
    ),
]
CANARY = -5.0
FORMS = 40
CALLS = 52
"""Of every form; most in `LARGE` have tiles of more than 64 tokens and run the Gluon kernel."""


def cases(form: int, count: int, first: int = 0) -> Iterator[tuple[AttendCase, dict[str, Any]]]:
    """Random cases of one form, in 16 bits: a form in float32 is drawn in bfloat16 or float16."""
    for seed in range(form * CALLS + first, form * CALLS + first + count):
        case, told = random_case(seed, form=form, grids=LARGE, head_dims=(64, 128), device="cuda")
        if told["dtype"] == torch.float32:
            told["dtype"] = torch.bfloat16 if form % 2 else torch.float16
            narrow = (x.to(told["dtype"]) for x in vars(case.buffers).values())
            case = replace(case, buffers=type(case.buffers)(*narrow))
        yield case, told


@pytest.mark.parametrize("form", range(FORMS))
def test_random_cases(form: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "TEXT_PART_TILES", 8)
    # Tiles of at most 64 tokens too, which a call leaves to the Triton kernel.
    monkeypatch.setattr(launch, "_unfit", lambda slots, key_rows: None)
    pool = Pool()
    for case, told in cases(form, CALLS):
        with nan_filled_allocations():
            got = launch.attend(**case.arguments)
        check_case(case, got, told, pool)
    pool.check(least=10)


def test_nothing_beside_the_outputs_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def guarded(query: torch.Tensor, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        size = torch.Size(shape).numel()
        memory = torch.full((size + 8192,), CANARY, dtype=dtype or query.dtype, device=query.device)
        made.append((memory, size))
        return memory[4096 : 4096 + size].view(shape)

    def outputs(
        query: torch.Tensor, plan: AttentionPlan, backward: bool
    ) -> triton_launch.AttentionOutputs:
        rows, queries, width = query.shape
        low, heads = plan.num_low_tokens, plan.num_heads
        return triton_launch.AttentionOutputs(
            out=guarded(query, rows // heads, queries - low, heads, width),
            low_out=guarded(query, rows, low, width),
            lse=guarded(query, rows, queries, dtype=torch.float32),
            rounding_residual=guarded(query, rows, queries, width) if backward else None,
        )

    monkeypatch.setattr(triton_launch, "empty_outputs", outputs)
    for form in range(4):
        for backward in (False, True):
            for case, told in cases(form, 5):
                check_case(case, launch.attend(**case.arguments, backward=backward), told)
    assert len(made) == 4 * 5 * (3 + 4)
    for memory, size in made:
        assert bool((memory[:4096] == CANARY).all())
        assert bool((memory[4096 + size :] == CANARY).all())


@pytest.mark.parametrize("form", range(4))
def test_what_the_backward_reads_is_the_triton_kernels(form: int) -> None:
    """out and its rounding residual add up to the same number before rounding."""
    for case, _ in cases(form, 3):
        mine, theirs = (
            code.attend(**case.arguments, backward=True) for code in (launch, triton_launch)
        )
        torch.testing.assert_close(mine.lse, theirs.lse, rtol=1e-5, atol=1e-5, equal_nan=True)
        for outputs in (mine, theirs):
            residual = outputs.rounding_residual
            assert residual is not None
            unit = 2.0**-7 if residual.dtype == torch.bfloat16 else 2.0**-10
            largest = float(outputs.out.nan_to_num().abs().max())
            assert float(residual.nan_to_num().abs().max()) <= unit * largest


def test_a_thousand_repeats_give_the_same_bits() -> None:
    case, _ = next(cases(1, 1))
    first = launch.attend(**case.arguments, backward=True)
    changed = torch.zeros((), dtype=torch.int64, device="cuda")
    for _ in range(1000):
        again = launch.attend(**case.arguments, backward=True)
        for mine, other in zip(first, again, strict=True):
            changed += (mine.view(torch.uint8) != other.view(torch.uint8)).sum()
    assert int(changed) == 0


def test_the_launch_is_captured_in_a_graph() -> None:
    case, told = next(cases(1, 1))
    launch.attend(**case.arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = launch.attend(**case.arguments)
    graph.replay()
    check_case(case, got, told)
    # New keys in the same memory: the graph reads what is there at its replay.
    case.buffers.key[:, :4].neg_()
    graph.replay()
    check_case(case, got, told)


@pytest.mark.parametrize("compiled", [False, True])
def test_auto_takes_it_in_a_layer(compiled: bool) -> None:
    """Outputs and gradients of a layer are those of impl="triton", to rounding."""
    torch.manual_seed(0)
    grid = Grid(5, 16, 20)
    layer = FreqAttention(256, 4, FreqFormerConfig()).to("cuda", torch.bfloat16)
    hidden = torch.randn(2, grid.num_tokens, 256, device="cuda", dtype=torch.bfloat16)
    timestep = torch.tensor([0.2, 0.9], device="cuda")
    half = torch.zeros(3, 2, 1, 1, 64, device="cuda", dtype=torch.bfloat16)
    assert resolve("auto", (half[0], half[1], half[2])).name == "gluon"
    results = {}
    for impl in ("auto", "gluon", "triton"):
        layer.zero_grad()
        call = torch.compile(layer, fullgraph=True) if compiled and impl == "auto" else layer
        out = call(hidden, grid, timestep, impl=impl)
        out.float().square().sum().backward()
        results[impl] = [
            out.detach(),
            *(p.grad.clone() for p in layer.parameters() if p.grad is not None),
        ]
    for mine, gluon, triton in zip(*results.values(), strict=True):
        if not compiled:
            assert torch.equal(mine, gluon)
        torch.testing.assert_close(mine, triton, rtol=0.05, atol=0.02 * float(triton.abs().max()))


def test_what_it_cannot_run_is_refused() -> None:
    wide = torch.zeros(3, 2, 1, 1, 64, device="cuda")
    with pytest.raises(ValueError, match="impl is 'gluon', which can't run: the tensors are"):
        resolve("gluon", (wide[0], wide[1], wide[2]))
    narrow = torch.zeros(3, 2, 1, 1, 32, device="cuda", dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="head_dim is 32, and 64, 128 are allowed"):
        resolve("gluon", (narrow[0], narrow[1], narrow[2]))
    assert resolve("auto", (narrow[0], narrow[1], narrow[2])).name == "triton"
