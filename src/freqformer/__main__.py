"""The command `freqformer`, and `python -m freqformer` where it isn't installed."""

import sys

from freqformer._interrupt import end_at_once

USER_ERROR = 2


def main() -> None:
    """Run the command line; from here on a signal ends it without a traceback.

    Where its packages are missing, it says which to install.
    """
    end_at_once()
    from freqformer._optional import MissingPackageError

    try:
        from freqformer.cli import app
    except MissingPackageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)
    # The records of runs name the command as it is installed, and so does help.
    sys.argv[0] = "freqformer"
    app(prog_name="freqformer")


if __name__ == "__main__":
    main()
