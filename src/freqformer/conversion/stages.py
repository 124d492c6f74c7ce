"""The loss of each stage, and its gradient."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from freqformer.conversion.feeds import Question
from freqformer.conversion.pairs import Pair, relative_error
from freqformer.conversion.schedule import Stage


def add_gradient(pair: Pair, question: Question, stage: Stage, weight: float) -> Tensor:
    """Add the gradient of one forward pass to what learns.

    Args:
        pair: the two models.
        question: what they are asked.
        stage: `layers` compares the outputs of every attention layer, the mean of their relative
            squared errors; `velocity` those of the models, `data` the converted model's velocity
            with the flow's, both mean squared errors.
        weight: of the gradient.

    Returns: the loss, a scalar without graph.

    Raises:
        ValueError: for the stage `data` where no clip is known.
    """
    if stage == "layers":
        return _layers(pair, question, weight)
    with pair.computing():
        wanted = _target(question) if stage == "data" else pair.teacher(question.ask)
        found = pair.student(question.ask)
    loss = functional.mse_loss(found.float(), wanted.float())
    (weight * loss).backward()
    return loss.detach()


def _layers(pair: Pair, question: Question, weight: float) -> Tensor:
    errors: list[Tensor] = []

    def learn(_name: str, found: Any, wanted: Any) -> None:
        error = relative_error(found, wanted)
        # Backwards at once, so that the graph of one layer is there at a time.
        (weight / pair.layer_count * error).backward()
        errors.append(error.detach())

    with pair.computing():
        pair.align(question.ask, learn)
    total = errors[0].new_zeros(())
    for error in errors:
        total = total + error / pair.layer_count
    return total


def _target(question: Question) -> Tensor:
    if question.target is None:
        raise ValueError(
            "stages.data_steps is above 0 and the run has recorded calls, which know no clips; 0 "
            "is allowed: give a cache"
        )
    return question.target


def gradient_norm(trained: nn.Module, most: float) -> Tensor:
    """The norm, on the device, of all gradients; they are scaled down to `most` where it is larger.

    Args:
        trained: what learns.
        most: norm that they are clipped to.
    """
    return nn.utils.clip_grad_norm_(trained.parameters(), most)
