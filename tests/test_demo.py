"""The demo from end to end in a tiny setting, and its page."""

from __future__ import annotations

import json
import os
import re
import signal
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from tests.support.browser import open_page
from tests.support.videos import encode, numbered
from typer.testing import CliRunner

from freqformer import cli
from freqformer._interrupt import Interrupted
from freqformer.config import Band
from freqformer.demo import shipped
from freqformer.demo.page import render_page
from freqformer.demo.run import run_demo
from freqformer.demo.settings import DemoSettings
from freqformer.demo.shipped import generate_shipped, load_shipped, shipped_model
from freqformer.demo.stages import inspect_video
from freqformer.media import VideoError, probe_video, read_clip, write_video
from freqformer.models.pipeline import FreqFormerPipeline
from freqformer.training.config import DataConfig, RunConfig, TrainConfig
from freqformer.training.export import MOST_BYTES, WEIGHTS, export_model
from freqformer.training.loop import train
from freqformer.training.trainer import Trainer

TINY = DemoSettings(
    num_frames=4,
    height=16,
    width=32,
    model={
        "patch_size": [1, 4, 4],
        "num_layers": 2,
        "num_attention_heads": 3,
        "attention_head_dim": 8,
        "frequency": {
            "preset": "paper",
            "tile": [2, 2, 2],
            "mid_tiles": 2,
            "summary_tokens": 4,
        },
    },
    max_steps=6,
    fine_tuning_steps=6,
    inference_steps=3,
    inspect_side=64,
)
SHOWN = {
    "input.mp4",
    "generated.mp4",
    "bands.mp4",
    "band_energies.png",
    "loss.png",
    "routing.png",
    "contact_sheet.png",
}
"""What the page of any demo shows."""


class Links(HTMLParser):
    """The targets of a page's links and sources."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name in ("src", "href") and value]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one demo with the shipped clip."""
    said: list[str] = []
    page = run_demo(
        tmp_path_factory.mktemp("demo") / "out", train_seconds=60, say=said.append, settings=TINY
    )
    assert [line[:5] for line in said if line.startswith("[")] == [
        "[1/4]",
        "[2/4]",
        "[3/4]",
        "[4/4]",
    ]
    assert "[2/4] training a small model: 6 steps, 60 s at most" in said
    assert re.fullmatch(
        r"\d+\.\d dB similar to the clip \(one colour: \d+\.\d dB\)\. This is not the clip.*",
        said[-1],
    )
    assert page.name == "index.html"
    return page.parent


def test_videos_play(report: Path) -> None:
    for name in ("input.mp4", "generated.mp4"):
        info = probe_video(report / name)
        assert (info.num_frames, info.height, info.width) == (4, 64, 128)
        assert info.fps == pytest.approx(8)
        clip = read_clip(report / name, start=0, num_frames=4, fps=8, height=64, width=128).float()
        assert clip.std() > 10
    assert probe_video(report / "bands.mp4").num_frames == 120


def test_page_shows_all_there_is_from_disk(report: Path) -> None:
    page = (report / "index.html").read_text(encoding="utf-8")
    links = Links(page).found
    assert set(links) == SHOWN | {"summary.json"}
    for link in links:
        assert (report / link).is_file(), link
    assert "http" not in page
    assert "$" not in page


def test_numbers_are_those_of_the_run(report: Path) -> None:
    facts = json.loads((report / "summary.json").read_text(encoding="utf-8"))
    assert facts["train_steps"] == 6
    assert facts["attention_flops_of_dense"]["here"]["tokens"] == 4 * 4 * 8
    assert facts["tiles"] == 16
    assert sum(facts["head_shares"]) == pytest.approx(1)
    assert (
        0
        < facts["attention_flops_of_dense"]["720p"]["density"]
        < facts["attention_flops_of_dense"]["here"]["density"]
    )
    # Before anything is learned the velocity has the variance of noise and clip together, above
    # that of noise.
    assert facts["first_loss"] > 1
    page = (report / "index.html").read_text(encoding="utf-8")
    for text in (
        "<dd>6 of 6</dd>",
        f"{facts['first_loss']:.2f} → {facts['last_loss']:.2f}",
        "vultilion",
    ):
        assert text in page
    assert facts["shipped"] is None
    assert "There was no shipped model to begin with: a small one was trained from scratch" in page
    assert "The model as it came" not in page


def test_the_page_judges_the_video(report: Path) -> None:
    facts = json.loads((report / "summary.json").read_text(encoding="utf-8"))
    page = " ".join((report / "index.html").read_text(encoding="utf-8").split())
    verdict = facts["verdict"]
    # Six steps teach nothing.
    assert verdict["decibels"] < verdict["one_colour"] + 3
    assert f"<strong>{verdict['judgement']}</strong> {verdict['similarity']}." in page
    assert (verdict["steps"], verdict["planned_steps"], verdict["shortfall"]) == (6, 6, "")
    assert "cost at 720p by default settings" in page
    assert "not of this model" in page


def test_a_clock_ends_the_training_of_a_slow_machine(tmp_path: Path) -> None:
    said: list[str] = []
    run_demo(tmp_path, train_steps=10**6, train_seconds=0.5, say=said.append, settings=TINY)
    facts = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert facts["verdict"]["steps"] == facts["train_steps"] < 10**6
    assert said[-1] == facts["verdict"]["shortfall"]
    assert re.match(r"This machine was too slow: it did \d+ of 1000000 training steps in", said[-1])
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert said[-1] in page
    assert f"<dd>{facts['train_steps']} of 1000000</dd>" in page


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_no_width_cuts_the_table(report: Path, width: int) -> None:
    with open_page(report / "index.html", width=width) as opened:
        assert opened.errors == []
        wide = (
            "[...document.querySelectorAll('html, .scroll')].map(x => x.scrollWidth - "
            "x.clientWidth)"
        )
        assert max(opened.run(wide)) <= 0
        right = (
            "Math.max(...[...document.querySelectorAll('td')].map(x => "
            "x.getBoundingClientRect().right))"
        )
        assert 0 < opened.run(right) <= width


def test_an_interrupted_demo_says_that_it_begins_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    advance = Trainer.advance

    def interrupted(self: Trainer, loader: object) -> object:
        os.kill(os.getpid(), signal.SIGTERM)
        return advance(self, loader)

    monkeypatch.setattr(Trainer, "advance", interrupted)
    with pytest.raises(
        Interrupted, match=r"stopped by SIGTERM: .* keeps what was made.* begins again"
    ) as raised:
        run_demo(tmp_path, train_seconds=60, say=lambda _: None, settings=TINY)
    assert raised.value.signal == signal.SIGTERM
    assert not (tmp_path / "index.html").exists()
    monkeypatch.undo()
    assert run_demo(tmp_path, train_seconds=60, say=lambda _: None, settings=TINY).is_file()


def test_trained_model_makes_the_same_video_again(report: Path) -> None:
    from freqformer.models.pipeline import FreqFormerPipeline

    pipeline = FreqFormerPipeline.from_pretrained(str(report / "run" / "pipeline"))
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    frames = pipeline(
        4, 16, 32, num_inference_steps=3, generator=generator, output_type="uint8"
    ).frames[0]
    shown = read_clip(report / "generated.mp4", start=0, num_frames=4, fps=8, height=16, width=32)
    # Noise has more colour than video files keep, so brightness is compared.
    brightness = torch.tensor([0.2126, 0.7152, 0.0722])
    pair = torch.stack(
        [(frames.float() @ brightness).flatten(), (shown.float() @ brightness).flatten()]
    )
    assert pair.corrcoef()[0, 1] > 0.98


def test_a_second_demo_takes_its_place_and_another_run_is_kept(
    report: Path, tmp_path: Path
) -> None:
    first = (report / "index.html").read_text(encoding="utf-8")
    quick = DemoSettings(**{**vars(TINY), "max_steps": 2})
    (report / "note.txt").write_text("mine")
    run_demo(report, train_seconds=60, say=lambda _: None, settings=quick)
    assert (report / "index.html").read_text(encoding="utf-8") != first
    assert (report / "note.txt").read_text() == "mine"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").touch()
    with pytest.raises(ValueError, match="run holds precious, which no demo made, and is kept"):
        run_demo(tmp_path, say=lambda _: None, settings=TINY)
    assert (tmp_path / "run" / "precious").exists()
    (tmp_path / "run" / "precious").unlink()
    with pytest.raises(ValueError, match="was not made by a demo and is kept"):
        run_demo(tmp_path, say=lambda _: None, settings=TINY)


def test_a_page_of_the_users_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("my page")
    with pytest.raises(ValueError, match=r"holds index\.html, which no freqformer demo wrote"):
        run_demo(tmp_path, say=lambda _: None, settings=TINY)
    assert (tmp_path / "index.html").read_text() == "my page"


def test_videos_that_do_not_do(tmp_path: Path) -> None:
    short = tmp_path / "short.mp4"
    write_video(torch.zeros(2, 16, 16, 3, dtype=torch.uint8), short, 24)
    (tmp_path / "text.mp4").write_text("hello")
    for name, message in (
        ("short", r"lasts 0\.08 s; the demo needs 0\.5 s"),
        ("text", "can't be read"),
        ("no", "not exist"),
    ):
        with pytest.raises(VideoError, match=message):
            run_demo(
                tmp_path / "out", video=tmp_path / f"{name}.mp4", say=lambda _: None, settings=TINY
            )
    assert not (tmp_path / "out").exists()


def test_inspecting_a_small_odd_video(tmp_path: Path) -> None:
    write_video(torch.randint(0, 256, (7, 19, 31, 3), dtype=torch.uint8), tmp_path / "clip.mp4", 10)
    spectrum = inspect_video(tmp_path / "clip.mp4", tmp_path / "out", seconds=60, patch=(2, 4, 4))
    assert spectrum.bands.shape == (3, 3, 6, 20, 32)
    record = json.loads((tmp_path / "out" / "band_energies.json").read_text())
    assert sum(record["total_shares"].values()) == pytest.approx(1)
    assert record["seconds"][-1] == pytest.approx(0.6)
    for options in ({"start": 5.0, "patch": (1, 4, 4)}, {"patch": (1, 64, 64)}):
        with pytest.raises(VideoError, match="less than one token"):
            inspect_video(tmp_path / "clip.mp4", tmp_path / "other", **options)


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_inspecting_a_file_that_is_cut_off_ends_early(tmp_path: Path, share: float) -> None:
    """F87: as the docstring says."""
    path = tmp_path / "clip.mp4"
    write_video(torch.randint(0, 256, (20, 32, 48, 3), dtype=torch.uint8), path, 10)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    spectrum = inspect_video(path, tmp_path / "out", seconds=60, patch=(1, 4, 4))
    assert 20 * share - 6 < spectrum.bands.shape[2] < 20 * share + 2


def test_inspecting_a_variable_rate_shows_every_frame_of_the_fast_part(tmp_path: Path) -> None:
    """F82: the mean rate is a fifth of the fast part's."""
    times = [*range(0, 1000, 50), *range(1000, 7000, 1000)]
    path = encode(tmp_path / "clip.mkv", numbered(len(times)) // 2, times=times)
    spectrum = inspect_video(path, tmp_path / "out", seconds=1, patch=(1, 4, 4))
    assert spectrum.bands.shape[2] == 20


def test_page_escapes_what_it_is_given(report: Path) -> None:
    facts = json.loads((report / "summary.json").read_text(encoding="utf-8"))
    page = render_page({**facts, "command": "<script>alert(1)</script>"})
    assert not re.search("<script", page)
    with pytest.raises(KeyError):
        render_page({name: fact for name, fact in facts.items() if name != "tiles"})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model, trained for seconds on clips of 4 frames."""
    config = TrainConfig(
        str(tmp_path_factory.mktemp("runs") / "run"),
        model={
            **TINY.model,
            "absolute_positions": "space",
            "frequency": {"tile": [2, 2, 2], "mid_tiles": 2, "routing": "timestep"},
        },
        data=DataConfig(num_frames=4, height=16, width=24, fps=10),
        run=RunConfig(max_steps=8, batch_size=2, device="cpu", progress=False),
    )
    folder = train(config).parent
    (folder / "train.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
    return export_model(folder, folder / "exported")


@pytest.fixture(scope="module")
def fine_tuned(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a demo that began with that model."""
    said: list[str] = []
    output = tmp_path_factory.mktemp("demo")
    run_demo(output, model=model, train_seconds=60, say=said.append, settings=TINY)
    assert [line[:5] for line in said if line.startswith("[")] == [
        "[1/5]",
        "[2/5]",
        "[3/5]",
        "[4/5]",
        "[5/5]",
    ]
    assert "fine-tuning the model" in said[4]
    return output


def test_a_demo_from_a_model_shows_it_as_it_came(fine_tuned: Path) -> None:
    page = (fine_tuned / "index.html").read_text(encoding="utf-8")
    links = Links(page).found
    assert set(links) == SHOWN | {"summary.json", "shipped.mp4", "long.mp4", "long.png"}
    assert all((fine_tuned / link).is_file() for link in links)
    assert "$" not in page
    for text in (
        "began with a trained model, which it fine-tuned",
        "a video of 16 frames in one pass",
        "16 frames: ",
    ):
        assert text in page
    assert "from scratch" not in page
    assert "it gave low frequencies more weight where" in " ".join(page.split())
    facts = json.loads((fine_tuned / "summary.json").read_text(encoding="utf-8"))
    assert (facts["shipped"]["frames"], facts["shipped"]["long_frames"]) == (4, 16)
    assert facts["train_steps"] == 6
    # Sizes are the model's, not those of the settings.
    assert (facts["clip"]["width"], facts["clip"]["fps"]) == (24, 10)
    for name, frames, width in (("shipped", 4, 96), ("long", 16, 192), ("generated", 4, 96)):
        info = probe_video(fine_tuned / f"{name}.mp4")
        assert (info.num_frames, info.width) == (frames, width)


def test_fine_tuning_begins_with_the_weights_of_the_model(model: Path, fine_tuned: Path) -> None:
    before, after = (
        load_shipped(folder).transformer.state_dict()
        for folder in (model, fine_tuned / "run" / "pipeline")
    )
    # Eight steps move a weight by far less than a fresh draw of it would.
    moved = (
        after["transformer_blocks.0.ff.net.0.proj.weight"]
        - before["transformer_blocks.0.ff.net.0.proj.weight"]
    ).std()
    assert 0 < moved < 0.1 * before["transformer_blocks.0.ff.net.0.proj.weight"].std()


def opened(folder: Path) -> FreqFormerPipeline:
    """The model with gates wide open, which a short training leaves nearly closed: attention shows
    in what it makes."""
    pipeline, draw = load_shipped(folder), torch.Generator().manual_seed(0)
    for layer in (pipeline.transformer.time_modulation.linear, pipeline.transformer.proj_out):
        layer.weight.data = 0.3 * torch.randn(layer.weight.shape, generator=draw)
    return pipeline


def test_four_times_the_trained_length_by_bands_and_dense(model: Path) -> None:
    pipeline = opened(model)
    made = generate_shipped(pipeline, (4, 16, 24), steps=2, seed=3)
    assert made.clip.frames.shape == (4, 16, 24, 3)
    assert made.long.frames.shape == made.dense.frames.shape == (16, 16, 24, 3)
    assert bool((made.dense.allocations == Band.DENSE).all())
    assert not bool((made.long.allocations == Band.DENSE).any())
    assert not torch.equal(made.long.frames, made.dense.frames)
    # The table is taken off again, and the seed alone decides.
    again = generate_shipped(pipeline, (4, 16, 24), steps=2, seed=3)
    assert torch.equal(made.long.frames, again.long.frames)


def test_the_command_says_where_it_begins(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []

    def noted(output: Path, **options: object) -> Path:
        begun.append(options["model"])
        return output / "index.html"

    monkeypatch.setattr("freqformer.demo.run.run_demo", noted)
    for place, options, expected in (
        (tmp_path, [], None),
        (model, [], model),
        (tmp_path, ["--model", str(model)], model),
    ):
        monkeypatch.setattr(shipped, "SHIPPED_MODEL", place)
        result = CliRunner().invoke(cli.app, ["demo", "-o", str(tmp_path / "out"), *options])
        assert result.exit_code == 0, result.output
        assert begun[-1] == expected
        told = "no model comes with this version" in " ".join(result.output.split())
        assert told == (expected is None)


def test_models_that_can_not_begin_a_demo(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no_model holds no exported model"):
        run_demo(tmp_path / "out", model=tmp_path / "no_model", say=lambda _: None, settings=TINY)
    assert not (tmp_path / "out").exists()


def test_the_model_that_comes_with_this_version() -> None:
    folder = shipped_model()
    assert folder is not None
    assert (folder / WEIGHTS).stat().st_size <= MOST_BYTES
    data = json.loads((folder / "train.json").read_text(encoding="utf-8"))["data"]
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert (
        json.loads((folder / "record.json").read_text(encoding="utf-8"))["sessions"][-1]["progress"]
        == 1
    )
    assert "freqformer train --config configs/shipped.json" in card
    made = load_shipped(folder)(
        *(data[name] for name in ("num_frames", "height", "width")),
        num_inference_steps=2,
        output_type="uint8",
    )
    assert made.frames.shape[1:4] == (data["num_frames"], data["height"], data["width"])
