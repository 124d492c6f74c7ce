"""Exact counts of one attention layer: FLOPs and bytes of every stage, from the plan alone.

What each operation costs is stated beside it (`ops/NAME/cost.py`); here the operations of a layer
are put together. Derivation: docs/complexity.md; shape legend as in `freqformer.cost`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from freqformer.config import Band
from freqformer.cost import Call, Cost
from freqformer.grid import TILE_SLOTS
from freqformer.ops.block_sparse.cost import BACKWARD_FACTOR, kv_bytes, query_counts
from freqformer.ops.cost import backward_costs, forward_costs, workspace_bytes
from freqformer.ops.merge.cost import gate_bytes
from freqformer.ops.prologue.cost import summary_bytes
from freqformer.ops.routing.cost import statistics_cost, timestep_cost
from freqformer.plan import AttentionPlan, Flops
from freqformer.simulate.model.allocations import RouterInputs
from freqformer.simulate.model.low_branch import gate_gradients, gates_cost


@dataclass(frozen=True)
class LayerCounts:
    """Everything that one attention layer does, from projected queries, keys and values to its
    output."""

    stages: dict[str, Cost]
    """prologue, summaries, selection, attention and merge; gates where there is a LOW branch;
    router where it runs live."""
    band_flops: dict[str, Flops]
    """Attention FLOPs of the heads in each band, by the band's name; without a LOW branch's."""
    kv_bytes: int
    """Keys and values that blocks of queries read, without reuse between them."""
    summary_bytes: int
    """Keys and values of summary tokens: what bands tell one another."""
    workspace_bytes: int
    """Buffers in addition to q, k, v and out; gates among them."""
    backward_flops: float
    """Useful FLOPs of the backward: attention's five products, and the transposes of the linear
    stages."""
    call: Call | None = field(default=None, compare=False)
    """The operation's call; None for dense attention."""

    @property
    def flops(self) -> float:
        """Useful, all stages."""
        return sum(stage.flops for stage in self.stages.values())

    @property
    def bytes(self) -> float:
        """All stages, every tensor once."""
        return sum(stage.bytes for stage in self.stages.values())

    @property
    def attention(self) -> Flops:
        """Of the attention launch, a LOW branch's queries too."""
        stage = self.stages["attention"]
        return Flops(stage.flops, int(stage.executed))

    @cached_property
    def gradients(self) -> dict[str, Cost]:
        """The backward by stage: of dense attention too, which reads five tensors and writes three.
        Kept, since a fit asks for it at every step."""
        if self.call is not None:
            return layer_gradients(self.call)
        stage = self.stages["attention"]
        executed, tensor = BACKWARD_FACTOR * stage.executed, stage.write_bytes
        return {"attention": Cost(self.backward_flops, executed, 5.0 * tensor, 3.0 * tensor, 2)}


def layer_counts(
    plan: AttentionPlan,
    allocation: Sequence[int],
    *,
    element_size: int = 2,
    router: RouterInputs | None = None,
    low_branch: bool = False,
) -> LayerCounts:
    """Count one FreqFormer attention layer.

    Args:
        plan: of the grid, configuration and text.
        allocation: the band of every head, or of those heads that one of several machines has.
        element_size: bytes of an element of q, k and v.
        router: what the routing network that runs in the layer reads; None where none runs.
        low_branch: whether every head adds a gated LOW branch to its own band.

    Raises:
        ValueError: for an allocation of no heads, of more than the plan's, or out of range.
    """
    call = layer_call(plan, allocation, element_size, low_branch)
    stages = forward_costs(call)
    if low_branch:
        stages["gates"] = gates_cost(call)
    if router is not None:
        stages["router"] = (statistics_cost if router == "statistics" else timestep_cost)(call)
    return LayerCounts(
        stages=stages,
        band_flops={
            band.name.lower(): _band_flops(call, band) for band in Band if call.count(band)
        },
        kv_bytes=kv_bytes(call),
        summary_bytes=summary_bytes(call),
        workspace_bytes=workspace_bytes(plan, call.count(), element_size)
        + (gate_bytes(call) if low_branch else 0),
        backward_flops=sum(stage.flops for stage in layer_gradients(call).values()),
        call=call,
    )


def _band_flops(call: Call, band: Band) -> Flops:
    """Attention of the heads in one band, without a LOW branch's."""
    flops, heads = query_counts(call.plan, band).flops, call.count(band)
    return Flops(flops.useful * heads, flops.executed * heads)


def layer_call(
    plan: AttentionPlan, allocation: Sequence[int], element_size: int, low_branch: bool
) -> Call:
    """The operation's call of a layer's heads; arguments and errors as of `layer_counts`."""
    bands = [int(band) for band in allocation]
    if not 1 <= len(bands) <= plan.num_heads or not all(0 <= band <= Band.DENSE for band in bands):
        raise ValueError(
            f"allocation is {bands}; 1 to {plan.num_heads} bands from 0 to 3 are allowed, one per "
            "head (LOW to DENSE)"
        )
    return Call(plan, Counter(Band(band) for band in bands), element_size, low_branch)


def layer_gradients(call: Call) -> dict[str, Cost]:
    """The backward of a layer by stage."""
    return backward_costs(call) | (gate_gradients(call) if call.low_branch else {})


def dense_counts(
    num_tokens: int, heads: int, head_dim: int, *, element_size: int = 2
) -> LayerCounts:
    """Count dense attention over the same tokens, text included: 4 N² D FLOPs a head, one launch.

    Args:
        num_tokens: video and text tokens.
        heads, head_dim: of the attention.
        element_size: bytes of an element.
    """
    blocks = -(-num_tokens // TILE_SLOTS)
    useful = 4.0 * num_tokens**2 * head_dim * heads
    executed = 4 * blocks**2 * TILE_SLOTS**2 * head_dim * heads
    tensor = float(num_tokens * heads * head_dim * element_size)
    return LayerCounts(
        stages={"attention": Cost(useful, executed, 3 * tensor, tensor, 1)},
        band_flops={"dense": Flops(useful, executed)},
        kv_bytes=2 * blocks**2 * TILE_SLOTS * heads * head_dim * element_size,
        summary_bytes=0,
        workspace_bytes=0,
        backward_flops=BACKWARD_FACTOR * useful,
    )
