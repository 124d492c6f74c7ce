"""The command line as it is typed, in this process."""

from __future__ import annotations

from typer.testing import CliRunner, Result

from freqformer.cli import app
from freqformer.cli.console import USER_ERROR

TINY = [
    *(
        "--set",
        "data.num_frames=4",
        "--set",
        "data.height=16",
        "--set",
        "data.width=16",
        "--set",
        "data.fps=10",
    ),
    *(
        "--set",
        "model.num_layers=1",
        "--set",
        "model.num_attention_heads=3",
        "--set",
        "model.attention_head_dim=8",
    ),
    *("--set", "run.batch_size=1", "--set", "run.progress=false", "--set", "run.device=cpu"),
]
"""Settings of the smallest run."""


def invoke(*arguments: object) -> Result:
    """What became of a command."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def run(*arguments: object, code: int = 0) -> str:
    """The output of a command that must end with this exit code, its white space as single
    blanks."""
    result = invoke(*arguments)
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def refused(*arguments: object, message: str) -> None:
    """A command must end with one line that says this, and no traceback."""
    output = run(*arguments, code=USER_ERROR)
    assert message in output, output
    assert output.count("error:") == 1
    assert "Traceback" not in output
