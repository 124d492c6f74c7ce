"""Training on a cache: text, buckets, exact resume, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.support.several_cached import run
from tests.support.tiny_training import changed, losses

from freqformer import FreqFormerPipeline
from freqformer.media import probe_video
from freqformer.training import trainer
from freqformer.training.checkpoint import load_checkpoint
from freqformer.training.config import DataConfig, OptimizerConfig, RunConfig, TrainConfig
from freqformer.training.loop import train
from freqformer.training.objective import resolution_shift

ROOT = Path(__file__).parents[3]
MODEL = {
    "num_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "patch_size": [1, 2, 2],
    "frequency": {"preset": "paper", "routing": "fixed", "prior": "none"},
}


def config_of(made: Path, output: Path) -> TrainConfig:
    """Five steps: an epoch in four sizes of clips."""
    return TrainConfig(
        str(output),
        model=MODEL,
        data=DataConfig(cache=str(made / "cache"), caption_dropout=0.2),
        optimizer=OptimizerConfig(warmup_steps=1),
        run=RunConfig(max_steps=5, batch_size=1, device="cpu", progress=False),
    )


def newest(output: Path, step: int) -> dict[str, dict[str, torch.Tensor]]:
    return load_checkpoint(output / "checkpoints" / f"step-{step:08d}")[0]


def test_every_size_and_the_text_are_trained_on(made: Path, tmp_path: Path, monkeypatch) -> None:
    shapes, shifts, texts = [], [], []
    loss = trainer.batch_loss
    drawn = trainer.sample_timesteps

    def seen(model, batch, timestep):
        shapes.append(tuple(batch.clip.shape))
        texts.append(batch.prompt_attention_mask)
        return loss(model, batch, timestep)

    def shifted(count, shift, *given, **more):
        shifts.append(shift)
        return drawn(count, shift, *given, **more)

    monkeypatch.setattr(trainer, "batch_loss", seen)
    monkeypatch.setattr(trainer, "sample_timesteps", shifted)
    monkeypatch.setattr(trainer, "resolution_shift", lambda tokens: float(tokens))
    train(config_of(made, tmp_path / "run"))
    assert set(shapes) == {(1, 4, 2, 4, 6), (1, 4, 2, 6, 4), (1, 4, 1, 4, 6)}
    assert len(shapes) == 5
    # 2 x 2 latents are a token.
    assert shifts == [shape[2] * shape[3] * shape[4] / 4 for shape in shapes]
    assert all(mask is not None and mask.any() for mask in texts)
    assert resolution_shift(12) == 1
    groups = newest(tmp_path / "run", 5)
    moved = groups["model"]["transformer_blocks.0.attn2.to_out.0.weight"]
    assert moved.shape == (16, 16)
    # Its last layer begins at zero, and learns.
    assert moved.abs().sum() > 0
    assert groups["model"]["transformer_blocks.0.attn2.to_k.weight"].shape == (16, 16)


@pytest.mark.parametrize("stop", [1, 3])
def test_a_resumed_run_is_the_same_run(made: Path, tmp_path: Path, stop: int) -> None:
    whole = losses(changed(config_of(made, tmp_path / "whole"), "run", max_steps=8))
    config = changed(config_of(made, tmp_path / "parts"), "run", max_steps=8)
    first: list[tuple[int, float]] = []

    class Stopped(Exception):
        pass

    def on_step(report) -> None:
        first.append((report.step, report.loss))
        if report.step == stop:
            raise Stopped

    every = changed(config, "checkpoint", every_steps=1)
    with pytest.raises(Stopped):
        train(every, on_step=on_step)
    # The step that was under way is done again.
    rest = losses(every)
    assert first[:-1] + rest == whole
    straight, resumed = newest(tmp_path / "whole", 8), newest(tmp_path / "parts", 8)
    for group in ("model", "ema", "optimizer"):
        for name, tensor in straight[group].items():
            assert torch.equal(tensor, resumed[group][name]), name


def test_a_cache_without_text(copied: Path, tmp_path: Path) -> None:
    from tests.support.tiny_cache import cache_config

    from freqformer.training.cache.making import make_cache

    make_cache(cache_config(copied, text_encoder=None, output=str(copied / "plain")))
    config = config_of(copied, tmp_path / "run")
    config = replace(config, data=DataConfig(cache=str(copied / "plain")))
    train(config)
    assert not any("attn2" in name for name in newest(tmp_path / "run", 5)["model"])


def test_what_does_not_fit_is_refused(made: Path, tmp_path: Path) -> None:
    config = config_of(made, tmp_path / "run")
    with pytest.raises(ValueError, match=r"model.cross_attention_dim is 32 and .* has 16"):
        train(replace(config, model={**MODEL, "cross_attention_dim": 32}))
    with pytest.raises(ValueError, match=r"model.in_channels is 3 and .* has 4"):
        train(replace(config, model={**MODEL, "in_channels": 3}))
    with pytest.raises(ValueError, match=r"multiples of patch_size \(1, 4, 4\)"):
        train(replace(config, model={**MODEL, "patch_size": [1, 4, 4]}))
    with pytest.raises(ValueError, match=r"data.height is 64, and the sizes of clips are those"):
        train(changed(config, "data", height=64))
    with pytest.raises(ValueError, match=r"is no cache: it has no index\.json"):
        train(changed(config, "data", cache=str(tmp_path)))
    with pytest.raises(ValueError, match="one folder, as text, is allowed: clips come from a"):
        DataConfig(cache="cache", path="videos")
    with pytest.raises(ValueError, match=r"caption_dropout is 0\.5 and cache None"):
        DataConfig(caption_dropout=0.5)
    with pytest.raises(ValueError, match="these clips have no text"):
        TrainConfig("run", model={"cross_attention_dim": 16})
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_loss_that_is_not_finite_names_the_clip(made: Path, tmp_path: Path, monkeypatch) -> None:
    loss = trainer.batch_loss
    steps = []

    def broken(model, batch, timestep):
        steps.append(1)
        return loss(model, batch, timestep) * (torch.nan if len(steps) == 4 else 1)

    monkeypatch.setattr(trainer, "batch_loss", broken)
    config = changed(config_of(made, tmp_path / "run"), "checkpoint", every_steps=2)
    with pytest.raises(ValueError, match=r"at step 4, of the clips \S+\.(mp4|png)") as caught:
        train(config)
    assert "keeps step 2" in str(caught.value)
    assert newest(tmp_path / "run", 2)


def test_a_damaged_clip_keeps_the_steps_before(copied: Path, tmp_path: Path) -> None:
    config = changed(config_of(copied, tmp_path / "run"), "checkpoint", every_steps=100)

    def on_step(report) -> None:
        if report.step == 1:
            for path in (copied / "cache").glob("latents-*"):
                path.write_bytes(b"damaged")

    with pytest.raises(ValueError, match=r"\S+\.(mp4|png).* can't be read from the cache"):
        train(changed(config, "run", max_steps=100), on_step=on_step)
    (kept,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert load_checkpoint(kept)[1]["step"] >= 1


def test_two_processes_do_what_one_does(made: Path, tmp_path: Path) -> None:
    script = ROOT / "tests" / "support" / "several_cached.py"
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    one = run(str(made / "cache"), tmp_path / "one", 2, 1)
    ran = subprocess.run(
        [sys.executable, *launcher, str(script), str(made / "cache"), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    told = json.loads((tmp_path / "told.json").read_text(encoding="utf-8"))
    for name in ("one", "two", "shared"):
        shown = tmp_path / name / "validation" / "step-00000004" / "0.mp4"
        assert probe_video(shown).num_frames == 5
        assert FreqFormerPipeline.from_pretrained(tmp_path / name / "pipeline").vae is not None
    two, shared = told["two"], told["shared"]
    assert len(one) == 12
    # Gradients are summed in another order.
    assert two == pytest.approx(one, rel=1e-4)
    assert shared == pytest.approx(one, rel=1e-4)
