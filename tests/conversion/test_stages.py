"""Both models are asked the same, and each stage lowers its loss, in every family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.integrations.test_minimax_h3 import SOUND, TEXT, make_model, packed
from tests.support.tiny_conversions import FAMILIES, SIZE, WINDOWS, make_dense_folder

from freqformer.conversion.diffusers_pair import DiffusersPair
from freqformer.conversion.feeds import Question
from freqformer.conversion.own_pair import OwnPair
from freqformer.conversion.pairs import Pair, relative_error
from freqformer.conversion.schedule import Stage
from freqformer.conversion.stages import add_gradient
from freqformer.integrations.diffusers.converted.adapter import AdapterSettings
from freqformer.integrations.diffusers.converted.windows import WindowSettings
from freqformer.models.pipeline import FreqFormerPipeline

DENSITY = 0.8
"""What text and sound leave room for in the smallest videos."""
LORA = AdapterSettings(WINDOWS, "lora", 4)
TILES = replace(WINDOWS, density=0.6, pattern="tiles")
Made = tuple[Pair, Question]


def of_family(family: str, settings: AdapterSettings = LORA) -> Made:
    model, given = FAMILIES[family]()
    timestep = torch.tensor([700.0])

    def ask(asked: Any) -> torch.Tensor:
        return asked(**given, timestep=timestep, return_dict=False)[0]

    torch.manual_seed(1)
    return DiffusersPair(model, settings), Question(ask, None)


def minimax_h3() -> Made:
    torch.manual_seed(0)
    model, layout = make_model(), packed(SIZE, 1)
    area = SIZE[1] * SIZE[2]
    which = torch.zeros(len(layout["token_tags"]), dtype=torch.long)
    which[layout["video_indices"][:area]] = 1
    given = {
        "hidden_states": torch.randn(1, len(layout["video_indices"]), 16),
        "audio_hidden_states": torch.randn(1, 2 * SOUND, 4),
        "encoder_hidden_states": torch.randn(1, TEXT, 16),
        "timestep": torch.tensor([0.3, 1.0]),
        "timestep_indices": which,
        **layout,
    }

    def ask(asked: Any) -> torch.Tensor:
        return asked(**given, return_dict=False)[0]

    return DiffusersPair(model, LORA), Question(ask, None)


def own(change: Any, folder: Path, windows: WindowSettings = WINDOWS) -> Made:
    pipeline = FreqFormerPipeline.from_pretrained(make_dense_folder(folder))
    grid = pipeline.transformer.grid_for((2, 24, 32))
    torch.manual_seed(1)
    pair = OwnPair(pipeline, AdapterSettings(windows, change, 4), grid)
    noisy = torch.randn(1, 3, 2, 24, 32)

    def ask(asked: Any) -> torch.Tensor:
        return asked(noisy, torch.tensor([700.0]), return_dict=False)[0]

    return pair, Question(ask, torch.randn(1, 3, 2, 24, 32))


@pytest.fixture(params=[*FAMILIES, "minimax_h3", "own, lora", "own, full", "tiles", "own, tiles"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Made:
    name = request.param
    makers: dict[str, Callable[[], Made]] = {
        "minimax_h3": minimax_h3,
        "own, lora": lambda: own("lora", tmp_path),
        "own, full": lambda: own("full", tmp_path),
        "tiles": lambda: of_family("wan", replace(LORA, windows=TILES)),
        "own, tiles": lambda: own("full", tmp_path, TILES),
    }
    return makers.get(name, lambda: of_family(name))()


def losses(
    pair: Pair, question: Question, stage: Stage, steps: int, rate: float = 1e-3
) -> list[float]:
    """Before each step on one question."""
    optimizer = torch.optim.Adam([p for p in pair.trained.parameters() if p.requires_grad], rate)
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        found.append(float(add_gradient(pair, question, stage, 1.0)))
        optimizer.step()
    return found


def test_at_density_1_there_is_nothing_to_learn(made: Made) -> None:
    pair, question = made
    pair.set_density(1.0)
    assert float(add_gradient(pair, question, "layers", 1.0)) < 1e-9
    torch.testing.assert_close(
        pair.student(question.ask), pair.teacher(question.ask), rtol=1e-4, atol=1e-5
    )


def test_stage_one_then_stage_two_lower_their_loss(made: Made) -> None:
    pair, question = made
    pair.set_density(DENSITY)
    teacher = pair.teacher(question.ask)
    of_layers = losses(pair, question, "layers", 8)
    assert of_layers[-1] < 0.9 * of_layers[0]
    of_velocity = losses(pair, question, "velocity", 8, 2e-4)
    assert of_velocity[-1] < 0.9 * of_velocity[0]
    assert torch.equal(pair.teacher(question.ask), teacher)


def test_the_gradient_of_one_layer_is_that_of_its_own_loss(made: Made) -> None:
    """One backward per layer adds up to the gradient of the mean."""
    pair, question = made
    pair.set_density(DENSITY)
    errors: list[torch.Tensor] = []
    pair.align(question.ask, lambda _name, a, b: errors.append(relative_error(a, b)))
    assert len(errors) == pair.layer_count
    torch.stack(errors).mean().backward()
    wanted = [None if p.grad is None else p.grad.clone() for p in pair.trained.parameters()]
    pair.trained.zero_grad()
    add_gradient(pair, question, "layers", 1.0)
    for parameter, grad in zip(pair.trained.parameters(), wanted, strict=True):
        if grad is not None:
            torch.testing.assert_close(parameter.grad, grad)
    assert any(grad is not None and bool(grad.any()) for grad in wanted)


def test_stage_three_follows_the_clips(tmp_path: Path) -> None:
    pair, question = own("full", tmp_path)
    pair.set_density(0.4)
    of_data = losses(pair, question, "data", 6)
    assert of_data[-1] < of_data[0]
    assert question.target is not None
    wanted = (pair.student(question.ask) - question.target).square().mean().detach()
    assert float(add_gradient(pair, question, "data", 1.0)) == pytest.approx(float(wanted))


def test_recorded_calls_have_no_stage_three() -> None:
    pair, question = of_family("wan")
    with pytest.raises(ValueError, match="data_steps is above 0 and the run has recorded calls"):
        add_gradient(pair, question, "data", 1.0)


def test_relative_error_counts_tuples_as_one_vector() -> None:
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([3.0])
    assert float(relative_error((a, b), (2 * a, b))) == pytest.approx(5 / (4 * 5 + 9))
