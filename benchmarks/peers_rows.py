"""The kernels that `peers.py` times, and the works that it gives them, from a record of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

import peers_others as others
import peers_ours as ours
from freqformer.grid import Grid
from peers_layer import layer_queries
from peers_lists import lists_work
from peers_work import Size, Timed, Work

DENSE = frozenset({"dense"})
SPARSE = frozenset({"dense", "random", "window"})
Maker = Callable[[Any], Timed]


@dataclass(frozen=True)
class Peer:
    """One kernel."""

    name: str
    deterministic: bool
    """Whether its backward promises the same bits at every run."""
    takes: frozenset[str]
    """Kinds of works, as `kind_of` tells them."""
    forward: Maker | None
    """None where it isn't timed."""
    backward: Maker | None
    module: str | None = None
    """Without which it can't run; None for torch's own."""
    package: str | None = None
    """Whose version is recorded."""
    by_shape: bool = False
    """Whether it is compiled anew for every number of tokens."""
    tunes: bool = False
    """Whether it times variants of its own first, for which it needs the GPU to itself."""

    def maker(self, backward: bool) -> Maker | None:
        """Its forward or its backward."""
        return self.backward if backward else self.forward


def _flash4(name: str, takes: frozenset[str], sparse: bool) -> Peer:
    return Peer(
        f"FlashAttention-4 CuTe, {name}",
        False,  # atomic additions to dQ
        takes,
        partial(others.flash4_forward, sparse=sparse),
        partial(others.flash4_backward, sparse=sparse),
        "flash_attn.cute.interface",
        "flash-attn-4",
    )


def _flex(name: str, backend: str | None, deterministic: bool, module: str | None) -> Peer:
    return Peer(
        f"FlexAttention, {name}",
        deterministic,
        SPARSE,
        partial(others.flex_forward, backend=backend),
        partial(others.flex_backward, backend=backend),
        module,
        by_shape=True,
    )


def _block_sparse(side: int) -> Peer:
    return Peer(
        f"cuDNN, block-sparse {side}",
        False,  # atomic additions to dQ
        SPARSE,
        partial(others.block_sparse_forward, side=side),
        partial(others.block_sparse_backward, side=side),
        "cudnn.block_sparse_attention",
        "nvidia-cudnn-frontend",
    )


def _ours(backend: str, deterministic: bool = True) -> Peer:
    return Peer(
        f"ours, {backend}" + ("" if deterministic else ", any order"),
        deterministic,
        SPARSE | {"layer"},
        partial(ours.our_forward, backend=backend) if deterministic else None,
        partial(ours.our_backward, backend=backend, deterministic=deterministic),
        "triton",
    )


def _operation(backend: str) -> Peer:
    return Peer(
        f"ours, {backend}, whole operation",
        True,
        frozenset({"own window"}),
        partial(ours.operation_forward, backend=backend),
        partial(ours.operation_backward, backend=backend),
        "triton",
    )


PEERS = (
    _ours("gluon"),
    _ours("gluon", deterministic=False),
    _ours("triton"),
    Peer("cuDNN, dense", False, DENSE, others.cudnn_forward, others.cudnn_backward),
    _flash4("dense", DENSE, sparse=False),
    _flash4("block-sparse", SPARSE, sparse=True),
    _block_sparse(128),
    _block_sparse(64),
    _flex("Triton", None, True, None),
    _flex("FLASH", "FLASH", False, "flash_attn.cute"),
    Peer(
        "FastVideo VSA, Triton",
        False,  # its lists of queries are in the order of atomic additions
        SPARSE,
        others.vsa_forward,
        others.vsa_backward,
        "fastvideo_kernel.block_sparse_attn",
        "fastvideo-kernel",
        tunes=True,
    ),
    Peer(
        "NATTEN",
        False,
        frozenset({"window"}),
        others.natten_forward,
        others.natten_backward,
        "natten",
        "natten",
    ),
    _operation("gluon"),
    _operation("triton"),
)
"""All; ours first, since their ratios are asked for."""


def kind_of(told: dict[str, Any]) -> str:
    """What a peer takes or not: the kind of a work's record, `dense` for lists of every tile, and
    `layer` for lists that ours alone are given beside a layer."""
    if "ours" in told:
        return "layer"
    return "dense" if told.get("density") == 1.0 else told["kind"]


def make_work(told: dict[str, Any], device: torch.device, dtype: torch.dtype) -> Work:
    """The work that a record tells of; the same in every process."""
    size = Size(Grid(*told["grid"]), told["heads"], told["head_dim"], device, dtype)
    return layer_queries(size, told) if told["kind"] == "layer" else lists_work(size, told)
