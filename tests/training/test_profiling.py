"""Steps that are profiled are in a trace that Perfetto reads."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path

import pytest
from tests.support.tiny_training import changed, losses, tiny_config


def steps_in(path: Path) -> set[str]:
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    assert any(event.get("name", "").startswith("aten::") for event in events)
    named = {event.get("name", "") for event in events if event.get("ph") == "X"}
    return {name for name in named if name.startswith("step ")}


def test_the_steps_that_were_asked_for(tmp_path: Path) -> None:
    plain = losses(tiny_config(tmp_path / "plain"))
    config = changed(tiny_config(tmp_path / "run"), "run", profile=[2, 3])
    assert losses(config) == plain
    assert steps_in(tmp_path / "run" / "profile" / "steps-2-3.json.gz") == {"step 2", "step 3"}
    record = json.loads((tmp_path / "run" / "train.json").read_text())
    assert "profile" not in record["run"]


def test_a_session_that_ends_early_writes_what_it_has(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = changed(tiny_config(tmp_path / "run"), "run", profile=(3, 9))
    losses(config)
    assert steps_in(tmp_path / "run" / "profile" / "steps-3-9.json.gz") == {"step 3"}
    with caplog.at_level(logging.WARNING):
        losses(changed(tiny_config(tmp_path / "other"), "run", profile=(8, 9)))
    assert "no profile: steps 8 to 9 were not done in this session" in caplog.text


def test_what_is_no_range_is_refused(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    for wrong in ([3], [0, 2], [4, 3], "3-4"):
        with pytest.raises(ValueError, match="profile is"):
            changed(config, "run", profile=wrong)
