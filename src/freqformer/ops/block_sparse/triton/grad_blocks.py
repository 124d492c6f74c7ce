"""How the launches of the attention's backward are compiled."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from freqformer.ops.block_sparse.triton.launch import _has_descriptors


@dataclass(frozen=True)
class GradBlocks:
    """Queries and keys of one step of a launch, and how it is compiled; measured on an H200, others
    by occupancy."""

    query: int
    key: int
    warps: int
    stages: int

    @staticmethod
    def of_queries(query: Tensor) -> GradBlocks:
        """For gradients of queries: a program holds one block of queries."""
        if query.dtype == torch.float32:
            # Without matrix units the operands of a product live in registers: small blocks, or
            # they spill.
            return GradBlocks(32, 16, 8, 1)
        if not _has_descriptors(query.device):
            return GradBlocks(64, 32, 4, 2) if query.shape[2] <= 128 else GradBlocks(32, 32, 4, 1)
        # A query is loaded with its gradient, and keys serve two products: smaller blocks than the
        # forward's 128 queries. Twice the channels take twice the warps, as dq lies in registers.
        return GradBlocks(64, 64, 4 if query.shape[2] <= 128 else 8, 2)

    @staticmethod
    def of_keys(key: Tensor) -> GradBlocks:
        """For gradients of keys and values: a program holds one block of keys."""
        if key.dtype == torch.float32:
            return GradBlocks(16, 32, 8, 1)
        if not _has_descriptors(key.device):
            # Pointers of a block live in registers too, beside the sums: half the queries a step.
            return GradBlocks(32, 64, 4, 2) if key.shape[2] <= 128 else GradBlocks(32, 32, 4, 1)
        # Two float32 sums of 64 keys by 128 channels take 128 of the 255 registers of each of 128
        # threads: what is left holds a block of logits and one of their gradients.
        return GradBlocks(64, 64, 4, 2) if key.shape[2] <= 128 else GradBlocks(32, 64, 8, 2)
