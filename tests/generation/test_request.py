"""What a pipeline is asked for, and what is made of what it gives."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from tests.support.family_pipelines import PIPELINES

from freqformer.generation.request import Request, frames_of, make

ASKED = Request("a cat", 5, 16, 32, seed=7)
CPU = torch.device("cpu")


class Pipeline:
    """That shows what it was given as the brightness of its frames."""

    def __init__(self) -> None:
        self.transformer = torch.nn.Linear(1, 1)

    def __call__(
        self,
        prompt: str,
        height: int = 8,
        width: int = 8,
        num_frames: int = 4,
        generator: Any = None,
        output_type: str = "np",
    ) -> Any:
        assert (prompt, output_type) == ("a cat", "pt")
        for _ in range(3):
            self.transformer(torch.ones(1))
        noise = torch.rand(1, num_frames, 3, height, width, generator=generator)
        return SimpleNamespace(frames=noise)


class ImageToVideo(Pipeline):
    def __call__(
        self, image: Any, prompt: str, generator: Any = None, output_type: str = "np"
    ) -> Any:
        values = torch.from_numpy(numpy.asarray(image) / 255).permute(2, 0, 1)
        return SimpleNamespace(frames=values[None, None])


def test_a_pipeline_runs_once_and_its_calls_are_timed() -> None:
    pipe = Pipeline()
    made = make(pipe, ASKED, {"": pipe.transformer}, CPU)
    assert made.frames.shape == (5, 16, 32, 3)
    noise = torch.rand(1, 5, 3, 16, 32, generator=torch.Generator().manual_seed(7))
    assert torch.equal(made.frames, (noise[0].permute(0, 2, 3, 1) * 255).round().to(torch.uint8))
    assert len(made.call_seconds) == 3
    assert 0 < made.call_median <= made.seconds
    assert made.peak_bytes is None
    assert not pipe.transformer._forward_hooks
    assert not pipe.transformer._forward_pre_hooks


def test_what_a_pipeline_does_not_take_is_refused() -> None:
    wrong = Request("a cat", 5, 16, 32, seed=0, guidance_scale=3.0)
    with pytest.raises(ValueError, match=r"guidance_scale is 3\.0, and a Pipeline takes none"):
        wrong.arguments(Pipeline())


def test_pictures_of_image_to_video(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a ImageToVideo needs one"):
        Request("a cat", None, None, None, seed=0).arguments(ImageToVideo())
    path = tmp_path / "cat.png"
    Image.new("RGB", (4, 2), (255, 0, 51)).save(path)
    pipe = ImageToVideo()
    made = make(pipe, Request("a cat", None, None, None, seed=0, image=path), {}, CPU)
    assert made.frames.tolist() == [[[[255, 0, 51]] * 4] * 2]
    assert made.call_median == 0
    path.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"--image is .*cat\.png, which is no picture"):
        Request("a cat", None, None, None, seed=0, image=path).arguments(pipe)


@pytest.mark.parametrize("kind", ["tensor", "array", "pictures", "tensors"])
def test_every_form_of_frames(kind: str) -> None:
    values = torch.randint(0, 256, (2, 6, 5, 3), generator=torch.Generator().manual_seed(0))
    frames = values.to(torch.uint8)
    unit = values.float() / 255
    forms: dict[str, Any] = {
        "tensor": unit.permute(0, 3, 1, 2)[None],
        "array": unit.numpy()[None],
        "pictures": [[Image.fromarray(frame.numpy()) for frame in frames]],
        "tensors": [unit.permute(0, 3, 1, 2)],
    }
    assert torch.equal(frames_of(forms[kind]), frames)


def test_broken_frames_are_refused() -> None:
    broken = torch.zeros(1, 2, 3, 4, 4)
    broken[0, 0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="of which 1 are NaN; finite frames of three colours"):
        frames_of(broken)
    with pytest.raises(ValueError, match=r"gave \(2, 1, 4, 4\)"):
        frames_of(torch.zeros(1, 2, 1, 4, 4))


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("name", ["ltx-2", "minimax-h3"])
def test_sound_comes_with_the_video(name: str) -> None:
    """As the pipeline itself gives it."""
    tiny = PIPELINES[name]
    pipe = tiny.make()
    sizes = [tiny.options[side] for side in ("num_frames", "height", "width")]
    made = make(pipe, Request("a cat", *sizes, seed=3, num_inference_steps=3), {}, CPU)
    call = {
        **dict(zip(("num_frames", "height", "width"), sizes, strict=True)),
        "prompt": "a cat",
        "num_inference_steps": 3,
        "generator": torch.Generator().manual_seed(3),
        "output_type": "pt",
    }
    if name == "ltx-2":
        rate = pipe.vocoder.config.output_sampling_rate
        wanted = pipe(**call).audio
    else:
        rate = pipe.audio_vae.config.sampling_rate
        wanted = pipe(**call, output="audio")
    assert made.frames.shape == (*sizes, 3)
    assert made.sound is not None
    assert made.sound.rate == rate
    assert torch.equal(made.sound.samples, wanted[0])
    assert float(made.sound.samples.std()) > 0


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_sound_is_made_for_the_files_frames_a_second() -> None:
    given = {"prompt": "a cat", "num_frames": 5, "height": 32, "width": 32, "seed": 0}
    faster = Request(**given, fps=30.0)
    assert faster.arguments(PIPELINES["ltx-2"].make())["frame_rate"] == 30.0
    pipe = PIPELINES["minimax-h3"].make()
    with pytest.raises(ValueError, match="makes its sound for 24 frames a second; that is allowed"):
        faster.arguments(pipe)
    assert "frame_rate" not in Request(**given, fps=24.0).arguments(pipe)
    assert "frame_rate" not in faster.arguments(Pipeline())
