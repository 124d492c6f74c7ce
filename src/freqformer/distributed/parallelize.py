"""One call that puts a model's attention on several ranks."""

from __future__ import annotations

from typing import Protocol, TypeVar, runtime_checkable

from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from freqformer.distributed.context import ContextParallel

Model = TypeVar("Model", bound=nn.Module)


@runtime_checkable
class TakesContext(Protocol):
    """A module that can share a video with other ranks: attention layers, and the transformer."""

    def check_context(self, context: ContextParallel) -> None:
        """Raise ValueError where it can't be shared among so many."""
        ...

    def set_context(self, context: ContextParallel | None) -> None:
        """Share every video with these ranks from now on; None ends that."""
        ...


def parallelize(model: Model, mesh: DeviceMesh | None) -> Model:
    """Share every video among the ranks of the dimension `cp` of a mesh.

    A `FreqFormerTransformer3DModel` takes and gives whole videos as before, the same on each of
    these ranks, and shares the tokens within. An attention layer alone takes and gives this rank's
    tokens, see `shard_tokens`. Gradients are then shares too: `sum_gradients` adds them.

    Args:
        model: with attention layers; changed in place.
        mesh: from `make_mesh`, or any with a dimension `cp`; None goes back to one rank.

    Returns: the model.

    Raises:
        ValueError: for a model without attention layers of this library, a mesh without `cp`, and a
            degree above the number of heads; nothing is changed then.
    """
    takers = [module for module in model.modules() if isinstance(module, TakesContext)]
    if not takers:
        raise ValueError(
            f"model is a {type(model).__name__}, which holds no attention layer of this library; "
            "FreqAttention, DenseAttention or FreqFormerTransformer3DModel is allowed: models of "
            "diffusers take enable_parallelism"
        )
    context = None if mesh is None else ContextParallel.of(mesh)
    if context is not None and context.size == 1:
        context = None
    for module in takers:
        if context is not None:
            module.check_context(context)
    for module in takers:
        module.set_context(context)
    return model
