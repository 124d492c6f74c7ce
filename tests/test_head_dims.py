"""Any head_dim in the fused pipeline: buffers are padded to a power of two, and nothing of the
padding comes out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from freqformer.attention import FreqAttention
from freqformer.config import Band, FreqFormerConfig
from freqformer.grid import Grid

triton = pytest.importorskip("triton")
if not triton.knobs.runtime.interpret:
    pytest.skip("TRITON_INTERPRET=1 is not set: kernels would need a GPU", allow_module_level=True)

from tests.support.cases import GATES, LEARNED, Case, make_inputs  # noqa: E402
from tests.support.fused import check_call  # noqa: E402
from tests.support.interpreter import patch_language_once  # noqa: E402
from tests.support.numerics import nan_filled_allocations  # noqa: E402

from freqformer.buffers import buffer_width  # noqa: E402
from freqformer.ops import fused  # noqa: E402
from freqformer.ops.parameters import AttentionParameters  # noqa: E402

pytestmark = [
    # The interpreter's own: it turns arrays of one element into loop bounds.
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning"),
    # A LOW row has fewer queries than tokens. What is behind them is computed like the rest, and
    # never stored.
    pytest.mark.filterwarnings(
        "ignore:(All-NaN slice|invalid value|overflow) encountered:RuntimeWarning"
    ),
]
patch_language_once()
GRID = Grid(3, 4, 6)
"""Four tiles, of 24, 24, 12 and 12 tokens."""
CONFIG = FreqFormerConfig(
    tile=(2, 4, 3), mid_tiles=2, window=(1, 1, 2), summary_tokens=2, compression=16
)
TEXT: dict[str, Any] = {"num_text_tokens": 3, "mask": "random"}


def small(**changes: Any) -> Case:
    told: dict[str, Any] = {"grid": GRID, "config": CONFIG, "allocation": ((0, 1, 2, 3),)}
    return Case(**told | changes)


CASES = {
    "40, all learned": small(head_dim=40, learned=LEARNED, **TEXT),
    "40, LOW branch": small(head_dim=40, gates=GATES, learned=LEARNED, **TEXT),
    "72, all learned, float16": small(head_dim=72, learned=LEARNED, dtype=torch.float16, **TEXT),
    "72, LOW branch, tile order": small(
        head_dim=72, gates=GATES, token_order="tile", learned=LEARNED, **TEXT
    ),
    "80, gains": small(
        head_dim=80,
        config=replace(CONFIG, band_features="band_gains"),
        learned=("norm", "rotary"),
        dtype=torch.bfloat16,
        **TEXT,
    ),
    "80, values, LOW branch": small(
        head_dim=80,
        config=replace(CONFIG, band_features="high_pass_values"),
        learned=("norm", "rotary"),
        gates=GATES[:1],
        allocation=((1, 2),),
    ),
    "96, LOW branch, bfloat16": small(
        head_dim=96, gates=GATES, learned=LEARNED, dtype=torch.bfloat16, **TEXT
    ),
    "96, outliers, tile order": small(
        head_dim=96, outliers=True, token_order="tile", learned=("norm",), dtype=torch.float16
    ),
    "160, samples apart": small(
        head_dim=160, allocation=((0, 1), (2, 0)), learned=LEARNED, dtype=torch.bfloat16
    ),
    "192, own bands": small(
        head_dim=192,
        config=replace(CONFIG, band_features="own_band"),
        allocation=((1, 2),),
        **TEXT,
    ),
    "256": small(head_dim=256, allocation=((0, 2),), learned=LEARNED, dtype=torch.float16),
    "6, all learned": small(head_dim=6, learned=LEARNED, gates=GATES, **TEXT),
    "an odd number": small(
        head_dim=21, gates=GATES, learned=("summaries", "offsets", "norm"), **TEXT
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients_are_the_references(name: str) -> None:
    with nan_filled_allocations():
        check_call(CASES[name], make_inputs(CASES[name]), gradients=True)


@pytest.mark.parametrize("name", ["40, all learned", "80, gains"])
def test_workspace_counts_padded_buffers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case, made = CASES[name], []
    for owner, function in ((torch, "empty"), (torch.Tensor, "new_empty")):
        original = getattr(owner, function)

        def counted(*args: Any, _original: Any = original, **kwargs: Any) -> torch.Tensor:
            x = _original(*args, **kwargs)
            made.append(x.numel() * x.element_size())
            return x

        monkeypatch.setattr(owner, function, counted)
    inputs = make_inputs(case)
    made.clear()
    bands = torch.tensor(case.allocation)
    call = fused.FusedCall(
        case.plan, bands, frozenset(Band), None, inputs.text_mask, None, "raster"
    )
    tensors = (inputs.query, inputs.key, inputs.value)
    out = fused.run(tensors, inputs.parameters or AttentionParameters(), call).out
    held = sum(made) - out.numel() * out.element_size()
    told = fused.workspace_bytes(case.plan, len(case.allocation), case.dtype)
    # Beside what is counted: bands and order of a few rows, and one number a cell.
    assert 0 <= held - told <= 8 * (out.shape[2] + 2 * case.plan.cells.num_cells * out.shape[2])


@pytest.mark.parametrize(
    ("head_dim", "width"),
    [(1, 16), (16, 16), (17, 32), (40, 64), (64, 64), (72, 128), (129, 256), (256, 256)],
)
def test_the_width_of_buffers(head_dim: int, width: int) -> None:
    assert buffer_width(head_dim) == width


@pytest.mark.parametrize("routing", ["soft", "hard"])
def test_a_layer_with_its_router(routing: Any) -> None:
    """Head_dim 24 on every way through a layer: router, prologue, attention and merge."""
    torch.manual_seed(0)
    layer = FreqAttention(72, 3, replace(CONFIG, routing=routing))
    if layer.gates is not None:
        torch.nn.init.normal_(layer.gates.bias)
    hidden, timestep = torch.randn(2, GRID.num_tokens, 72), torch.tensor([0.2, 0.9])
    with torch.no_grad(), nan_filled_allocations():
        got, wanted = (layer(hidden, GRID, timestep, impl=impl) for impl in ("triton", "eager"))
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
