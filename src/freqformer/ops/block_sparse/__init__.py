"""Attention over lists of key tiles plus extra keys with biases."""

from freqformer.ops.block_sparse.api import TileLists, block_sparse_attention, dense_attention

__all__ = ["TileLists", "block_sparse_attention", "dense_attention"]
