"""What compiled graphs take as constant, and what they leave out."""

from __future__ import annotations

import inspect

import torch
from torch._dynamo.testing import CompileCounter

from freqformer.config import FreqFormerConfig
from freqformer.grid import Grid
from freqformer.tracing import constant_result

CALLS = []


@constant_result
def described(
    grid: Grid, config: FreqFormerConfig, device: torch.device, *, count: int, side: tuple | None
) -> float:
    """Untraceable on purpose."""
    CALLS.append((grid, config, device, count, side))
    return grid.num_frames * 1000 + config.compression * 10 + count + (0.5 if side else 0)


def add(
    x: torch.Tensor, grid: Grid, config: FreqFormerConfig, count: int, side: tuple | None
) -> torch.Tensor:
    return x + described(grid, config, x.device, count=count, side=side)


def test_traced_and_plain_calls_agree_for_arguments_that_change() -> None:
    counter = CompileCounter()
    compiled, x = torch.compile(add, backend=counter, fullgraph=True), torch.zeros(2)
    calls = [
        (Grid(3, 4, 5), FreqFormerConfig(), 7, None),
        (Grid(4, 4, 5), FreqFormerConfig(compression=8), 7, (1, 2)),
        (Grid(4, 4, 5), FreqFormerConfig(compression=8, tile=(2, 4, 8)), 9, (1, 2)),
        (Grid(5, 4, 5), FreqFormerConfig(compression=2), 6, None),
    ]
    expected = [add(x, *call) for call in calls]
    CALLS.clear()
    for _ in range(2):
        for call, wanted in zip(calls, expected, strict=True):
            assert torch.equal(compiled(x, *call), wanted)
    assert counter.frame_count == len(CALLS) == len(calls)
    assert CALLS[1] == (*calls[1][:2], torch.device("cpu"), *calls[1][2:])


def test_a_plain_call_passes_its_arguments_on() -> None:
    grid, config = Grid(1, 1, 1), FreqFormerConfig()
    CALLS.clear()
    assert described(grid, config, torch.device("cpu"), count=1, side=None) == 1321
    assert CALLS[0][0] is grid
    assert CALLS[0][1] is config
    assert described.__name__ == "described"


@constant_result
def ramp(length: int) -> torch.Tensor:
    return torch.arange(length).float()


@constant_result
def ramps(lengths: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(torch.arange(length).float() for length in lengths)


def test_tensors_of_several_functions_are_held_by_one_graph() -> None:
    def ramped(x: torch.Tensor) -> torch.Tensor:
        first, second = ramps((4, 4))
        return x * ramp(4) + x * first + x * second

    x = torch.ones(4, requires_grad=True)
    assert torch.equal(torch.compile(ramped, backend="aot_eager", fullgraph=True)(x), ramped(x))


def test_marked_as_torch_marks_it() -> None:
    """Its mark is set by hand, since torch's decorator imports the compiler."""

    def plain() -> None: ...

    torch.compiler.assume_constant_result(plain)
    marked = inspect.getclosurevars(ramp).nonlocals["from_fields"]
    assert vars(plain)
    assert vars(marked) == vars(plain)
