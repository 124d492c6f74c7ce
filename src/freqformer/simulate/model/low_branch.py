"""A LOW branch in every head: what it adds to the stages of a layer, forward and backward.

LOW's queries are more rows of the operation's one attention launch, its low tokens come from the
prologue's one pass, and the merge interpolates, weighs and adds: (1 + g0) own + g1 low, with gates
of a linear layer per video token and head. So it adds no launch to a layer with LOW heads but the
gates'.
Derivation: docs/complexity.md; shape legend as in `freqformer.cost`.
"""

from __future__ import annotations

from dataclasses import replace

from freqformer.cost import Call, Cost
from freqformer.ops.cost import backward_costs, forward_costs
from freqformer.ops.merge.cost import BRANCHES, gate_bytes

GRADIENT_LAUNCHES = 3
"""Of the gates' linear layer: gradients of input, weights and bias."""


def low_branch(call: Call, *, backward: bool = False) -> dict[str, Cost]:
    """What a LOW branch adds to each stage of a layer, the gates' linear layer among them.

    Args:
        call: of the layer; whether it has the branch already makes no difference.
        backward: of the backward's stages instead.
    """
    stages, own = backward_costs if backward else forward_costs, replace(call, low_branch=False)
    without, found = stages(own), stages(replace(call, low_branch=True))
    added = {name: _less(cost, without[name]) for name, cost in found.items()}
    return added | (gate_gradients(call) if backward else {"gates": gates_cost(call)})


def gates_cost(call: Call) -> Cost:
    """The gates' linear layer, which reads the layer's input; of some of a layer's heads, their
    share of its channels is counted."""
    products, tensor = _products(call), _tensor_bytes(call)
    read = tensor + _weights(call) * call.element_size
    return Cost(products, products, float(read), float(gate_bytes(call)), 1)


def gate_gradients(call: Call) -> dict[str, Cost]:
    """The backward of the gates' linear layer; its product of the input's gradient adds to that of
    the projections, which so is read."""
    products, tensor = 2 * _products(call), _tensor_bytes(call)
    learned = _weights(call) * call.element_size
    read, write = 2 * tensor + gate_bytes(call) + learned, tensor + learned
    return {"gates": Cost(products, products, float(read), float(write), GRADIENT_LAUNCHES)}


def _less(cost: Cost, other: Cost) -> Cost:
    """What one stage costs more than another."""
    return Cost(
        cost.flops - other.flops,
        cost.executed - other.executed,
        cost.read_bytes - other.read_bytes,
        cost.write_bytes - other.write_bytes,
        cost.launches - other.launches,
    )


def _weights(call: Call) -> int:
    """Weights and biases of these heads' gates."""
    return BRANCHES * call.count() * (call.plan.num_heads * call.plan.head_dim + 1)


def _products(call: Call) -> float:
    """FLOPs of the linear layer."""
    width = call.plan.num_heads * call.plan.head_dim
    return 2.0 * call.video * width * BRANCHES * call.count()


def _tensor_bytes(call: Call) -> int:
    """Bytes of one value per video token and channel of these heads."""
    return call.count() * call.video * call.row_bytes
