"""Gradients of impl="triton" on a GPU: numerics, same bits, compiled graphs."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from freqformer.config import FreqFormerConfig
from freqformer.grid import Grid

pytest.importorskip("triton")

from tests.support.attend_cases import LARGE
from tests.support.attend_cases import random_case as random_launch
from tests.support.attend_grads import check_grads
from tests.support.cases import GATES, Case, make_inputs, random_case, run, select
from tests.support.fused import check_call
from tests.support.numerics import Pool, nan_filled_allocations

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
GRID = Grid(9, 17, 25)
CONFIG = FreqFormerConfig(mid_tiles=5, summary_tokens=9)
LEARNED = ("summaries", "offsets", "rotary", "norm")


def make_case(**changes: Any) -> Case:
    told: dict[str, Any] = {
        "grid": GRID,
        "config": CONFIG,
        "allocation": ((0, 1, 2, 3),),
        "head_dim": 128,
    }
    return Case(**told | {"dtype": torch.bfloat16, "learned": LEARNED} | changes)


CASES = {
    "learned": make_case(),
    "text, head_dim 64": make_case(head_dim=64, num_text_tokens=77, mask="random"),
    "float32, outliers": make_case(
        grid=Grid(8, 16, 16), dtype=torch.float32, outliers=True, learned=()
    ),
    "full tiles, outliers": make_case(grid=Grid(8, 16, 32), outliers=True, dtype=torch.float16),
    "gains, text": make_case(config=replace(CONFIG, band_features="band_gains"), num_text_tokens=5),
    "strict": make_case(config=replace(CONFIG, band_features="own_band"), dtype=torch.float16),
    "values": make_case(
        config=replace(CONFIG, band_features="high_pass_values"),
        num_text_tokens=5,
        learned=("norm",),
    ),
    "synthesis, axial, tile order": make_case(
        config=replace(CONFIG, mid_pattern="axial", low_output="inverse_dct"), token_order="tile"
    ),
    "LOW branch": make_case(gates=GATES, num_text_tokens=77, mask="random"),
    "LOW branch, windows": make_case(gates=GATES[:1], allocation=((2, 2, 2),), learned=("norm",)),
    "LOW branch, float32": make_case(gates=GATES, dtype=torch.float32, learned=("rotary",)),
    "by sample": make_case(allocation=((0, 1, 2), (2, 0, 3)), head_dim=64),
}


@pytest.mark.parametrize("name", CASES)
def test_as_near_float64_as_the_peer(name: str) -> None:
    with nan_filled_allocations():
        check_call(CASES[name], make_inputs(CASES[name], "cuda"), gradients=True)


@pytest.mark.parametrize("form", range(26))
def test_random_launches(form: int) -> None:
    """2,080 random calls of the attention launches, 80 of each form, which share compiled
    kernels."""
    pool = Pool()
    for seed in range(form * 80, form * 80 + 80):
        case, told = random_launch(seed, form=form, grids=LARGE, head_dims=(64, 128), device="cuda")
        with nan_filled_allocations():
            check_grads(case, told, pool, outliers=told["outliers"] > 1, own_forward=True)
    pool.check(least=20)


@pytest.mark.parametrize("part", range(4))
def test_random_calls(part: int) -> None:
    for seed in range(part * 5, part * 5 + 5):
        rng = random.Random(seed)
        case = random_case(
            seed,
            max_tokens=3000,
            head_dim=rng.choice((64, 128)),
            dtype=rng.choice((torch.float16, torch.bfloat16)),
        )
        check_call(case, make_inputs(case, "cuda"), gradients=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_calls_of_a_trained_model(dtype: torch.dtype) -> None:
    pytest.importorskip("diffusers")
    from tests.support.trained_calls import trained_calls

    for case, inputs in trained_calls(CONFIG, (8, 64, 96), head_dim=64, steps=100, device="cuda"):
        assert bool(inputs.grad_out.any())
        with nan_filled_allocations():
            check_call(replace(case, dtype=dtype), inputs.to(dtype), gradients=True)


def test_same_bits_a_thousand_times() -> None:
    case = make_case(num_text_tokens=77)
    inputs = make_inputs(case, "cuda")
    selection = select(case, inputs)
    first = run(case, inputs, "triton", selection=selection)
    for _ in range(1000):
        again = run(case, inputs, "triton", selection=selection)
        assert all(torch.equal(again[name], x) for name, x in first.items())


def test_compiled_graphs() -> None:
    command = [sys.executable, "-m", "tests.support.compiled_calls", "cuda", "inductor", "triton"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == ["same bits", "2 graphs", "2 2 layer graphs"]
