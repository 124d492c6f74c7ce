"""Gradients of impl="triton" in Triton's interpreter."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from freqformer.config import FreqFormerConfig
from freqformer.grid import Grid

triton = pytest.importorskip("triton")
if not triton.knobs.runtime.interpret:
    pytest.skip("TRITON_INTERPRET=1 is not set: kernels would need a GPU", allow_module_level=True)

from tests.support.cases import GATES, Case, make_inputs, run  # noqa: E402
from tests.support.fused import check_call  # noqa: E402
from tests.support.interpreter import patch_language_once  # noqa: E402
from tests.support.numerics import nan_filled_allocations  # noqa: E402
from tests.support.trained_calls import trained_calls  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

pytestmark = [
    # The interpreter's own: it turns arrays of one element into loop bounds.
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning"),
    # A LOW row has fewer queries than tokens. What is behind them is computed like the rest, and
    # never stored.
    pytest.mark.filterwarnings(
        "ignore:(All-NaN slice|invalid value|overflow) encountered:RuntimeWarning"
    ),
]
patch_language_once()

CONFIG = FreqFormerConfig(
    tile=(2, 4, 3), mid_tiles=2, window=(1, 1, 2), summary_tokens=2, compression=16
)
GRID = Grid(3, 4, 6)
"""Four tiles, of 24, 24, 12 and 12 tokens."""
LEARNED = ("summaries", "offsets", "rotary", "norm")


def small(**changes: Any) -> Case:
    told: dict[str, Any] = {
        "grid": GRID,
        "config": CONFIG,
        "allocation": ((0, 1, 2, 3),),
        "head_dim": 16,
    }
    return Case(**told | changes)


CASES = {
    "nothing learned": small(),
    "all learned": small(learned=LEARNED, num_text_tokens=3, mask="random"),
    "all learned, bfloat16": small(learned=LEARNED, num_text_tokens=3, dtype=torch.bfloat16),
    "pooling without norm": small(learned=("summaries", "rotary"), dtype=torch.float16),
    "pooling without rotary": small(learned=("summaries", "norm"), allocation=((0, 1, 2),)),
    "text behind a norm": small(
        learned=("norm",), num_text_tokens=33, mask="all", allocation=((0, 2),)
    ),
    "values": small(
        config=replace(CONFIG, band_features="high_pass_values"),
        learned=("rotary", "norm"),
        num_text_tokens=2,
    ),
    "gains": small(
        config=replace(CONFIG, band_features="band_gains"),
        learned=("norm",),
        allocation=((1, 2, 0),),
    ),
    "gains, text, float16": small(
        config=replace(CONFIG, band_features="band_gains"),
        learned=LEARNED,
        num_text_tokens=2,
        dtype=torch.float16,
    ),
    "strict": small(
        config=replace(CONFIG, band_features="own_band"), learned=LEARNED, allocation=((1, 2),)
    ),
    "axial": small(
        config=replace(CONFIG, mid_pattern="axial"), learned=("offsets",), allocation=((1, 2),)
    ),
    "every tile": small(
        config=replace(CONFIG, mid_tiles=None), learned=("summaries",), allocation=((1, 0),)
    ),
    "no summaries": small(
        config=replace(CONFIG, summary_tokens=0),
        learned=("summaries", "norm"),
        allocation=((1, 0),),
    ),
    "synthesis": small(
        config=replace(CONFIG, low_output="inverse_dct"), allocation=((0, 0),), learned=("rotary",)
    ),
    "tile order": small(token_order="tile", learned=LEARNED, num_text_tokens=2),
    "samples apart": small(allocation=((0, 1), (2, 0)), learned=LEARNED),
    "one frame": small(grid=Grid(1, 5, 7), config=replace(CONFIG, tile=(1, 4, 4)), learned=LEARNED),
    "primes": small(
        grid=Grid(3, 5, 7), config=replace(CONFIG, tile=(2, 4, 6)), allocation=((0, 1, 2),)
    ),
    "one token": small(grid=Grid(1, 1, 1), config=replace(CONFIG, tile=None), learned=LEARNED),
    # Blocks of the last tile's queries reach 96 rows into the next row's, which is LOW and has 80.
    "LOW behind a last tile of few tokens": small(
        grid=Grid(4, 4, 10),
        config=replace(CONFIG, tile=(4, 4, 8), compression=2),
        allocation=((1, 0, 2, 0),),
        dtype=torch.bfloat16,
    ),
    "head_dim 64, outliers": small(
        head_dim=64, outliers=True, learned=("norm", "rotary"), dtype=torch.bfloat16
    ),
    "head_dim 128, outliers": small(
        head_dim=128, outliers=True, dtype=torch.float16, allocation=((1, 2),)
    ),
    "LOW branch": small(gates=GATES, dtype=torch.bfloat16),
    "LOW branch, all learned": small(
        gates=GATES[:1],
        learned=LEARNED,
        num_text_tokens=3,
        mask="random",
        allocation=((0, 1), (2, 3)),
    ),
    "LOW branch, gates by sample, tile order": small(
        gates=GATES[1:], allocation=((2, 2),), token_order="tile", dtype=torch.float16
    ),
    "LOW branch, values": small(
        gates=GATES,
        config=replace(CONFIG, band_features="high_pass_values"),
        learned=("summaries", "rotary", "norm"),
        num_text_tokens=2,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_branch(name: str) -> None:
    with nan_filled_allocations():
        check_call(CASES[name], make_inputs(CASES[name]), gradients=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_calls_of_a_trained_model(dtype: torch.dtype) -> None:
    for case, inputs in trained_calls(CONFIG, (4, 16, 24), head_dim=16, steps=60):
        assert bool(inputs.grad_out.any())
        with nan_filled_allocations():
            check_call(replace(case, dtype=dtype), inputs.to(dtype), gradients=True)


class Seen(TorchDispatchMode):
    """Keeps the last call of every operation of this project."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[Any, tuple] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if function.namespace == "freqformer":
            self.calls[function] = args
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("head_dim", [16, 24])
def test_operations_are_registered(head_dim: int) -> None:
    case = small(
        grid=Grid(3, 4, 3),
        head_dim=head_dim,
        learned=LEARNED,
        num_text_tokens=2,
        mask="random",
        allocation=((0, 1, 2),),
        gates=GATES,
    )
    with Seen() as whole:
        run(case, make_inputs(case), "triton")
    operations = torch.ops.freqformer
    assert set(whole.calls) == {operations.attention.default, operations.attention_backward.default}
    for function, arguments in whole.calls.items():
        tests = ("test_schema", "test_faketensor", "test_autograd_registration")
        checks = torch.library.opcheck(function, arguments, test_utils=tests)
        assert set(checks.values()) == {"SUCCESS"}, (function, checks)


def test_compiled_graphs() -> None:
    """In a process of its own: compilers can't trace the type checks that tests put around the
    package."""
    command = [sys.executable, "-m", "tests.support.compiled_calls", "cpu", "aot_eager", "triton"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == ["same bits", "2 graphs", "2 2 layer graphs"]
