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
from freqformer.ops.architectures import architecture_name
from freqformer.ops.backends import HOPPER, resolve

pytest.importorskip("triton")

from tests.support.attend_cases import LARGE, AttendCase, check_case, queries_of, random_case
from tests.support.attend_gpu import check_a_graph_replays, check_nothing_else_is_written
from tests.support.attend_grads import check_grads, random_output_grads
from tests.support.numerics import Pool, nan_filled_allocations

from freqformer.ops.block_sparse.gluon import launch, launch_backward
from freqformer.ops.block_sparse.triton import launch as triton_launch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or architecture_name(torch.device("cuda")) != HOPPER,
        reason="needs a Hopper GPU",
    ),
]
HEAD_DIMS = (64, 128, 64, 128, 40, 96)
"""The last two are padded to the others."""
FORMS = 40
CALLS = 52
"""Of every form; most in `LARGE` have tiles of more than 64 tokens and run the Gluon kernel."""


def cases(form: int, count: int, first: int = 0) -> Iterator[tuple[AttendCase, dict[str, Any]]]:
    """Random cases of one form, in 16 bits: a form in float32 is drawn in bfloat16 or float16."""
    for seed in range(form * CALLS + first, form * CALLS + first + count):
        case, told = random_case(seed, form=form, grids=LARGE, head_dims=HEAD_DIMS, device="cuda")
        if told["dtype"] == torch.float32:
            told["dtype"] = torch.bfloat16 if form % 2 else torch.float16
            narrow = (x.to(told["dtype"]) for x in vars(case.buffers).values())
            case = replace(case, buffers=type(case.buffers)(*narrow))
        yield case, told


@pytest.mark.parametrize("form", range(FORMS))
def test_random_cases(form: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "TEXT_PART_TILES", 8)
    # Tiles of at most 64 tokens too, which a call leaves to the Triton kernel.
    monkeypatch.setattr(launch, "unfit", lambda slots, buffers: None)
    pool = Pool()
    for case, told in cases(form, CALLS):
        with nan_filled_allocations():
            got = launch.attend(**case.arguments)
        check_case(case, got, told, pool)
    pool.check(least=10)


@pytest.mark.parametrize("form", range(FORMS))
def test_random_gradients(form: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "unfit", lambda slots, buffers: None)
    monkeypatch.setattr(launch_backward, "unfit", lambda slots, buffers: None)
    pool = Pool()
    for case, told in cases(form, CALLS):
        with nan_filled_allocations():
            check_grads(
                case, told, pool, outliers=told["outliers"] > 1, own_forward=True, impl="gluon"
            )
    pool.check(least=10)


@pytest.mark.parametrize("backward", [False, True])
def test_nothing_beside_the_outputs_is_written(backward: bool) -> None:
    drawn = (drawn for form in range(4) for drawn in cases(form, 5))
    check_nothing_else_is_written(launch.attend, drawn, backward=backward)


@pytest.mark.parametrize("form", range(4))
def test_what_the_backward_reads_is_the_triton_kernels(form: int) -> None:
    """The log-sum-exp, and outputs with what rounding took from them: the same before rounding, but
    for the sums' order."""
    for case, _ in cases(form, 3):
        mine, theirs = (
            code.attend(**case.arguments, backward=True) for code in (launch, triton_launch)
        )
        bands = case.rows.allocation.tolist()
        held = [queries_of(case, band).cuda() for band in bands]
        for row, places in enumerate(held):
            torch.testing.assert_close(
                mine.lse[row, places], theirs.lse[row, places], rtol=1e-5, atol=1e-5
            )
            assert mine.rounding_residual is not None
            assert theirs.rounding_residual is not None
            wide = [given.rounding_residual[row, places].float() for given in (mine, theirs)]
            unit = 2.0**-7 if case.buffers.query.dtype == torch.bfloat16 else 2.0**-10
            largest = float(case.buffers.value[row].nan_to_num().abs().max())
            for residual in wide:
                assert float(residual.abs().max()) <= unit * largest
                assert float(residual.abs().max()) > 0


def test_a_thousand_repeats_give_the_same_bits() -> None:
    case, _ = next(cases(1, 1))
    changed = torch.zeros((), dtype=torch.int64, device="cuda")
    # The same NaN where a row has no such queries and nothing is written.
    with nan_filled_allocations():
        first = launch.attend(**case.arguments, backward=True)
        for _ in range(1000):
            again = launch.attend(**case.arguments, backward=True)
            for mine, other in zip(first, again, strict=True):
                changed += (mine.view(torch.uint8) != other.view(torch.uint8)).sum()
    assert int(changed) == 0


def test_gradients_have_the_same_bits_a_thousand_times() -> None:
    # Of tiles that its kernels take, and without gates, whose gradients are others' to give.
    drawn = (case for form in range(FORMS) for case, _ in cases(form, 1))
    case = next(x for x in drawn if x.plan.layout.slots > 64 and not x.rows.low_branch)
    outputs = launch.attend(**case.arguments, backward=True)
    grads = random_output_grads(case)
    changed = torch.zeros((), dtype=torch.int64, device="cuda")
    with nan_filled_allocations():
        first = launch_backward.attend_backward(grads, outputs, **case.arguments)
        for _ in range(1000):
            again = launch_backward.attend_backward(grads, outputs, **case.arguments)
            for name, mine in vars(first).items():
                other = getattr(again, name)
                if mine is not None:
                    changed += (mine.view(torch.uint8) != other.view(torch.uint8)).sum()
    assert int(changed) == 0


def test_the_launch_is_captured_in_a_graph() -> None:
    check_a_graph_replays(launch.attend, *next(cases(1, 1)))


@pytest.mark.filterwarnings("default")  # of the compiler's own code
@pytest.mark.parametrize("compiled", [False, True])
def test_a_layer_runs_it(compiled: bool) -> None:
    """Outputs and gradients of a layer are those of impl="triton", to rounding."""
    torch.manual_seed(0)
    grid = Grid(5, 16, 20)
    layer = FreqAttention(256, 4, FreqFormerConfig()).to("cuda", torch.bfloat16)
    hidden = torch.randn(2, grid.num_tokens, 256, device="cuda", dtype=torch.bfloat16)
    timestep = torch.tensor([0.2, 0.9], device="cuda")
    results = []
    for impl in ("gluon", "triton"):
        layer.zero_grad()
        call = torch.compile(layer, fullgraph=True) if compiled and impl == "gluon" else layer
        out = call(hidden, grid, timestep, impl=impl)
        out.float().square().sum().backward()
        grads = [p.grad.clone() for p in layer.parameters() if p.grad is not None]
        results.append([out.detach(), *grads])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0.05, atol=0.02 * float(theirs.abs().max()))


def test_what_it_cannot_run_is_refused() -> None:
    wide = torch.zeros(3, 2, 1, 1, 64, device="cuda")
    with pytest.raises(ValueError, match="impl is 'gluon', which can't run: the tensors are"):
        resolve("gluon", (wide[0], wide[1], wide[2]))
    narrow = torch.zeros(3, 2, 1, 1, 32, device="cuda", dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="head_dim is 32, and 33 to 128 are allowed"):
        resolve("gluon", (narrow[0], narrow[1], narrow[2]))
