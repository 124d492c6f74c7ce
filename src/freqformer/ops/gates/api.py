"""The gated sum, whichever code runs."""

from __future__ import annotations

from torch import Tensor

from freqformer.ops.gates import reference


def gated_sum(
    own: Tensor, low: Tensor, gates: Tensor | None, weights: Tensor | None, *, fused: bool
) -> Tensor:
    """See `reference.gated_sum`; `fused` makes it one Triton launch, and one for its gradients."""
    if not fused:
        return reference.gated_sum(own, low, gates, weights)
    # Imported here, since Triton decides at import whether it interprets, and a CPU may have no
    # Triton at all.
    from freqformer.ops.gates import triton

    return triton.gated_sum(own, low, gates, weights)
