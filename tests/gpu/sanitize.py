"""Every kernel of the pipeline, forward and backward, on small calls, and layers with a router:
for compute-sanitizer.

On a machine with a CUDA GPU and the CUDA toolkit, from the top folder of the project:

    export PYTHONPATH=src PYTORCH_NO_CUDA_MEMORY_CACHING=1
    compute-sanitizer --tool memcheck --error-exitcode 1 python -m tests.gpu.sanitize
    compute-sanitizer --tool racecheck --error-exitcode 1 python -m tests.gpu.sanitize

Of the Gluon kernels racecheck reports how Triton tells warps their job: a read of it at the top of
the kernel and its writes, between which lies a barrier that the tool doesn't follow.

Without its cache torch asks the driver for every tensor, so that a read behind its end is one that
the tool sees.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import dataclass, replace
from unittest import mock

import torch
from tests.support.cases import GATES, Case, make_inputs, run
from tests.support.interpreter import patch_language_once

from freqformer import buffers
from freqformer.attention import FreqAttention
from freqformer.config import FreqFormerConfig, Routing
from freqformer.grid import Grid
from freqformer.ops import architectures
from freqformer.ops.backends import ImplChoice
from freqformer.ops.block_sparse.triton import backward_launches

CONFIG = FreqFormerConfig(tile=(2, 4, 8), mid_tiles=2, window=(1, 2, 2), summary_tokens=3)
RAGGED, FULL = Grid(3, 9, 11), Grid(4, 8, 16)
HOPPER_CONFIG = replace(CONFIG, tile=(2, 8, 8))
"""Tiles of more than 64 tokens, which the Gluon kernel doesn't leave to Triton's."""
LEARNED = ("summaries", "offsets", "rotary", "norm")
BANDS = ((0, 1, 2, 3),)


@dataclass(frozen=True)
class Checked:
    """A call, its code, and whether blocks are read by pointers where the GPU could read them by
    descriptors."""

    case: Case
    by_pointer: bool = False
    impl: ImplChoice = "triton"


ALL = Case(
    RAGGED, CONFIG, BANDS, 64, torch.bfloat16, num_text_tokens=37, mask="random", learned=LEARNED
)
CASES = {
    "everything learned, text": Checked(ALL),
    "by pointers": Checked(ALL, by_pointer=True),
    "Gluon, everything learned, text": Checked(replace(ALL, config=HOPPER_CONFIG), impl="gluon"),
    "Gluon, LOW branch": Checked(
        Case(FULL, HOPPER_CONFIG, ((2, 2),), 128, torch.bfloat16, gates=GATES), impl="gluon"
    ),
    "full tiles, head_dim 128": Checked(
        Case(FULL, CONFIG, BANDS, 128, torch.float16, learned=LEARNED)
    ),
    "float32, gains": Checked(
        Case(RAGGED, replace(CONFIG, band_features="band_gains"), BANDS, 64, learned=("norm",))
    ),
    "strict, by sample": Checked(
        Case(
            RAGGED,
            replace(CONFIG, band_features="own_band"),
            ((0, 1), (2, 1)),
            64,
            torch.bfloat16,
            learned=("rotary",),
        )
    ),
    "values, axial, synthesis, tile order": Checked(
        Case(
            RAGGED,
            replace(
                CONFIG,
                band_features="high_pass_values",
                mid_pattern="axial",
                low_output="inverse_dct",
            ),
            ((1, 0, 2),),
            64,
            torch.bfloat16,
            num_text_tokens=5,
            token_order="tile",
        )
    ),
}


def check(checked: Checked, device: str) -> None:
    """Run a call without gradients and with them; AssertionError where a result is not finite."""
    inputs = make_inputs(checked.case, device)
    # Long lists are split, which takes kernels that join the parts: here from two tiles on.
    forward, backward = (
        mock.patch.object(buffers, "TEXT_PART_TILES", 2),
        mock.patch.object(backward_launches, "PART_TILES", 2),
    )
    # A GPU before Hopper reads by pointers.
    pointers = (
        mock.patch.object(architectures, "architecture_name", return_value="sm_80")
        if checked.by_pointer
        else nullcontext()
    )
    with forward, backward, pointers:
        for gradients in (False, True):
            for name, result in run(
                checked.case, inputs, checked.impl, gradients=gradients
            ).items():
                assert bool(result.isfinite().all()), name


def check_router(routing: Routing, device: str) -> None:
    """Run a layer with a router, without gradients and with them; AssertionError where a number is
    not finite."""
    layer = FreqAttention(3 * 64, 3, replace(CONFIG, routing=routing)).to(device, torch.bfloat16)
    layer.set_impl("triton")
    hidden = torch.randn(2, RAGGED.num_tokens, layer.dim, device=device, dtype=torch.bfloat16)
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients):
            out = layer(hidden, RAGGED, torch.tensor([0.2, 0.9], device=device))
        assert layer.router_logits is not None
        assert bool(layer.router_logits.isfinite().all())
    out.sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in layer.parameters() if p.grad is not None)


if __name__ == "__main__":
    patch_language_once()
    device = sys.argv[1] if len(sys.argv) > 1 else "cuda"
    for name, checked in CASES.items():
        if checked.impl == "gluon" and device == "cpu":
            continue  # Gluon has no interpreter
        check(checked, device)
        print(name, flush=True)
    for routing in ("hard", "soft", "timestep"):
        check_router(routing, device)
        print(f"router, {routing}", flush=True)
