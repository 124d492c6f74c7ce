"""`python -m freqformer`, where no command is installed."""

import sys

from freqformer.cli import app

# The records of runs name the command as it is installed, and so does help.
sys.argv[0] = "freqformer"
app(prog_name="freqformer")
