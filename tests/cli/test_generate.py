"""`freqformer generate` with a small random Wan pipeline in a folder, as the hub has them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from diffusers.modular_pipelines.minimax_h3.modular_blocks_minimax_h3 import (
    MiniMaxH3CoreDenoiseStep,
)
from diffusers.schedulers.scheduling_minimax_h3 import MiniMaxH3Scheduler
from tests.support.command_line import refused, run
from tests.support.family_pipelines import PIPELINES
from tests.support.tiny_pipelines import generate, tiny_wan_pipeline

from freqformer import media
from freqformer.config import Band, FreqFormerConfig
from freqformer.generation.loading import load_pipeline
from freqformer.integrations.diffusers import enable_frequency_attention
from freqformer.media import probe_video, read_clip
from freqformer.routing import RoutingTable

SMALL = ("--frames", 17, "--size", 128, 160, "--steps", 3, "--dtype", "float32", "--device", "cpu")
BANDED = ("--density", 0.5, "--min-tokens", 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hub") / "wan"
    tiny_wan_pipeline().save_pretrained(path)
    return path


def made(folder: Path, output: Path, *more: object) -> str:
    prompt = ("--prompt", "a lighthouse in the storm")
    return run("generate", "--pipeline", folder, *prompt, "-o", output, *SMALL, *more)


def clip(path: Path, width: int = 160) -> torch.Tensor:
    return read_clip(path, start=0, num_frames=17, fps=16, height=128, width=width).float()


def test_a_video_comes_out(folder: Path, tmp_path: Path) -> None:
    output = made(folder, tmp_path / "new.mp4", *BANDED, "--fps", 16)
    assert "wrote 17 frames of 128 x 160" in output
    assert re.search(
        r"\d\d\.\d% of dense attention's FLOPs in 3 of 3 layers and 2 of 3 steps", output
    )
    info = probe_video(tmp_path / "new.mp4")
    assert (info.num_frames, info.height, info.width) == (17, 128, 160)
    assert info.fps == pytest.approx(16)
    assert clip(tmp_path / "new.mp4").std() > 1
    assert [path.name for path in tmp_path.iterdir()] == ["new.mp4"]


def test_the_video_is_the_pipelines_own(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the seed, the prompt, the steps and the guidance that were given; all of it dense."""
    written: list[torch.Tensor] = []
    monkeypatch.setattr(media, "write_video", lambda frames, *_: written.append(frames))
    more = ("--seed", 3, "--guidance", 2, "--negative-prompt", "a cat")
    output = made(folder, tmp_path / "new.mp4", *more)
    assert "every step was dense: the video has fewer tokens than --min-tokens" in output
    options: dict[str, Any] = {"guidance_scale": 2.0, "negative_prompt": "a cat"}
    wanted = generate(
        tiny_wan_pipeline(), seed=3, num_inference_steps=3, max_sequence_length=512, **options
    )
    expected = (255 * wanted[0]).round().permute(0, 2, 3, 1)
    assert float((written[0].float() - expected).abs().max()) <= 1


def test_it_is_compared_with_dense_attention(folder: Path, tmp_path: Path) -> None:
    output = made(folder, tmp_path / "new.mp4", *BANDED, "--compare", "--fps", 16)
    names = {"new.mp4", "new-dense.mp4", "new-compared.mp4", "new.html"}
    assert {path.name for path in tmp_path.iterdir()} == names
    found = re.search(r"PSNR ([\d.]+) dB, SSIM ([\d.]+)", output)
    assert found is not None
    pipe = tiny_wan_pipeline()
    options: dict[str, Any] = {
        "num_inference_steps": 3,
        "max_sequence_length": 512,
        "guidance_scale": 5.0,
    }
    wanted = generate(pipe, **options)
    with enable_frequency_attention(pipe, density=0.5, min_tokens=1):
        difference = generate(pipe, **options) - wanted
    assert float(found[1]) == pytest.approx(
        -10 * float(difference.square().mean().log10()), abs=0.2
    )
    assert 0.5 < float(found[2]) < 1
    dense, banded = clip(tmp_path / "new-dense.mp4"), clip(tmp_path / "new.mp4")
    both = clip(tmp_path / "new-compared.mp4", width=324)
    assert float((both[:, :, :160] - dense).abs().mean()) < 3
    assert float((both[:, :, 164:] - banded).abs().mean()) < 3
    page = (tmp_path / "new.html").read_text(encoding="utf-8")
    for text in ("a lighthouse in the storm", 'src="new-compared.mp4"', f"{found[1]} dB", "–"):
        assert text in page
    assert "$" not in page


def test_a_table_takes_the_place_of_the_density(folder: Path, tmp_path: Path) -> None:
    bands = torch.full((1, 3, 2), Band.HIGH.value)
    config = FreqFormerConfig(tile=(4, 4, 4), window=(1, 1, 1), summary_tokens=4)
    RoutingTable(bands, torch.full_like(bands, 1), config).save(tmp_path / "table")
    output = made(folder, tmp_path / "new.mp4", "--table", tmp_path / "table")
    assert "13.2% of dense attention's FLOPs in 3 of 3 layers and all steps" in output


def test_weights_can_wait_elsewhere(folder: Path, tmp_path: Path) -> None:
    made(folder, tmp_path / "here.mp4", *BANDED)
    output = made(folder, tmp_path / "there.mp4", *BANDED, "--offload", "model")
    assert "of dense attention's FLOPs in 3 of 3 layers" in output
    difference = clip(tmp_path / "here.mp4") - clip(tmp_path / "there.mp4")
    assert float(difference.abs().mean()) < 1


def test_what_can_not_be_done_is_said_before_the_weights_are_read(tmp_path: Path) -> None:
    nowhere = ("generate", "--pipeline", tmp_path / "none", "--prompt", "a cat")
    cases: tuple[tuple[tuple[object, ...], str], ...] = (
        (("-o", tmp_path / "new.gif"), "does not end in .mp4"),
        (("-o", tmp_path / "new.mp4", "--density", 20), "density is 20.0; numbers from 0.001 to 1"),
        (("-o", tmp_path / "new.mp4", "--start-percent", 20), "start_percent is 20.0"),
        (("-o", tmp_path / "new.mp4", "--fps", 0), "fps is 0"),
        (("-o", tmp_path / "new.mp4", "--table", tmp_path), "routing_table.json"),
        (("-o", tmp_path / "new.mp4"), "a folder with model_index.json, or a name on the hub"),
    )
    for arguments, message in cases:
        refused(*nowhere, *arguments, message=message)


def test_modular_pipelines_are_read_and_offload_nothing(tmp_path: Path) -> None:
    made = MiniMaxH3CoreDenoiseStep().init_pipeline()
    made.update_components(scheduler=MiniMaxH3Scheduler(), audio_scheduler=MiniMaxH3Scheduler())
    made.save_pretrained(str(tmp_path / "h3"), overwrite_modular_index=True)
    given = {"dtype": torch.float32, "device": torch.device("cpu")}
    pipe = load_pipeline(str(tmp_path / "h3"), **given)
    assert type(pipe).__name__ == "MiniMaxH3ModularPipeline"
    with pytest.raises(ValueError, match="offload is 'model', and a modular pipeline offers none"):
        load_pipeline(str(tmp_path / "h3"), **given, offload="model")


def test_folders_without_a_pipeline_are_refused(tmp_path: Path) -> None:
    given = ("generate", "--prompt", "a cat", "-o", tmp_path / "new.mp4", "--pipeline")
    refused(*given, tmp_path, message="a folder without model_index.json")
    (tmp_path / "model_index.json").write_text('{"_class_name": "FreqFormerPipeline"}')
    refused(*given, tmp_path, message="a model of this library, which has the attention already")


def test_a_video_with_sound(tmp_path: Path) -> None:
    """Of LTX-2, from a folder."""
    PIPELINES["ltx-2"].make().save_pretrained(tmp_path / "ltx-2")
    arguments = ("--frames", 5, "--size", 32, 32, "--steps", 2, "--dtype", "float32")
    prompt = ("--prompt", "a lighthouse in the storm", "-o", tmp_path / "new.mp4")
    folder = ("--pipeline", tmp_path / "ltx-2", "--device", "cpu")
    output = run("generate", *folder, *prompt, *arguments, *BANDED, "--fps", 8)
    found = re.search(r"wrote 5 frames of 32 x 32 and ([\d.]+) s of sound", output)
    assert found is not None
    with av.open(str(tmp_path / "new.mp4")) as container:
        (heard,) = container.streams.audio
        assert heard.rate == 16000
        samples = sum(frame.samples for frame in container.decode(heard))
        assert samples / heard.rate == pytest.approx(float(found[1]), abs=0.15)
    assert probe_video(tmp_path / "new.mp4").num_frames == 5
