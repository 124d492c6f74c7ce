"""The command `freqformer`, and `python -m freqformer` where no command is installed."""

import sys

USER_ERROR = 2


def main() -> None:
    """Run the command line; where its packages are missing, say which to install."""
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
