"""impl="triton" from end to end on a GPU: numerics, launches, memory, no wait for the device, CUDA
graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from freqformer.attention import frequency_attention
from freqformer.config import FreqFormerConfig
from freqformer.grid import Grid

pytest.importorskip("triton")

from tests.support.cases import GATES, Case, make_inputs, select
from tests.support.fused import check_call
from tests.support.numerics import nan_filled_allocations

from freqformer.ops import fused
from freqformer.plan import Selection

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
GRID = Grid(9, 17, 25)
CONFIG = FreqFormerConfig(mid_tiles=5, summary_tokens=9)
EVERY_BAND = ((0, 1, 2, 3),)
LEARNED = ("summaries", "offsets", "rotary", "norm")


def make_case(**changes: Any) -> Case:
    told: dict[str, Any] = {
        "grid": GRID,
        "config": CONFIG,
        "allocation": EVERY_BAND,
        "head_dim": 128,
    }
    return Case(**told | {"dtype": torch.bfloat16} | changes)


CASES = {
    "plain": make_case(),
    "LOW branch": make_case(gates=GATES, learned=LEARNED, num_text_tokens=77, mask="random"),
    "LOW branch, windows": make_case(gates=GATES, allocation=((2, 2, 2),), head_dim=128),
    "LOW branch, float32": make_case(gates=GATES, learned=LEARNED, dtype=torch.float32),
    "learned": make_case(learned=LEARNED),
    "learned, head_dim 64, text": make_case(
        learned=LEARNED, head_dim=64, num_text_tokens=77, mask="random"
    ),
    "full tiles, outliers": make_case(
        grid=Grid(8, 16, 32), learned=LEARNED, outliers=True, dtype=torch.float16
    ),
    "float32": make_case(learned=LEARNED, dtype=torch.float32),
    "values": make_case(
        config=replace(CONFIG, band_features="high_pass_values"), num_text_tokens=5
    ),
    "gains": make_case(
        config=replace(CONFIG, band_features="band_gains"), learned=LEARNED, num_text_tokens=5
    ),
    "gains in float32": make_case(
        config=replace(CONFIG, band_features="band_gains"), learned=LEARNED, dtype=torch.float32
    ),
    "strict": make_case(
        config=replace(CONFIG, band_features="own_band"),
        learned=("summaries",),
        dtype=torch.float16,
    ),
    "axial": make_case(
        config=replace(CONFIG, mid_pattern="axial", low_output="inverse_dct"), token_order="tile"
    ),
    "little compression": make_case(
        config=replace(CONFIG, compression=2), allocation=((0, 0),), head_dim=64
    ),
    "by sample": make_case(allocation=((0, 1, 2), (2, 0, 3)), learned=("rotary",), head_dim=64),
}


@pytest.mark.parametrize("name", CASES)
def test_as_near_float64_as_the_peer(name: str) -> None:
    with nan_filled_allocations():
        check_call(CASES[name], make_inputs(CASES[name], "cuda"))


def call_of(
    case: Case, allocation: Tensor | list[int], selection: Selection | None = None
) -> Callable[[], Tensor]:
    inputs = make_inputs(case, "cuda")

    def call() -> Tensor:
        return frequency_attention(
            inputs.query,
            inputs.key,
            inputs.value,
            grid=case.grid,
            allocation=allocation,
            config=case.config,
            num_text_tokens=case.num_text_tokens,
            text_mask=inputs.text_mask,
            parameters=inputs.parameters,
            selection=selection,
            token_order=case.token_order,
            impl="triton",
        )

    return call


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("where", ["host", "device"])
def test_nothing_waits_for_the_device(where: str) -> None:
    case = CASES["learned, head_dim 64, text"]
    bands = torch.tensor(case.allocation[0])
    call = call_of(case, bands.cuda() if where == "device" else bands)
    wanted = call()  # builds and uploads the tables
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(got, wanted)


def test_the_host_and_the_device_know_the_same_allocation() -> None:
    case = CASES["learned"]
    assert torch.equal(
        call_of(case, [0, 1, 2, 3])(), call_of(case, torch.tensor([0, 1, 2, 3], device="cuda"))()
    )


def test_a_cuda_graph_replays_the_call() -> None:
    case = CASES["learned"]
    bands = torch.tensor(case.allocation[0], device="cuda")
    call = call_of(case, bands)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    for allocation in ([0, 1, 2, 3], [2, 0, 1, 1], [0, 0, 0, 7]):
        bands.copy_(torch.tensor(allocation))
        graph.replay()
        wanted = call_of(case, torch.tensor(allocation, device="cuda"))()
        assert torch.equal(captured.nan_to_num(9.0), wanted.nan_to_num(9.0))
        assert captured[:, : case.grid.num_tokens].isnan().any() == (7 in allocation)


def test_at_most_seven_launches() -> None:
    """Of which learned summaries take one, MID heads that choose tiles one, long text one."""
    from torch.profiler import ProfilerActivity, profile

    case = make_case(grid=Grid(16, 32, 64), learned=LEARNED, num_text_tokens=33)
    for allocation in ([0, 1, 2, 3], torch.tensor([0, 1, 2, 3], device="cuda")):
        call = call_of(case, allocation)
        call()
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as recorded:
            call()
            torch.cuda.synchronize()
        names = [
            event.name for event in recorded.events() or () if event.device_type.name == "CUDA"
        ]
        assert 5 <= len(names) <= 7, names


def test_memory_is_what_the_plan_says() -> None:
    case = make_case(grid=Grid(16, 64, 64), learned=LEARNED)
    call = call_of(case, [0, 1, 2, 3])
    out = call()
    size = out.numel() * out.element_size()
    del out
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    held = torch.cuda.max_memory_allocated() - before - size
    assert held <= 1.01 * fused.workspace_bytes(case.plan, 1, case.dtype) + (1 << 20)
    assert held <= 1.2 * 4 * size


def test_the_same_bits_at_every_run() -> None:
    for name in ("learned", "gains", "learned, head_dim 64, text"):
        call = call_of(CASES[name], list(CASES[name].allocation[0]))
        first = call()
        assert all(torch.equal(call(), first) for _ in range(3))


def test_it_chooses_the_tiles_that_float64_chooses() -> None:
    case = make_case(
        grid=Grid(8, 32, 64), allocation=((1, 1),), learned=("rotary", "norm"), dtype=torch.float32
    )
    inputs = make_inputs(case, "cuda")
    chosen, given = call_of(case, [1, 1])(), call_of(case, [1, 1], select(case, inputs))()
    # A choice between scores that differ by a rounding may fall either way: few tiles, if any.
    differ = (chosen != given).flatten(2).any(-1).float().mean()
    assert differ <= 0.05
