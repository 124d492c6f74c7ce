"""Calls whose grid, config and bands are operands of a compiled graph: the same bits as constants
give, and no CUDA graph of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor.utils import get_first_incompatible_cudagraph_node
from torch.fx.experimental.proxy_tensor import make_fx

from freqformer.attention import frequency_attention, record_operation
from freqformer.attention.record import (
    RECORD_BYTES,
    CallRecord,
    RecordedBands,
    packed,
    unpacked,
)
from freqformer.attention.record_operation import recorded_attention
from freqformer.config import Band, FreqFormerConfig
from freqformer.grid import Grid
from freqformer.ops.parameters import (
    AttentionParameters,
    BranchGates,
    KnownBands,
    RotaryEmbedding,
)

LOW, MID, HIGH, DENSE = map(int, Band)
GRID = Grid(3, 4, 6)
TEXT = 2
SMALL = FreqFormerConfig(
    tile=(2, 4, 3), compression=8, mid_tiles=2, window=(1, 1, 2), summary_tokens=2
)
RECORDS = (
    CallRecord(GRID, SMALL, TEXT, (LOW, MID, HIGH)),
    CallRecord(GRID, replace(SMALL, mid_tiles=1, window=(2, 1, 1)), TEXT, (LOW, MID, HIGH)),
    CallRecord(GRID, replace(SMALL, mid_pattern="axial", mid_tiles=None), TEXT, (LOW, MID, HIGH)),
    CallRecord(GRID, replace(SMALL, summary_tokens=0), TEXT, (LOW, MID, HIGH, DENSE)),
)
BANDS = torch.tensor([[LOW, MID, HIGH]])


@pytest.mark.parametrize(
    "config",
    [
        FreqFormerConfig(),
        FreqFormerConfig.paper(),
        FreqFormerConfig.dense(),
        replace(SMALL, compression=7.3, mid_cutoff=1 / 3, deterministic=False),
        FreqFormerConfig(allocation=(MID,) * 512, routing="fixed"),
    ],
)
def test_a_record_comes_back_with_all_that_a_call_depends_on(config: FreqFormerConfig) -> None:
    record = CallRecord(Grid(21, 45, 80), config, 226, (LOW, DENSE))
    data = packed(record)
    assert data.shape == (RECORD_BYTES,)
    found = unpacked(data)
    assert found.config.for_plan() == config.for_plan()
    assert found.config.deterministic == config.deterministic
    assert replace(found, config=config) == record


def tensors() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    batch, heads, head_dim = 1, 3, 16
    tokens = GRID.num_tokens + TEXT
    shapes = {
        "query": (batch, tokens, heads, head_dim),
        "key": (batch, tokens, heads, head_dim),
        "value": (batch, tokens, heads, head_dim),
        "query_norm": (heads, head_dim),
        "key_norm": (heads, head_dim),
        "by_token": (batch, GRID.num_tokens, 2, heads),
    }
    return {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}


def options(given: dict[str, Tensor], impl: str) -> dict[str, Any]:
    """What both ways take alike."""
    angles = torch.arange(GRID.num_tokens * 8).view(-1, 8) / 50
    parameters = AttentionParameters(
        rotary=RotaryEmbedding(angles.cos(), angles.sin(), "halved"),
        query_norm=given["query_norm"],
        key_norm=given["key_norm"],
        norm_eps=1e-5,
        norm_across_heads=True,
        norm_text=False,
    )
    return {
        "parameters": parameters,
        "low_branch": BranchGates(by_token=given["by_token"]),
        "text_mask": torch.tensor([[True, False]]),
        "impl": impl,
    }


def by_constants(given: dict[str, Tensor], record: CallRecord, impl: str) -> Tensor:
    return frequency_attention(
        given["query"],
        given["key"],
        given["value"],
        grid=record.grid,
        allocation=KnownBands(BANDS, record.present),
        config=record.config,
        num_text_tokens=record.num_text_tokens,
        **options(given, impl),
    )


def by_record(given: dict[str, Tensor], record: Tensor, impl: str) -> Tensor:
    return recorded_attention(
        (given["query"], given["key"], given["value"]),
        allocation=RecordedBands(BANDS, record),
        **options(given, impl),
    )


@pytest.mark.parametrize(
    ("record", "impl"), [*((record, "eager") for record in RECORDS), (RECORDS[0], "triton")]
)
def test_output_and_gradients_have_the_bits_of_the_call_itself(
    record: CallRecord, impl: str
) -> None:
    results = []
    for call, told in ((by_constants, record), (by_record, packed(record))):
        given = {name: x.requires_grad_() for name, x in tensors().items()}
        out = call(given, told, impl)  # type: ignore[operator]
        draw = torch.Generator().manual_seed(1)
        grad_out = torch.randn(out.shape, generator=draw)
        results.append((out, *torch.autograd.grad(out, list(given.values()), grad_out)))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_what_asks_for_no_gradient_gets_none() -> None:
    given = tensors()
    given["key"].requires_grad_()
    by_record(given, packed(RECORDS[0]), "eager").sum().backward()
    assert given["key"].grad is not None
    assert given["query"].grad is None


def test_one_graph_reads_what_it_is_given() -> None:
    """Nothing of the record that it was traced with stays in the graph."""
    given = tensors()
    first, *others = RECORDS
    graph = make_fx(lambda record: by_record(given, record, "eager"))(packed(first))
    found = [graph(packed(record)) for record in others]
    for record, out in zip(others, found, strict=True):
        assert torch.equal(out, by_constants(given, record, "eager"))
    assert not torch.equal(found[0], found[1])


def test_operations_are_registered() -> None:
    given = {name: x.requires_grad_() for name, x in tensors().items()}
    arguments = record_operation.Inputs(
        given["query"],
        given["key"],
        given["value"],
        bands=BANDS,
        record=packed(RECORDS[0]),
        text_mask=torch.tensor([[True, False]]),
        impl="eager",
        head_parts=1,
        **record_operation.operands(options(given, "eager")["parameters"], None),
    )
    checks = torch.library.opcheck(torch.ops.freqformer.recorded_attention.default, arguments)
    assert set(checks.values()) == {"SUCCESS"}, checks


def test_torch_leaves_it_out_of_cuda_graphs() -> None:
    """By what Inductor itself asks before it captures."""
    given = tensors()
    graph = make_fx(lambda record: by_record(given, record, "eager"))(packed(RECORDS[0]))
    node = get_first_incompatible_cudagraph_node(graph)
    assert node is not None
    assert node.target is torch.ops.freqformer.recorded_attention.default
    backward = torch.ops.freqformer.recorded_attention_backward.default
    assert torch.Tag.cudagraph_unsafe in backward.tags


def test_a_capture_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its replay would do to later calls what this record says."""
    monkeypatch.setattr(record_operation, "_capturing", lambda query: True)
    with pytest.raises(ValueError, match=r"none is allowed in a capture: .*density_schedule"):
        by_record(tensors(), packed(RECORDS[0]), "eager")
