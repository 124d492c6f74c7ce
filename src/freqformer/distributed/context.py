"""The ranks that share one video."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from freqformer.distributed.mesh import CP

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup  # absent where torch is built without


@dataclass(frozen=True, eq=False)
class ContextParallel:
    """A group of ranks, and which of them this one is."""

    group: ProcessGroup
    size: int
    rank: int

    @classmethod
    def of(cls, mesh: DeviceMesh) -> ContextParallel:
        """The ranks along the dimension `cp` of a mesh.

        Raises:
            ValueError: for a mesh without that dimension.
        """
        names = mesh.mesh_dim_names or ()
        if CP not in names:
            raise ValueError(
                f"mesh has dimensions {names}; one named {CP!r} is allowed: make it with make_mesh"
            )
        return cls(mesh.get_group(CP), mesh[CP].size(), mesh.get_local_rank(CP))

    def __deepcopy__(self, _: Any) -> ContextParallel:
        """Itself: a copy of a model shares its videos with the same ranks."""
        return self

    def __reduce__(self) -> Any:
        raise ValueError(
            "the model shares its videos with other ranks, which no pickle can hold; call "
            "parallelize(model, None) first, or save its state_dict"
        )

    def same(self, x: Tensor) -> Tensor:
        """The first rank's tensor on every rank, in place: random numbers that each drew itself."""
        dist.broadcast(x, group=self.group, group_src=0)
        return x

    def shared(self, x: Tensor) -> Tensor:
        """The same tensor, that every rank has alike and takes the same loss of: its gradient is
        divided by the ranks, so that the sum over them is that of one process."""
        return _Shared.apply(x, self.size)  # type: ignore[return-value]


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: int) -> Tensor:  # type: ignore[override]
        ctx.ranks = ranks
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] / ctx.ranks, None
