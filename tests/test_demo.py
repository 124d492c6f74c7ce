"""The demo from end to end in a tiny setting, and its page."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from freqformer.demo.page import render_page
from freqformer.demo.run import DemoSettings, run_demo
from freqformer.demo.stages import inspect_video
from freqformer.media import VideoError, probe_video, read_clip, write_video

TINY = DemoSettings(
    num_frames=4,
    height=16,
    width=32,
    model={
        "patch_size": [1, 4, 4],
        "num_layers": 2,
        "num_heads": 3,
        "head_dim": 8,
        "frequency": {"tile": [2, 2, 2], "mid_tiles": 2, "summary_tokens": 4},
    },
    max_steps=6,
    inference_steps=3,
    inspect_side=64,
)


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
    page = run_demo(tmp_path_factory.mktemp("demo") / "out", train_seconds=60, say=said.append, settings=TINY)
    assert [line[:5] for line in said if line.startswith("[")] == ["[1/4]", "[2/4]", "[3/4]", "[4/4]"]
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
    shown = {
        "input.mp4",
        "generated.mp4",
        "bands.mp4",
        "band_energies.png",
        "loss.png",
        "allocation.png",
        "contact_sheet.png",
    }
    assert shown <= set(links)
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
    assert 0 < facts["attention_flops_of_dense"]["720p"]["density"] < facts["attention_flops_of_dense"]["here"]["density"]
    # Before anything is learned the velocity has the variance of noise and clip together, above that of noise.
    assert facts["first_loss"] > 1
    page = (report / "index.html").read_text(encoding="utf-8")
    for text in ("<dd>6</dd>", f"{facts['first_loss']:.2f} → {facts['last_loss']:.2f}", "vultilion"):
        assert text in page


def test_trained_model_makes_the_same_video_again(report: Path) -> None:
    from freqformer.models.pipeline import FreqFormerPipeline

    pipeline = FreqFormerPipeline.from_pretrained(str(report / "run" / "pipeline"))
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    frames = pipeline(4, 16, 32, num_inference_steps=3, generator=generator, output_type="uint8").frames[0]
    shown = read_clip(report / "generated.mp4", start=0, num_frames=4, fps=8, height=16, width=32)
    # Noise has more colour than video files keep, so brightness is compared.
    brightness = torch.tensor([0.2126, 0.7152, 0.0722])
    pair = torch.stack([(frames.float() @ brightness).flatten(), (shown.float() @ brightness).flatten()])
    assert pair.corrcoef()[0, 1] > 0.98


def test_a_second_demo_takes_its_place_and_another_run_is_kept(report: Path, tmp_path: Path) -> None:
    first = (report / "index.html").read_text(encoding="utf-8")
    quick = DemoSettings(**{**vars(TINY), "max_steps": 2})
    (report / "note.txt").write_text("mine")
    run_demo(report, train_seconds=60, say=lambda _: None, settings=quick)
    assert (report / "index.html").read_text(encoding="utf-8") != first
    assert (report / "note.txt").read_text() == "mine"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").touch()
    with pytest.raises(ValueError, match="was not made by a demo and is kept"):
        run_demo(tmp_path, say=lambda _: None, settings=TINY)
    assert (tmp_path / "run" / "precious").exists()


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
            run_demo(tmp_path / "out", video=tmp_path / f"{name}.mp4", say=lambda _: None, settings=TINY)
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


def test_page_escapes_what_it_is_given(report: Path) -> None:
    facts = json.loads((report / "summary.json").read_text(encoding="utf-8"))
    page = render_page({**facts, "command": "<script>alert(1)</script>"})
    assert not re.search("<script", page)
    with pytest.raises(KeyError):
        render_page({name: fact for name, fact in facts.items() if name != "tiles"})
