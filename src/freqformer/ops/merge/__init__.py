"""From each band's outputs back to all tokens."""

from freqformer.ops.merge.reference import expand_low, gated_sum

__all__ = ["expand_low", "gated_sum"]
