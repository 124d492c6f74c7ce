"""What results say of how they were made."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        (
            ["benchmarks/shown.py", "--output", "somewhere", "--quick"],
            ["benchmarks/shown.py", "--quick"],
        ),
        (
            ["-m", "benchmarks.shown", "--quick", "--commit", "abc"],
            ["-m", "benchmarks.shown", "--quick"],
        ),
    ],
)
def test_the_command_is_what_was_typed(typed: list[str], wanted: list[str], tmp_path: Path) -> None:
    (tmp_path / "benchmarks").mkdir()
    for name in ("record.py", "__init__.py"):
        place = ROOT / "benchmarks" / name
        (tmp_path / "benchmarks" / name).write_text(
            place.read_text(encoding="utf-8") if place.is_file() else ""
        )
    text = (
        "import json\nfrom benchmarks.record import "
        "typed_arguments\nprint(json.dumps(typed_arguments()))\n"
    )
    (tmp_path / "benchmarks" / "shown.py").write_text(text)
    environment = {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, *typed],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == wanted
