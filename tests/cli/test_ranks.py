"""Commands under torchrun, as a user types them: one voice, and the video of one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.support.command_line import run
from tests.support.ranks import ROOT
from tests.support.tiny_conversions import make_wan_folder

from freqformer.cli.ranks import is_main_rank, rank_device
from freqformer.training.checkpoint import read_state

SETTINGS = (
    *("model.num_layers=1", "model.num_attention_heads=2", "model.attention_head_dim=8"),
    *("data.num_frames=3", "data.height=16", "data.width=24", "run.device=cpu"),
    *("run.batch_size=1", "run.parallel.cp=2", "run.progress=false"),
)


def on_two_ranks(*arguments: object) -> str:
    """What `torchrun --nproc-per-node 2 -m freqformer ...` prints."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launcher, "-m", "freqformer", *map(str, arguments)]
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_train_and_sample_under_torchrun(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    said = on_two_ranks("train", "synthetic", "-o", folder, "--steps", 2, *settings)
    assert said.count("trained model:") == 1
    options = ("--steps", 2, "--seed", 3, "--device", "cpu")
    said = on_two_ranks("sample", folder, "-o", tmp_path / "two.mp4", *options)
    assert said.count("wrote 1 video") == 1
    run("sample", folder, "-o", tmp_path / "one.mp4", *options)
    # The contact sheet is lossless.
    sheets = [np.asarray(Image.open(tmp_path / f"{name}.png"), int) for name in ("one", "two")]
    assert sheets[0].std() > 5
    assert np.abs(sheets[0] - sheets[1]).max() <= 1


def test_convert_under_torchrun(tmp_path: Path) -> None:
    """The first rank records, and all convert."""
    make_wan_folder(tmp_path)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\nthe lighthouse\n", encoding="utf-8")
    out = tmp_path / "out"
    steps = ("--density", 0.5, "--layer-steps", 1, "--velocity-steps", 1)
    settings = ("windows.tile=[1,2,2]", "windows.compression=128", "run.precision=fp32")
    device = ("run.device=cpu", "run.progress=false")
    small = [part for setting in (*settings, *device) for part in ("--set", setting)]
    recorded = ("--prompts", prompts, "--frames", 5, "--size", 48, 64)
    given = ("--pipeline", tmp_path / "wan", "-o", out, *recorded)
    said = on_two_ranks("convert", *given, *steps, *small)
    assert said.count(f"converted model: {out / 'adapter'}") == 1
    assert len(list((out / "calls").glob("*.safetensors"))) == 16
    assert read_state(out / "checkpoints" / "step-00000002")["clips_per_step"] == 2


def test_the_first_rank_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert is_main_rank()
    monkeypatch.setenv("RANK", "1")
    assert not is_main_rank()


def test_a_rank_takes_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert str(rank_device(None)) == "cuda:1"
    assert str(rank_device("cpu")) == "cpu"
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="--device is 'cuda:2'"):
        rank_device(None)
