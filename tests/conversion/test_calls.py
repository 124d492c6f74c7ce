"""Calls of a transformer, recorded and asked again: for models that no cache can ask."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import HunyuanVideoPipeline
from tests.support.tiny_conversions import hunyuan_video, tiny_conversion, velocity, wan

from freqformer.conversion import convert
from freqformer.conversion.call_feed import CallFeed
from freqformer.conversion.calls import CallFolder, new_folder, recorded
from freqformer.conversion.recording import read_prompts
from freqformer.integrations.diffusers import enable_frequency_attention
from freqformer.training.config import DataConfig


def record(folder: Path, made: Any, videos: int = 2) -> CallFolder:
    """Two calls of each video."""
    model, given = made
    calls = new_folder(folder, model)
    for number in range(calls.videos, videos):
        with recorded(model, 2, number) as kept, torch.no_grad():
            for timestep in (900.0, 500.0, 100.0):
                velocity(model, given, timestep)
        calls.add_video(kept, f"video {number}")
    return calls


def test_what_was_recorded_is_asked_again(tmp_path: Path) -> None:
    model, given = wan()
    calls = CallFolder.read(record(tmp_path, (model, given)).folder)
    assert (calls.transformer, calls.videos, len(calls.calls)) == ("WanTransformer3DModel", 2, 4)
    feed = CallFeed(
        calls,
        replace(tiny_conversion(tmp_path), calls="c", data=DataConfig()),
        torch.device("cpu"),
        torch.float32,
    )
    with feed.open(0) as questions, torch.no_grad():
        asked = [questions(step)[0] for step in range(4)]
        found = [question.ask(model) for question in asked]
        wanted = [velocity(model, given, timestep) for timestep in (900.0, 500.0, 100.0)]
        assert all(any(torch.equal(x, y) for y in wanted) for x in found)
        assert torch.equal(questions(5)[0].ask(model), feed_at(feed, 5, model))
    numbers = [feed.describe(step) for step in range(4)]
    assert len(set(numbers)) == 4
    assert all("(video " in text for text in numbers)


def feed_at(feed: CallFeed, step: int, model: Any) -> torch.Tensor:
    with feed.open(step) as questions:
        return questions(step)[0].ask(model)


def test_every_call_is_as_likely(tmp_path: Path) -> None:
    model, given = wan()
    counts = torch.zeros(3)
    with torch.no_grad():
        for seed in range(30):
            with recorded(model, 1, seed) as kept:
                for place in range(3):
                    velocity(model, given, float(place))
            counts[int(kept[0]["timestep"])] += 1
    assert bool((counts >= 4).all())
    assert not model._forward_pre_hooks


def test_hunyuan_video_is_converted_by_its_calls(tmp_path: Path) -> None:
    model, given = hunyuan_video()
    pipeline = tmp_path / "hunyuan"
    model.save_pretrained(pipeline / "transformer")
    index = '{"_class_name": "HunyuanVideoPipeline", "transformer": ["diffusers", "%s"]}'
    (pipeline / "model_index.json").write_text(index % type(model).__name__, encoding="utf-8")
    assert HunyuanVideoPipeline.__name__ in index
    calls = record(tmp_path / "calls", (model, given))
    config = replace(
        tiny_conversion(tmp_path, "hunyuan"), data=DataConfig(), calls=str(calls.folder)
    )
    config = replace(config, windows=replace(config.windows, density=0.6))
    losses: list[float] = []
    adapter = convert(config, on_step=lambda report: losses.append(report.loss))
    assert len(losses) == 8
    with torch.no_grad():
        before = velocity(model, given)
        with enable_frequency_attention(model, adapter=adapter) as handle:
            assert not torch.equal(velocity(model, given), before)
            assert handle.layer_names == [
                "transformer_blocks.0.attn",
                "single_transformer_blocks.0.attn",
            ]
        assert torch.equal(velocity(model, given), before)


def test_folders_that_hold_no_calls_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no recorded calls: it has no calls\.json"):
        CallFolder.read(tmp_path)
    calls = record(tmp_path, wan(), videos=1)
    with pytest.raises(ValueError, match=r"has calls of a Wan.*, and this is a Hunyuan"):
        new_folder(tmp_path, hunyuan_video()[0])
    path = tmp_path / calls.calls[0].file
    path.write_bytes(path.read_bytes()[:-1] + b"\7")
    with pytest.raises(ValueError, match="is damaged: its checksum differs"):
        calls.load(0)
    text = (tmp_path / "calls.json").read_text(encoding="utf-8")
    (tmp_path / "calls.json").write_text(text.replace("video 0", "video 1"), encoding="utf-8")
    with pytest.raises(ValueError, match="is damaged"):
        CallFolder.read(tmp_path)


def test_prompts_are_lines(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a cat\n\n  a dog \n", encoding="utf-8")
    assert read_prompts(path) == ("a cat", "a dog")
    with pytest.raises(ValueError, match="can't be read"):
        read_prompts(tmp_path / "none.txt")
