"""The peer of fused results: torch with weights and slopes of attention rounded as matrix units
take them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

import torch
from tests.support.cases import Case, Inputs, run, select
from tests.support.numerics import Pool, check_errors
from torch import Tensor

from freqformer.ops.block_sparse import eager


@contextmanager
def rounded_weights(dtype: torch.dtype) -> Iterator[None]:
    """Within it, eager attention rounds its weights and slopes to `dtype`, as a kernel on matrix
    units must."""

    def attend_dense(query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None) -> Tensor:
        scores = query.float() @ key.float().transpose(1, 2) * query.shape[-1] ** -0.5
        if key_mask is not None:
            scores = scores.masked_fill(~key_mask[:, None], -torch.inf)
        rounded = scores.softmax(-1).nan_to_num(0.0).to(query.dtype).float()
        return (rounded @ value.float()).to(query.dtype)

    with (
        eager.rounded_weights(dtype),
        mock.patch.object(eager, "attend_dense", attend_dense),
    ):
        yield


def check_call(
    case: Case, inputs: Inputs, pool: Pool | None = None, *, gradients: bool = False
) -> None:
    """Raise AssertionError unless impl="triton" is as near float64 as its peer, given the same
    selection."""
    selection = select(case, inputs)
    actual = run(case, inputs, "triton", selection=selection, gradients=gradients)
    if case.dtype == torch.float32:
        peer = run(case, inputs, "eager", selection=selection, gradients=gradients)
    else:
        with rounded_weights(case.dtype):
            peer = run(case, inputs, "eager", selection=selection, gradients=gradients)
    wide = replace(case, dtype=torch.float64)
    exact = run(wide, inputs.double(), "reference", selection=selection, gradients=gradients)
    check_errors(actual, peer, exact, outliers=case.outliers, case=case)
    if pool is not None:
        pool.add(actual, peer, exact)
