"""The command line: `freqformer`, and a file for every command."""

from freqformer._optional import needs

with needs("cli"):
    from freqformer.cli.main import app

__all__ = ["app"]
