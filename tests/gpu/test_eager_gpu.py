"""Eager attention on a GPU: as near float64 as on the CPU, and the same bits at every run."""

from __future__ import annotations

import pytest
import torch
from tests.support.cases import make_inputs, random_case, run, select
from tests.support.numerics import Pool, check_errors

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


def test_eager_on_a_gpu_is_as_near_float64_as_the_reference() -> None:
    pool = Pool()
    for seed in range(60):
        case = random_case(seed)
        inputs = make_inputs(case, "cuda")
        selection = select(case, inputs)
        exact = run(case, inputs.double(), "reference", selection=selection)
        eager, peer = (
            run(case, inputs, impl, selection=selection) for impl in ("eager", "reference")
        )
        check_errors(eager, peer, exact, outliers=case.outliers, case=case)
        pool.add(eager, peer, exact)
    pool.check()


@pytest.mark.parametrize("seed", range(10))
def test_same_bits_at_every_run(seed: int) -> None:
    case = random_case(seed)
    inputs = make_inputs(case, "cuda")
    first, second = (run(case, inputs, "eager") for _ in range(2))
    for name, x in first.items():
        assert torch.equal(x, second[name]), name
