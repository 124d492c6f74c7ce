"""In what a resumed run may differ from its beginning."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from freqformer.training.checkpoint import CheckpointError
from freqformer.training.config import TrainConfig
from freqformer.training.model_settings import whole_settings
from freqformer.training.pipeline_config import PipelineConfig

logger = logging.getLogger(__name__)

ALL = ("*",)
MAY_CHANGE = {
    "output": ALL,
    "checkpoint": ALL,
    "validation": ALL,
    "data": ("path", "photographs", "cache", "workers"),
    "pipeline": ("folder", "offload_blocks"),
    "run": (
        *("max_steps", "max_seconds", "part_seconds", "batch_size", "accumulation", "device"),
        # `part_seconds` is of versions that kept there what belongs to one call alone.
        *("progress", "gradient_checkpointing", "compile", "parallel", "tracker", "log_every"),
    ),
}
"""Fields that change nothing but how long, where and with what memory a run goes on; batches only
while a step has as many clips."""
ON_PURPOSE = {
    "optimizer": ALL,
    "objective": ALL,
    "routing": ALL,
    "run": ("precision",),
    "pipeline": ("density", "dense_blocks", "min_tokens", "alpha", "guidance_scale"),
}
"""Fields that change what is computed from here on, for `checkpoint.accept_changes`."""
_BEFORE = {
    "optimizer.kind": "adamw",
    **{
        f"pipeline.{name}": value
        for name, value in json.loads(json.dumps(asdict(PipelineConfig()))).items()
    },
}
"""What holds of runs of versions that had no such fields."""
STATE = {
    "config": dict,
    "clips_per_step": int,
    "data": object,
    "ema_steps": int,
    "seconds": int | float,
    "step": int,
}
"""What a checkpoint's state must hold, and of which kind."""


def check_resumable(
    path: Path, state: dict[str, Any], config: TrainConfig, fixed: Mapping[str, Any]
) -> None:
    """Refuse a checkpoint of another run.

    Args:
        path: the checkpoint's folder.
        state: of the checkpoint.
        config: of the run that goes on; its `checkpoint.accept_changes` takes other fields of
            `ON_PURPOSE`, and logs each.
        fixed: values of the state that must be those of the run that goes on.

    Raises:
        CheckpointError: for a state that training did not write, and for fields that differ, with
            both values of each and the remedy.
    """
    _check_sound(path, state)
    now = _by_dotted_name(_comparable(config.to_record()))
    then = _BEFORE | _by_dotted_name(_comparable(state["config"]))
    for name, value in fixed.items():
        now[name] = value
        then[name] = state.get(name)
    changed = sorted(name for name in now.keys() | then.keys() if now.get(name) != then.get(name))
    told = {
        name: f"{name} was {then.get(name)!r} and is {now.get(name)!r}"
        for name in changed
        if not _listed(name, MAY_CHANGE)
    }
    refused = [text for name, text in told.items() if not _listed(name, ON_PURPOSE)]
    if refused:
        raise CheckpointError(
            f"{path} was made by another run: {', '.join(refused)}; resume with the same, or choose"
            " an empty output folder"
        )
    if told and not config.checkpoint.accept_changes:
        raise CheckpointError(
            f"{path} was made with other settings: {', '.join(told.values())}; resume with the"
            " same, or go on with the change on purpose: checkpoint.accept_changes=true"
            " (--accept-changes)"
        )
    if told:
        logger.warning("going on from %s with changes: %s", path, ", ".join(told.values()))


def _comparable(config: dict[str, Any]) -> dict[str, Any]:
    """A run's settings as JSON holds them, lists for tuples; the model's whole and in today's
    words."""
    model = config.get("model")
    made = json.loads(json.dumps(config))
    return made | {"model": whole_settings(model)} if isinstance(model, dict) else made


def _check_sound(path: Path, state: dict[str, Any]) -> None:
    wrong = sorted(name for name, kind in STATE.items() if not isinstance(state.get(name), kind))
    counts = (name for name in ("step", "ema_steps", "seconds") if name not in wrong)
    wrong += [name for name in counts if not state[name] >= 0]
    if not wrong:
        config = state["config"].items()
        wrong = [f"config.{name}" for name, value in config if not isinstance(value, dict | str)]
    if wrong:
        raise CheckpointError(
            f"{path} lacks sound {wrong} in its state; it is damaged or not of training: remove it"
        )


def _by_dotted_name(config: dict[str, Any]) -> dict[str, Any]:
    fields = {}
    for section, values in config.items():
        if isinstance(values, dict):
            fields |= {f"{section}.{name}": value for name, value in values.items()}
        else:
            fields[section] = values
    return fields


def _listed(name: str, fields: dict[str, tuple[str, ...]]) -> bool:
    section, _, field = name.partition(".")
    return fields.get(section) == ALL or field in fields.get(section, ())
