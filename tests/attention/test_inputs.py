"""What a layer's call refuses, and the remedies that it names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.support.layers import (
    CONFIG,
    GRID,
    HEADS,
    TIMESTEP,
    make_input,
    make_layer,
    make_rotary,
    make_table,
)

from freqformer import AttentionParameters, FreqAttention, frequency_attention
from freqformer.attention import NORM_EPS
from freqformer.grid import tile_layout
from freqformer.ops.backends import IMPLS
from freqformer.plan import build_plan

HIDDEN = make_input()
TENSORS = [torch.randn(1, GRID.num_tokens, 2, 4) for _ in range(3)]


def attend(**changes: Any) -> torch.Tensor:
    given = {"query": TENSORS[0], "key": TENSORS[1], "value": TENSORS[2]}
    call: dict[str, Any] = {
        **given,
        "grid": GRID,
        "allocation": [0, 2],
        "config": CONFIG,
        **changes,
    }
    return frequency_attention(call.pop("query"), call.pop("key"), call.pop("value"), **call)


CALLS: dict[str, tuple[Any, str]] = {
    "a triple for a grid": (
        lambda: attend(grid=(5, 4, 6)),
        r"grid is \(5, 4, 6\); a Grid is allowed: pass Grid\(5, 4, 6\)",
    ),
    "a list for the layer's grid": (
        lambda: make_layer()(HIDDEN, [5, 4, 6], TIMESTEP),
        r"pass Grid\(5, 4, 6\)",
    ),
    "a triple for a plan's grid": (
        lambda: build_plan((5, 4, 6), CONFIG, num_heads=1, head_dim=4),
        "a Grid is allowed",
    ),  # type: ignore[arg-type]
    "a dict for a config": (lambda: attend(config={"tile": (2, 2, 3)}), "config is .* from_dict"),
    "a dict for the layer's config": (
        lambda: FreqAttention(24, 3, {}),
        "config is {}; a FreqFormerConfig is allowed",
    ),  # type: ignore[arg-type]
    "a tensor for a selection": (
        lambda: attend(selection=torch.zeros(1)),
        r"selection is a Tensor; .* Selection\(tiles\)",
    ),
    "a dict for parameters": (
        lambda: attend(parameters={}),
        "parameters is {}; a AttentionParameters is allowed",
    ),
    "a list for tensors": (lambda: attend(key=[1.0]), r"key is \[1.0\]; a Tensor is allowed"),
    "a list for a mask": (lambda: attend(text_mask=[True]), "text_mask is .* a Tensor is allowed"),
    "a grid for a plan": (lambda: attend(plan=GRID), "plan is Grid.* build_plan"),
    "swapped axes": (
        lambda: attend(
            **{
                n: x.transpose(1, 2)
                for n, x in zip(("query", "key", "value"), TENSORS, strict=True)
            }
        ),
        r"query has 2 tokens and shape \(1, 2, 120, 4\).*axes look swapped.*transpose\(1, 2\)",
    ),
    "swapped axes of a layer": (
        lambda: make_layer()(HIDDEN.transpose(1, 2), GRID, TIMESTEP),
        r"hidden_states has shape .* axes look swapped, transpose\(1, 2\)",
    ),
    "a number for a timestep": (
        lambda: make_layer()(HIDDEN, GRID, 0.5),
        r"timestep is 0.5; .* torch.full\(\(batch,\)",
    ),
    "a scheduler's timestep": (
        lambda: make_layer()(HIDDEN, GRID, TIMESTEP * 1000),
        r"timestep is \[200.0, 900.0\]; numbers from 0 \(clean\) to 1 \(noise\) are allowed: "
        r"divide .* 1000",
    ),
    "NaN for a timestep": (
        lambda: make_layer()(HIDDEN, GRID, TIMESTEP * torch.nan),
        r"timestep is \[nan, nan\]",
    ),
    "a negative timestep of a dense layer": (
        lambda: make_layer(allocation="dense")(HIDDEN, GRID, -TIMESTEP),
        "timestep is",
    ),
    "an unknown impl of a dense layer": (
        lambda: make_layer(allocation="dense")(HIDDEN, GRID, TIMESTEP, impl="nonsense"),  # type: ignore[arg-type]
        f"impl is 'nonsense'; choose one of {', '.join(IMPLS)}",
    ),
    "an unknown order of a dense layer": (
        lambda: make_layer(allocation="dense")(HIDDEN, GRID, TIMESTEP, token_order="rows"),  # type: ignore[arg-type]
        "token_order is 'rows'",
    ),
    "rotary tables of other tokens": (
        lambda: make_layer(allocation="dense")(
            HIDDEN, GRID, TIMESTEP, (torch.ones(1, 4), torch.ones(1, 4))
        ),
        "parameters.rotary is torch.float32",
    ),
    "one rotary table": (
        lambda: make_layer(allocation="dense")(HIDDEN, GRID, TIMESTEP, make_rotary()[0]),
        "rotary is a Tensor; a RotaryEmbedding, or a pair",
    ),  # type: ignore[arg-type]
    "a config for a table": (
        lambda: make_layer().set_routing_table(CONFIG),
        "table is FreqFormerConfig.* RoutingTable.load",
    ),  # type: ignore[arg-type]
    "True for heads": (
        lambda: build_plan(GRID, CONFIG, num_heads=True, head_dim=4),
        "num_heads is True",
    ),
    "True for text": (lambda: attend(num_text_tokens=True), "num_text_tokens is True"),
    "True for a band": (
        lambda: make_layer(routing="fixed", allocation=[True, 1, 2]),
        r"allocation is \[True, 1, 2\]",
    ),
    "parts of bands": (
        lambda: make_layer(routing="fixed", allocation=[0.5, 1, 2]),
        r"allocation is \[0.5, 1, 2\]",
    ),
    "one number for bands": (
        lambda: make_layer(routing="fixed", allocation=1),
        "allocation is 1; bands from 0 to 3",
    ),
    "nonsense for dense": (lambda: make_layer().set_dense("yes"), "dense is 'yes'"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", CALLS)
def test_wrong_inputs_are_refused_with_the_remedy(case: str) -> None:
    call, message = CALLS[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_layer_and_function_take_raster_order_unless_told() -> None:
    layer, rotary = make_layer(routing="fixed"), make_rotary()
    out = layer(HIDDEN, GRID, TIMESTEP, rotary)
    assert torch.equal(out, layer(HIDDEN, GRID, TIMESTEP, rotary, token_order="raster"))
    assert not torch.allclose(
        out, layer(HIDDEN, GRID, TIMESTEP, rotary, token_order="tile"), atol=1e-3
    )
    tensors = [to(HIDDEN).unflatten(2, (HEADS, -1)) for to in (layer.to_q, layer.to_k, layer.to_v)]
    parameters = AttentionParameters(
        layer.summary_queries,
        layer.summary_offsets,
        rotary=rotary,
        query_norm=layer.query_norm,
        key_norm=layer.key_norm,
        norm_eps=NORM_EPS,
    )
    attended = frequency_attention(
        *tensors, grid=GRID, allocation=layer.bands, config=CONFIG, parameters=parameters
    )
    assert torch.equal(out, layer.to_out(attended.flatten(2)))


@pytest.mark.parametrize("impl", ["reference", "eager"])
@pytest.mark.parametrize("order", ["raster", "tile"])
def test_a_dense_layer_runs_the_code_that_is_asked_for(impl: Any, order: Any) -> None:
    layer, rotary = make_layer(allocation="dense"), make_rotary()
    if order == "tile":
        rotary = tuple(x[tile_layout(GRID, CONFIG.tile).raster_to_tile] for x in rotary)  # type: ignore[assignment]
    usual = layer(HIDDEN, GRID, TIMESTEP, rotary, token_order=order)
    out = layer(HIDDEN, GRID, TIMESTEP, rotary, token_order=order, impl=impl)
    torch.testing.assert_close(out, usual, rtol=1e-4, atol=1e-6)
    assert not torch.equal(out, usual)
    with pytest.raises(ValueError, match="impl is 'triton', which can't run: the tensors are flo"):
        layer.double()(HIDDEN.double(), GRID, TIMESTEP, impl="triton")


@pytest.mark.parametrize("routing", ["soft", "hard", "fixed"])
def test_dense_on_request_is_exact_attention_alone(routing: Any) -> None:
    layer, dense = make_layer(routing=routing, low_branch=True), make_layer(allocation="dense")
    assert layer.gates is not None
    torch.nn.init.constant_(layer.gates.bias, 0.3)
    own = {
        name: x
        for name, x in layer.state_dict().items()
        if name in dense.state_dict() and name != "allocation"
    }
    dense.load_state_dict(own)
    before = layer(HIDDEN, GRID, TIMESTEP)
    layer.set_dense(True)
    assert torch.equal(layer(HIDDEN, GRID, TIMESTEP), dense(HIDDEN, GRID, TIMESTEP))
    assert layer.allocation_used is not None
    assert layer.allocation_used.tolist() == [[3] * HEADS] * len(HIDDEN)
    layer.set_routing_table(make_table(torch.zeros(1, 1, HEADS, dtype=torch.int64)))
    assert torch.equal(layer(HIDDEN, GRID, TIMESTEP), dense(HIDDEN, GRID, TIMESTEP))
    layer.set_routing_table(None)
    layer.set_dense(False)
    assert torch.equal(layer(HIDDEN, GRID, TIMESTEP), before)
