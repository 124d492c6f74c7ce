"""Attention and its gradients in Triton's interpreter as it is, and in the faster one, bit for bit:
`python -m tests.support.interpreted`."""

from __future__ import annotations

import torch
from tests.support.cases import GATES, LEARNED, Case, make_inputs, run, select
from tests.support.interpreter import patch_language_once
from torch import Tensor
from triton.runtime import interpreter

from freqformer.config import FreqFormerConfig
from freqformer.grid import Grid

CONFIG = FreqFormerConfig(
    tile=(1, 3, 2), mid_tiles=1, window=(1, 1, 1), summary_tokens=2, compression=3
)


def results(case: Case) -> dict[str, Tensor]:
    inputs = make_inputs(case)
    return run(case, inputs, "triton", selection=select(case, inputs))


if __name__ == "__main__":
    case = Case(Grid(1, 3, 4), CONFIG, ((1,),), 16, torch.bfloat16, 2, "random", LEARNED, GATES)
    call = interpreter.InterpretedFunction.__call__
    as_it_is = results(case)
    patch_language_once()
    assert interpreter.InterpretedFunction.__call__ is not call
    fast = results(case)
    assert all(torch.equal(fast[name], x) for name, x in as_it_is.items())
    print("same bits in", *fast)
