"""The command `freqformer`, and `python -m freqformer` where it isn't installed."""

import sys

from freqformer._interrupt import end_at_once


def main() -> None:
    """Run the command line; from here on a signal ends it without a traceback."""
    end_at_once()
    from freqformer.cli import app

    # The records of runs name the command as it is installed, and so does help.
    sys.argv[0] = "freqformer"
    app(prog_name="freqformer")


if __name__ == "__main__":
    main()
