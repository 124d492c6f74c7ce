"""The conversion's benchmark at a tiny size: it stops, goes on, and says what was reached."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks.conversion import Amount, Benchmark, report
from benchmarks.quality.report import rebuilt
from benchmarks.quality.variants import Size
from benchmarks.training_free_model import TRAINED
from tests.support.pages import check_says, result

from benchmarks import conversion_report
from freqformer.integrations.diffusers.converted.windows import WindowSettings

TINY = Amount(
    size=Size(video=(4, 16, 16), layers=1, heads=2, head_dim=12, batch=1, validation_clips=2),
    windows=WindowSettings(0.5, (2, 4, 4), 64),
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
    assert list(methods) == list(conversion_report.NAMES)
    assert [methods[name]["steps"] for name in methods] == [0, 2, 4, 0, 2, 4, 4]
    for name in ("stage_one", "tiles_stages_one_and_two"):
        assert [point["step"] for point in methods[name]["curve"]] == list(
            range(1, methods[name]["steps"] + 1)
        )
    assert len({methods[name]["psnr"] for name in ("training_free", "tiles_training_free")}) == 2
    assert all(row["held_out_loss"] > 0 and row["psnr"] > 0 for row in methods.values())
    assert json.loads(json.dumps(results)) == results
    trained = json.loads((tmp_path / "dense" / "pipeline" / TRAINED).read_text())
    assert trained["steps"] == 4
    assert trained["loss"] > 0
    report(results)
    assert "stages_one_and_two" in capsys.readouterr().out
    again = Benchmark(tmp_path, TINY).run()
    assert again == results


def test_what_is_done_is_kept_as_it_comes(tmp_path: Path) -> None:
    """The dense model's loss first, then every method; time that is up takes none of them away."""
    kept: list[dict[str, Any]] = []

    def keep(results: dict[str, Any]) -> None:
        kept.append(copy.deepcopy(results))

    wanted = ["stage_one", "training_free"]
    results = Benchmark(tmp_path, TINY, None, wanted, ["tiles"]).run(keep)
    names = ["tiles_training_free", "tiles_stage_one"]
    assert [list(one["methods"]) for one in kept] == [[], names[:1], names]
    assert all(one["dense"]["held_out_loss"] > 0 for one in kept)
    assert kept[-1] == results
    del kept[:]
    assert Benchmark(tmp_path, TINY, stop_after=0).run(keep) is None
    assert [list(one["methods"]) for one in kept] == [[], names[:1], names]


@pytest.fixture(scope="module")
def committed() -> dict[str, Any]:
    results = conversion_report.read_results()
    assert results is not None
    return results


def test_the_page_is_that_of_the_committed_results(committed: dict[str, Any]) -> None:
    page = conversion_report.PAGE.read_text(encoding="utf-8")
    text = conversion_report.results_text(committed)
    assert rebuilt(page, {"results": text}) == page
    assert conversion_report.FIGURE.is_file()


def test_what_is_written_by_hand_is_what_the_results_give(committed: dict[str, Any]) -> None:
    dense, methods = committed["dense"], committed["methods"]
    one, both = methods["stage_one"], methods["stages_one_and_two"]
    scratch = methods["from_scratch"]

    def more(row: dict[str, Any]) -> str:
        return f"{row['held_out_loss'] / dense['held_out_loss'] - 1:.1%}"

    assert one["within_1_percent"] is None
    assert both["within_1_percent"] is None
    check_says(
        "docs/conversion.md",
        f"come within {more(both)} of the dense model's held-out loss, and to {both['psnr']:.1f} "
        f"dB of its videos, in {both['share_of_dense_training']:.0%} of the time",
        f"is at {more(one)} and {one['psnr']:.1f} dB after {one['share_of_dense_training']:.0%}",
        f"The second stage adds {both['psnr'] - one['psnr']:.1f} dB",
        f"is {1 - scratch['held_out_loss'] / dense['held_out_loss']:.1%} better than the dense "
        f"model after the same steps, in {scratch['share_of_dense_training']:.0%} of its time",
    )


def test_what_is_said_of_a_density_that_does_not_fall(committed: dict[str, Any]) -> None:
    constant = result("conversion_constant")
    one, both = (constant["methods"][name] for name in ("stage_one", "stages_one_and_two"))
    early, falling = (
        results["methods"]["stage_one"]["curve"][0] for results in (constant, committed)
    )
    share = early["seconds"] / constant["dense"]["seconds"]
    check_says(
        "docs/conversion.md",
        f"{early['psnr']:.1f} dB after {early['step']} steps, {share:.1%} of the dense model's "
        f"time, where the falling one had {falling['psnr']:.1f}; stage one {one['psnr']:.1f} dB in "
        f"{one['share_of_dense_training']:.1%}; both stages {both['psnr']:.1f} dB in "
        f"{both['share_of_dense_training']:.0%}, with a held-out loss of "
        f"{both['held_out_loss']:.4f}",
    )


def test_its_figure_is_drawn(committed: dict[str, Any], tmp_path: Path) -> None:
    conversion_report.draw_figure(committed, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_results_of_a_stopped_run_are_shown(committed: dict[str, Any], tmp_path: Path) -> None:
    """Those of the methods that were done, of which there may be none."""
    tiles = {"kept": 34, "of": 256, "density": 0.149}
    every = dict.fromkeys(conversion_report.NAMES, committed["methods"]["stage_one"])
    results = {**committed, "tiles": tiles, "methods": every}
    lines = conversion_report.results_text(results).splitlines()
    assert "or their 34 best of 256 tiles, 14.9%, and all weights learn" in lines[2]
    for name, shown in conversion_report.NAMES.items():
        kept = {other: row for other, row in every.items() if other != name}
        found = conversion_report.results_text({**results, "methods": kept}).splitlines()
        assert found == [line for line in lines if not line.startswith(f"| {shown} |")]
    conversion_report.draw_figure(results, tmp_path / "whole.png")
    assert (tmp_path / "whole.png").stat().st_size > 10_000
    conversion_report.draw_figure({**committed, "methods": {}}, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").is_file()
