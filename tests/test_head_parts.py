"""Heads computed in parts, one after the other: the same bits with less held at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from freqformer.attention import frequency_attention
from freqformer.config import Band, FreqFormerConfig
from freqformer.grid import Grid
from freqformer.ops import fused
from freqformer.ops.parameters import AttentionParameters
from freqformer.plan import Selection

triton = pytest.importorskip("triton")
if not triton.knobs.runtime.interpret:
    pytest.skip("TRITON_INTERPRET=1 is not set: kernels would need a GPU", allow_module_level=True)

from tests.support import cases  # noqa: E402
from tests.support.cases import GATES, Case, Inputs, make_inputs  # noqa: E402
from tests.support.interpreter import patch_language_once  # noqa: E402

pytestmark = [
    # The interpreter's own: it turns arrays of one element into loop bounds.
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning"),
    # A LOW row has fewer queries than tokens. What is behind them is computed like the rest, and
    # never stored.
    pytest.mark.filterwarnings(
        "ignore:(All-NaN slice|invalid value|overflow) encountered:RuntimeWarning"
    ),
]
LOW, MID, HIGH, DENSE = map(int, Band)
SMALL = FreqFormerConfig(
    tile=(2, 2, 4), compression=64, mid_tiles=2, window=(1, 2, 2), summary_tokens=3
)
TEXT: dict[str, Any] = {"num_text_tokens": 3, "mask": "random"}


def case(*learned: str, **changes: Any) -> Case:
    told: dict[str, Any] = {
        "grid": Grid(3, 3, 7),
        "config": SMALL,
        "allocation": ((LOW, MID, HIGH, DENSE, MID),),
        "head_dim": 16,
    }
    return Case(**told | changes, learned=learned)


CASES = {
    "Wan": case("norm across heads", "halved"),
    "by sample": case(
        "norm across heads",
        "packed",
        "offsets",
        allocation=((LOW, MID, HIGH, DENSE, MID), (MID, HIGH, LOW, LOW, MID)),
        **TEXT,
    ),
    "learned": case("summaries", "offsets", "rotary", "norm", gates=GATES, **TEXT),
    "gains": case("norm", config=replace(SMALL, band_features="band_gains")),
}


@pytest.fixture(autouse=True, scope="module")
def _fast_interpreter() -> None:
    patch_language_once()


def attend(one: Case, inputs: Inputs, parts: int, **named: Any) -> Tensor:
    return cases.attend(one, inputs, impl="triton", head_parts=parts, **named)


@pytest.mark.parametrize("name", CASES)
def test_no_bit_depends_on_the_parts(name: str) -> None:
    inputs = make_inputs(CASES[name])
    whole = attend(CASES[name], inputs, 1)
    for parts in (2, 3):
        assert torch.equal(attend(CASES[name], inputs, parts), whole)


def test_a_selection_is_dealt_out() -> None:
    one = case()
    tiles = torch.arange(one.plan.layout.num_tiles).repeat(1, 5, 1)[..., None]
    inputs = make_inputs(one)
    whole = attend(one, inputs, 1, selection=Selection(tiles))
    assert torch.equal(attend(one, inputs, 5, selection=Selection(tiles)), whole)
    assert not torch.equal(attend(one, inputs, 5), whole)


def test_gradients_are_of_all_heads_at_once() -> None:
    """A backward needs what all heads keep."""
    one = CASES["Wan"]
    found = []
    for parts in (1, 2):
        inputs = make_inputs(one)
        inputs.query.requires_grad_()
        attend(one, inputs, parts).sum().backward()
        found.append(inputs.query.grad)
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("parts", "message"), [(0, "whole numbers from 1 up"), (6, "1 to 5 are allowed")]
)
def test_other_numbers_of_parts_are_refused(parts: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attend(case(), make_inputs(case()), parts)


def test_a_part_holds_the_workspace_of_its_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part is one run, of a plan of its heads, after the one before is done."""
    held: list[int] = []
    run = fused.run

    def counted(tensors: Any, parameters: Any, call: fused.FusedCall, **named: Any) -> Any:
        held.append(fused.workspace_bytes(call.plan, 1, torch.float32))
        return run(tensors, parameters, call, **named)

    monkeypatch.setattr(fused, "run", counted)
    one = case(allocation=((LOW, MID, HIGH, DENSE),))
    inputs = make_inputs(one)
    attend(one, inputs, 1)
    attend(one, inputs, 4)
    whole, *parts = held
    assert parts == [whole // 4] * 4


def test_a_norm_of_some_heads_alone_would_differ() -> None:
    """What the parts are told of the norm is of all heads."""
    one = CASES["Wan"]
    inputs = make_inputs(one)
    given = inputs.parameters
    assert given is not None
    some = AttentionParameters.of_heads(given, slice(0, 2))
    alone = frequency_attention(
        *(x[:, :, :2] for x in (inputs.query, inputs.key, inputs.value)),
        grid=one.grid,
        allocation=torch.tensor(one.allocation)[:, :2],
        config=one.config,
        parameters=some,
        impl="triton",
    )
    assert not torch.allclose(alone, attend(one, inputs, 2)[:, :, :2], atol=1e-3)
