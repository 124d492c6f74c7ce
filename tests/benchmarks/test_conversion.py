"""The conversion's benchmark at a tiny size: it stops, goes on, and says what was reached."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks.conversion import Amount, Benchmark, report
from benchmarks.quality.variants import Size
from benchmarks.training_free_model import TRAINED

from freqformer.integrations.diffusers.converted.windows import WindowSettings

TINY = Amount(
    size=Size(video=(4, 16, 16), layers=1, heads=2, head_dim=12, batch=1, validation_clips=2),
    windows=WindowSettings(0.4, (2, 4, 4), 64),
    train_steps=4,
    layer_steps=2,
    velocity_steps=2,
    every=1,
    videos=1,
    sampler_steps=2,
    device="cpu",
)


def test_it_stops_and_goes_on_until_all_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Benchmark(tmp_path, TINY, stop_after=0.5).run() is None
    results = Benchmark(tmp_path, TINY).run()
    assert results is not None
    methods = results["methods"]
    assert list(methods) == ["training_free", "stage_one", "stages_one_and_two", "from_scratch"]
    assert [methods[name]["steps"] for name in methods] == [0, 2, 4, 4]
    for name in ("stage_one", "stages_one_and_two"):
        assert [point["step"] for point in methods[name]["curve"]] == list(
            range(1, methods[name]["steps"] + 1)
        )
    assert all(row["held_out_loss"] > 0 and row["psnr"] > 0 for row in methods.values())
    assert json.loads(json.dumps(results)) == results
    trained = json.loads((tmp_path / "dense" / "pipeline" / TRAINED).read_text())
    assert trained["steps"] == 4
    assert trained["loss"] > 0
    report(results)
    assert "stages_one_and_two" in capsys.readouterr().out
    again = Benchmark(tmp_path, TINY).run()
    assert again == results
