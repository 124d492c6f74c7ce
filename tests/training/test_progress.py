"""What a run shows of itself."""

from __future__ import annotations

import pytest
import torch

from freqformer.training.config import RunConfig
from freqformer.training.progress import foretold, progress_shown, spoken
from freqformer.training.report import StepNumbers, StepReport

CPU = torch.device("cpu")


def report(step: int, seconds: float, steps: int = 1000, loss: float = 0.5) -> StepReport:
    return StepReport(step, StepNumbers.of(loss, 0.0, 1.0), 1e-3, seconds, step / steps)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (3, "3 s"),
        (119, "119 s"),
        (600, "10 minutes"),
        (5400, "90 minutes"),
        (25_000, "7 h"),
        (400_000, "5 days"),
    ],
)
def test_durations_are_said_as_people_do(seconds, text):
    assert spoken(seconds) == text


def test_a_long_run_is_foretold_and_a_short_one_is_not():
    line = foretold(RunConfig(max_steps=1000), report(3, 160.0), 50.0, CPU)
    assert line == (
        "about 14 h on this CPU (50 s a step, 997 steps to go): a GPU is meant for runs like "
        "this one"
    )
    assert foretold(RunConfig(max_steps=1000), report(3, 1.0), 0.5, CPU) is None
    # The clock that ends a run ends the wait.
    assert (
        foretold(RunConfig(max_steps=1000, max_seconds=300.0), report(3, 160.0), 50.0, CPU) is None
    )


def shown(
    capsys: pytest.CaptureFixture, reports: list[StepReport], *, enabled: bool = True, **run: object
) -> str:
    with progress_shown(RunConfig(max_steps=1000, **run), CPU, enabled=enabled) as progress:
        progress.begin(0.0)
        for each in reports:
            progress.show(each)
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_nothing_is_said_to_be_nan_before_the_first_step(capsys):
    assert "first step under way" in (text := shown(capsys, []))
    assert "nan" not in text


def test_the_first_step_alone_does_not_measure_a_run_unless_it_is_long(capsys):
    # 15 s to begin with, 0.1 s afterwards: not long, so nothing is foretold.
    quick = [report(step, 15 + step / 10) for step in range(1, 6)]
    assert "about" not in shown(capsys, quick)
    assert "about 14 h" in " ".join(shown(capsys, [report(1, 50.0)]).split())
    assert "about" not in shown(capsys, [report(1, 50.0)], compile=True)
    slow = [report(step, 4.0 * step) for step in range(1, 9)]
    text = " ".join(shown(capsys, slow).split())
    assert text.count("about 66 minutes on this CPU (4 s a step, 997 steps to go)") == 1
    assert "step 8 loss 0.5000 4 s a step" in text


def test_lines_stand_in_for_the_bar_in_a_file(capsys):
    text = " ".join(shown(capsys, [report(1, 1.0), report(2, 2.0)]).split())
    assert text.count("training 0% step 1 loss 0.5000 1 s a step") == 1


def test_a_run_can_be_silent(capsys):
    assert shown(capsys, [report(1, 50.0)], enabled=False) == ""
