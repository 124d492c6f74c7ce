"""The all-to-all that every exchange here is made of.

It is a functional collective of torch: it starts at once, beside what is computed meanwhile (NCCL
has a stream of its own), and only `wait` makes what comes after it, on the current stream of a GPU
or on the CPU, wait for it. A compiled graph holds both, see `GRAPHS_HOLD_EXCHANGES`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

GRAPHS_HOLD_EXCHANGES = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)
"""Whether compiled code may trace exchanges. torch 2.11 does so wrongly: outputs and gradients of a
compiled block differ. 2.12 was not tried. Code breaks off at them there, and goes on after them."""


def start_all_to_all(
    sent: Tensor, received: Sequence[int], sizes: Sequence[int], group: ProcessGroup
) -> Tensor:
    """A block for each rank, and from each rank one. All ranks of a group start them in one order.

    Args:
        sent: contiguous (sum of sizes,), blocks in the order of ranks; no gradient flows.
        received: numbers that come from every rank.
        sizes: numbers that go to every rank.
        group: the ranks.

    Returns: (sum of received,), which nothing may read before `wait` was called with it.
    """
    name = group.group_name
    return torch.ops._c10d_functional.all_to_all_single(
        sent.detach(), list(received), list(sizes), name
    )


def wait(received: Tensor) -> Tensor:
    """What `start_all_to_all` returned, once it may be read.

    Raises:
        RuntimeError: where a rank died, or the group's timeout passed; on a GPU NCCL's watchdog
            ends the process instead.
    """
    return torch.ops._c10d_functional.wait_tensor(received)
