"""All Triton launches of a call, forward and backward, compiled for GPUs that aren't here.

    python -m tests.support.compile_pipeline CASE HEAD_DIM KERNELS ARCHITECTURE...

prints what `compile_launches` finds as JSON, by architecture. KERNELS are names between commas, or
`all`. `python -m tests.support.compile_pipeline serve` answers tests, as `tests.support.compilers`
has it. TRITON_INTERPRET must not be set.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from tests.support.cases import GATES, LEARNED, Case, make_inputs, run
from tests.support.compile_only import compile_launches
from tests.support.compilers import serve

from freqformer.attention import FreqAttention
from freqformer.config import FreqFormerConfig
from freqformer.grid import Grid
from freqformer.ops import backends

FULL = Grid(8, 16, 16)
RAGGED = Grid(5, 9, 13)
WINDOW = (1, 1, 1)
EVERY_BAND = ((0, 1, 2, 3),)


def _layer(head_dim: int) -> None:
    """The default layer without gradients: its router, too."""
    layer = FreqAttention(2 * head_dim, 2, FreqFormerConfig(window=WINDOW))
    hidden = torch.zeros(1, FULL.num_tokens, 2 * head_dim, dtype=torch.bfloat16)
    with torch.no_grad():
        layer.to(torch.bfloat16)(hidden, FULL, torch.zeros(1), impl="triton")


def _gradients(head_dim: int) -> None:
    """What the default layer calls, with gradients: full tiles and a LOW branch."""
    config = FreqFormerConfig(window=WINDOW)
    case = Case(FULL, config, ((2, 2),), head_dim, torch.bfloat16, gates=GATES)
    run(case, make_inputs(case), "triton")


def _sizes(head_dim: int) -> None:
    """Videos of three sizes with the same tile, in numbers that 16 and 2 divide or don't."""
    config = FreqFormerConfig(tile=(4, 4, 8), window=WINDOW, mid_tiles=2, summary_tokens=3)
    for grid, text in ((Grid(5, 9, 13), 5), (Grid(6, 16, 20), 16), (Grid(9, 10, 28), 8)):
        case = Case(grid, config, EVERY_BAND, head_dim, torch.bfloat16, text, gates=GATES)
        run(case, make_inputs(case), "triton")


def _lengths(head_dim: int) -> None:
    """Layers or steps of one model whose MID heads keep other numbers of tiles: 1, one that 16
    divides, and others."""
    for count in (1, 9, 16, 22):
        config = FreqFormerConfig(tile=(4, 4, 4), mid_tiles=count, summary_tokens=8)
        case = Case(FULL, config, EVERY_BAND, head_dim, torch.bfloat16, learned=("norm", "rotary"))
        run(case, make_inputs(case), "triton", gradients=False)


def _everything(head_dim: int) -> None:
    """Every band, ragged tiles, text with a mask, and all that is learned."""
    config = FreqFormerConfig(window=WINDOW, mid_tiles=2, summary_tokens=3)
    case = Case(RAGGED, config, EVERY_BAND, head_dim, torch.bfloat16, 5, "random", LEARNED, GATES)
    run(case, make_inputs(case), "triton")


def _features(head_dim: int) -> None:
    """Band features, for which the prologue holds whole tiles."""
    config = FreqFormerConfig(window=WINDOW, mid_tiles=2, band_features="band_gains")
    case = Case(RAGGED, config, EVERY_BAND, head_dim, torch.bfloat16)
    run(case, make_inputs(case), "triton")


def _turned_features(head_dim: int) -> None:
    """Band features with all that is learned, rotary embedding among it."""
    config = FreqFormerConfig(window=WINDOW, mid_tiles=2, band_features="band_gains")
    case = Case(RAGGED, config, EVERY_BAND, head_dim, torch.bfloat16, learned=LEARNED)
    run(case, make_inputs(case), "triton")


def _no_cell(head_dim: int) -> None:
    """Queries of summaries for a plan that has none."""
    config = FreqFormerConfig(window=WINDOW, mid_tiles=2, summary_tokens=0)
    learned = ("summaries",)
    case = Case(RAGGED, config, EVERY_BAND, head_dim, torch.bfloat16, learned=learned)
    run(case, make_inputs(case), "triton")


def _other_models(head_dim: int, *learned: str) -> None:
    """Norms and rotary embeddings that diffusers' models have, with text and a mask."""
    config = FreqFormerConfig(window=WINDOW, mid_tiles=2, summary_tokens=3)
    case = Case(RAGGED, config, EVERY_BAND, head_dim, torch.bfloat16, 5, "random", learned)
    run(case, make_inputs(case), "triton")


CASES: dict[str, Callable[[int], None]] = {
    "layer": _layer,
    "gradients": _gradients,
    "sizes": _sizes,
    "lengths": _lengths,
    "everything": _everything,
    "features": _features,
    "turned features": _turned_features,
    "summaries for no cell": _no_cell,
    "across heads": lambda head_dim: _other_models(head_dim, "norm across heads", "packed"),
    "summaries across heads": lambda head_dim: _other_models(
        head_dim, "norm across heads", "halved", "summaries", "offsets"
    ),
    "halved": lambda head_dim: _other_models(head_dim, "norm", "halved, packed"),
}


def found(
    case: str,
    head_dim: int,
    kernels: Sequence[str],
    names: Sequence[str],
    disassembled: bool = True,
) -> dict[str, list[dict[str, Any]]]:
    """The facts by architecture; `kernels` may be empty for all."""
    triton = next(backend for backend in backends.BACKENDS if backend.name == "triton")
    # It would refuse a CPU, where nothing compiled runs.
    willing = replace(triton, unsupported_reason=lambda tensors, parameters: None)
    with mock.patch.object(backends, "BACKENDS", (willing,)):
        return {
            name: compile_launches(
                name, lambda: CASES[case](head_dim), kernels, disassembled=disassembled
            )
            for name in names
        }


def main(case: str, head_dim: str, kernels: str, *names: str) -> None:
    """Print the facts."""
    only = () if kernels == "all" else kernels.split(",")
    print(json.dumps(found(case, int(head_dim), only, names)))


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        serve(found)
    else:
        main(*sys.argv[1:])
