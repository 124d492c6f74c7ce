"""In what a conversion that goes on may differ from its beginning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from freqformer.conversion.config import ConvertConfig
from freqformer.conversion.resuming import check_same_run
from freqformer.integrations.diffusers.converted.windows import WindowSettings
from freqformer.training.checkpoint import CheckpointError

CONFIG = ConvertConfig(pipeline="wan", output="out", calls="calls")


def check(state: dict[str, Any], config: ConvertConfig) -> None:
    check_same_run(Path("step-8"), state, config, "data", 1)


def test_a_checkpoint_that_names_no_pattern_has_windows() -> None:
    """As versions wrote it that knew no other."""
    state: dict[str, Any] = {
        "config": CONFIG.to_record(),
        "clips_per_step": 1,
        "data": "data",
        "ema_steps": 8,
        "seconds": 1.0,
        "step": 8,
    }
    check(state, CONFIG)
    del state["config"]["windows"]["pattern"]
    check(state, CONFIG)
    tiles = replace(CONFIG, windows=WindowSettings(pattern="tiles"))
    with pytest.raises(CheckpointError, match=r"windows\.pattern was 'window' and is 'tiles'"):
        check(state, tiles)
