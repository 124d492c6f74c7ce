"""How the launches of the attention's backward are compiled: see `ops/architectures.py`."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from freqformer.ops.architectures import architecture


class GradBlocks(NamedTuple):
    """A `Step` of a launch of the backward."""

    query: int
    key: int
    warps: int
    stages: int

    @staticmethod
    def of_queries(query: Tensor) -> GradBlocks:
        """For gradients of queries: a program holds one block of queries."""
        row = architecture(query.device)
        return GradBlocks(*row.steps(query.dtype, query.shape[2]).query_grads)

    @staticmethod
    def of_keys(key: Tensor) -> GradBlocks:
        """For gradients of keys and values: a program holds one block of keys."""
        row = architecture(key.device)
        return GradBlocks(*row.steps(key.dtype, key.shape[2]).key_grads)
