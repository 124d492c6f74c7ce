"""OUTPUT/run, where the demo trains: a folder that it may replace, and none of anybody else's."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

RUN_MARK = "made-by-the-demo"
OF_A_RUN = {
    *(RUN_MARK, "checkpoints", "logs", "pipeline", "sessions.json", "parts.json", "train.json"),
    *(".freqformer.lock", ".freqformer.lock.json", ".freqformer-output.json"),
}
"""What a run holds, that of a version before included."""


def fresh_run_folder(output: Path) -> Path:
    """OUTPUT/run, empty but for a mark that the demo may replace it."""
    run = output / "run"
    mark = run / RUN_MARK
    foreign = (
        [path.name for path in run.iterdir() if path.name not in OF_A_RUN] if run.is_dir() else []
    )
    if os.path.lexists(run) and (foreign or run.is_symlink() or not mark.is_file()):
        what = (
            f"holds {', '.join(foreign[:3])}, which no demo made,"
            if foreign
            else "was not made by a demo"
        )
        raise ValueError(f"{run} {what} and is kept; choose another --output, or move it away")
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    mark.touch()
    return run
