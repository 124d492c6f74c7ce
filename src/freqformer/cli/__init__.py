"""The command line: `freqformer`, and a file for every command."""

from freqformer.cli.main import app

__all__ = ["app"]
