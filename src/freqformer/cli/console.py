"""Where commands report errors and progress, and the exit codes they end with."""

from __future__ import annotations

from rich.console import Console

USER_ERROR = 2
INTERRUPTED = 130
"""Exit code of a command that Ctrl-C ended, as shells count it."""

errors = Console(stderr=True, soft_wrap=True)
