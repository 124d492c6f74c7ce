"""Norms and rotary embeddings of other models on a GPU, and the plug-in's calls in CUDA graphs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

pytest.importorskip("triton")

from tests.support.cases import GATES, Case, make_inputs
from tests.support.enabled_models import HIGH, LOW, MID, layers_of, make_table
from tests.support.fused import check_call
from tests.support.numerics import nan_filled_allocations
from tests.support.tiny_transformers import WAN, wan_inputs

from freqformer.config import FreqFormerConfig
from freqformer.grid import Grid
from freqformer.integrations.diffusers import enable_frequency_attention

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
SIZE = (5, 6, 9)
TEXT: dict[str, Any] = {"num_text_tokens": 77, "mask": "random"}


def gpu_case(*learned: str, **changes: Any) -> Case:
    told: dict[str, Any] = {
        "grid": Grid(9, 17, 25),
        "config": FreqFormerConfig(mid_tiles=5, summary_tokens=9),
        "allocation": ((0, 1, 2, 3),),
        "head_dim": 128,
        "dtype": torch.bfloat16,
    }
    return Case(**told | changes, learned=learned)


CASES = {
    "Wan": gpu_case("norm across heads", "rotary"),
    "LTX, two samples": gpu_case(
        "norm across heads", "packed", allocation=((0, 1, 2, 3), (3, 2, 1, 0)), head_dim=64, **TEXT
    ),
    "LTX-2": gpu_case("norm across heads", "halved", gates=GATES),
    "HunyuanVideo": gpu_case("norm", "normalised text", "rotary", **TEXT),
    "MiniMax-H3": gpu_case("norm", "halved, packed", dtype=torch.float16, **TEXT),
    "float32": gpu_case("norm across heads", "halved", dtype=torch.float32, **TEXT),
    "learned summaries": gpu_case("norm across heads", "halved", "summaries", "offsets", **TEXT),
}


@pytest.mark.parametrize("name", CASES)
def test_output_and_gradients(name: str) -> None:
    case = CASES[name]
    with nan_filled_allocations():
        check_call(case, make_inputs(case, "cuda"), gradients=True)


def wan() -> Any:
    torch.manual_seed(0)
    settings: dict[str, Any] = {**WAN, "num_layers": 4}
    model: Any = WanTransformer3DModel(**settings).eval()
    return model.to("cuda", torch.bfloat16)


def wan_call(model: Any, timestep: float, seed: int) -> torch.Tensor:
    given = {name: x.cuda() for name, x in wan_inputs([timestep], SIZE).items()}
    draw = torch.Generator("cuda").manual_seed(seed)
    video = torch.randn(given["hidden_states"].shape, generator=draw, device="cuda")
    given |= {
        "hidden_states": video.bfloat16(),
        "encoder_hidden_states": given["encoder_hidden_states"].bfloat16(),
    }
    return model(**given).sample


# torch's own trees of graphs begin with an empty one.
@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
@pytest.mark.parametrize("kinds", [[[LOW, HIGH]], [[LOW, HIGH], [MID, HIGH]]])
@torch.no_grad()
def test_cuda_graphs_of_repeated_blocks(kinds: list[list[int]]) -> None:
    """Replayed over layers, steps and prompts they give what calls without them do: nothing of a
    call is read on the host, or lies in memory that a later replay writes. Where steps differ,
    attention stays out of them, since a replay would do what the captured step did."""
    model = wan()
    layers = len(layers_of(model))
    table = make_table([[bands] * layers for bands in kinds])
    steps = [(900.0 - 100 * step, seed) for seed in (0, 1) for step in range(8)]
    with enable_frequency_attention(model, table):
        wanted = [wan_call(model, *step) for step in steps]
        model.compile_repeated_blocks(fullgraph=True, mode="reduce-overhead")
        found = []
        for step in steps:
            torch.compiler.cudagraph_mark_step_begin()
            found.append(wan_call(model, *step).clone())
    for x, y in zip(found, wanted, strict=True):
        torch.testing.assert_close(x, y, rtol=2e-2, atol=2e-2)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@torch.no_grad()
def test_a_step_reads_the_device_once() -> None:
    """Warnings of torch's own count what waits for the GPU within a call."""
    model = wan()
    layers = len(layers_of(model))
    with enable_frequency_attention(model, make_table([[[MID, HIGH]] * layers])):
        wan_call(model, 500.0, 0)  # plans and tables are uploaded
        given = {name: x.cuda() for name, x in wan_inputs([400.0], SIZE).items()}
        given = {name: x.bfloat16() if x.ndim > 1 else x for name, x in given.items()}
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with pytest.warns(UserWarning, match="synchroniz") as waits:
                model(**given)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len(waits) == 1
