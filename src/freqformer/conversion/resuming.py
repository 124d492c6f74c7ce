"""In what a resumed conversion may differ from its beginning."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from freqformer.conversion.config import ConvertConfig
from freqformer.training.checkpoint import CheckpointError

MAY_CHANGE = {
    "pipeline": None,
    "output": None,
    "calls": None,
    "checkpoint": None,
    "data": ("path", "photographs", "cache", "workers", "cache_mib"),
    "run": (
        *("device", "progress", "tracker", "gradient_checkpointing", "accumulation"),
        "parallel",
    ),
}
"""Fields that change nothing but where and with what memory a run goes on; None is all of a
section. Forward passes may be shared otherwise while a step has as many clips."""
STATE = {
    "config": dict,
    "data": str,
    "ema_steps": int,
    "seconds": int | float,
    "step": int,
}
"""What a checkpoint's state must hold, and of which kind."""


def check_same_run(
    path: Path, state: dict[str, Any], config: ConvertConfig, data: str, clips: int
) -> None:
    """Refuse a checkpoint of another run.

    Args:
        path: the checkpoint's folder.
        state: of the checkpoint.
        config: of the run that goes on.
        data: fingerprint of what it asks.
        clips: of a step, by all processes.

    Raises:
        CheckpointError: for a state that no conversion wrote, for fields that differ, with both
            values of each, and for other clips.
    """
    wrong = sorted(name for name, kind in STATE.items() if not isinstance(state.get(name), kind))
    if wrong:
        raise CheckpointError(
            f"{path} lacks sound {wrong} in its state; it is damaged or not of a conversion: "
            "remove it, or choose an empty output folder"
        )
    then, now = (_fixed(values) for values in (state["config"], config.to_record()))
    then.setdefault("windows.pattern", "window")  # of versions that knew no other
    then["clips_per_step"] = state.get("clips_per_step", _clips_of_one(state["config"]))
    now["clips_per_step"] = clips
    changed = sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))
    if changed:
        told = [f"{name} was {then.get(name)!r} and is {now.get(name)!r}" for name in changed]
        raise CheckpointError(
            f"{path} was made by another run: {', '.join(told)}; resume with the same, or choose an"
            " empty output folder"
        )
    if state["data"] != data:
        raise CheckpointError(
            f"{path} was made on other clips; the same are allowed: give the cache or the videos "
            "that the run began with, or choose an empty output folder"
        )


def _clips_of_one(config: dict[str, Any]) -> Any:
    """Clips of a step of versions that ran in one process and didn't note them."""
    run = config.get("run")
    counts = [run.get(name) for name in ("batch_size", "accumulation")] if run else []
    whole = [count for count in counts if isinstance(count, int)]
    return math.prod(whole) if len(whole) == 2 else None


def _fixed(config: dict[str, Any]) -> dict[str, Any]:
    """The fields that stay, by dotted name, as JSON holds them."""
    fields: dict[str, Any] = {}
    for section, values in json.loads(json.dumps(config)).items():
        free = MAY_CHANGE.get(section, ())
        if free is None:
            continue
        if not isinstance(values, dict):
            fields[section] = values
            continue
        fields |= {f"{section}.{name}": x for name, x in values.items() if name not in free}
    return fields
