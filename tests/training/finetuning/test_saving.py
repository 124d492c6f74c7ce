"""What a run on a pipeline saves is what diffusers loads, alone or beside frequency attention."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.wan.pipeline_wan import WanPipeline
from tests.support.tiny_finetuning import add_lora, lora_config, make_pipeline_and_cache
from tests.support.tiny_pipelines import generate

from freqformer.generation.lora import load_loras
from freqformer.integrations.diffusers import enable_frequency_attention
from freqformer.training.loop import train

SHORT: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 1.0, "output_type": "latent"}
SPARSE: dict[str, Any] = {"density": 0.5, "min_tokens": 1, "start_percent": 0}


def pipeline(folder: Path) -> WanPipeline:
    pipe = WanPipeline.from_pretrained(folder / "pipe")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def merged(wan: Path, tuned: Path) -> WanPipeline:
    """The pipeline with W + 6 / 4 B A in place of W, by the averaged weights of a checkpoint."""
    pipe = pipeline(wan)
    add_lora(pipe.transformer, tuned, scale=1.5)
    return pipe


def test_a_pipeline_loads_it(wan: Path, tuned: Path) -> None:
    before = generate(pipeline(wan), **SHORT)
    expected = generate(merged(wan, tuned), **SHORT)
    assert not torch.allclose(expected, before, atol=1e-3)
    pipe = pipeline(wan)
    pipe.load_lora_weights(str(tuned / "lora"))
    torch.testing.assert_close(generate(pipe, **SHORT), expected, rtol=1e-4, atol=1e-4)
    pipe.unload_lora_weights()
    assert torch.equal(generate(pipe, **SHORT), before)


def test_frequency_attention_may_come_before_or_after(wan: Path, tuned: Path) -> None:
    pipe = merged(wan, tuned)
    with enable_frequency_attention(pipe, **SPARSE):
        expected = generate(pipe, **SHORT)
    early, late = pipeline(wan), pipeline(wan)
    enable_frequency_attention(early, **SPARSE)
    early.load_lora_weights(str(tuned / "lora"))
    late.load_lora_weights(str(tuned / "lora"))
    enable_frequency_attention(late, **SPARSE)
    found = generate(early, **SHORT)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(generate(late, **SHORT), found)


FRESH = """
import sys, torch
from diffusers import WanPipeline
pipe = WanPipeline.from_pretrained(sys.argv[1])
pipe.load_lora_weights(sys.argv[2])
made = pipe("a cat", height=32, width=48, num_frames=5, num_inference_steps=2, guidance_scale=1.0,
            max_sequence_length=16, output_type="latent", generator=torch.manual_seed(0)).frames
torch.save(made, sys.argv[3])
"""


def test_a_fresh_process_loads_it(wan: Path, tuned: Path, tmp_path: Path) -> None:
    """With diffusers alone."""
    made = tmp_path / "made.pt"
    arguments = [sys.executable, "-c", FRESH, wan / "pipe", tuned / "lora", made]
    subprocess.run(arguments, check=True, capture_output=True)
    pipe: Any = merged(wan, tuned)
    size = {"height": 32, "width": 48, "num_frames": 5}
    given = {**size, **SHORT, "max_sequence_length": 16, "generator": torch.manual_seed(0)}
    expected = pipe("a cat", **given).frames
    torch.testing.assert_close(torch.load(made), expected, rtol=1e-4, atol=1e-4)


def test_several_add_up_and_go_to_the_transformer_they_are_of(tmp_path: Path) -> None:
    make_pipeline_and_cache(tmp_path, experts=2)
    first = train(lora_config(tmp_path, tmp_path / "first"))
    second = train(lora_config(tmp_path, tmp_path / "second", part="transformer_2"))
    assert json.loads((second / "freqformer-lora.json").read_text()) == {"part": "transformer_2"}
    pipe: Any = pipeline(tmp_path)
    load_loras(pipe, [str(first), str(second), str(first)])
    assert pipe.transformer.active_adapters() == ["added_0", "added_2"]
    assert pipe.transformer_2.active_adapters() == ["added_1"]


def test_what_is_no_lora_is_refused(wan: Path, tuned: Path, tmp_path: Path) -> None:
    pipe = pipeline(wan)
    with pytest.raises(ValueError, match=r"--lora is .*pipe, which holds no pytorch_lora_weights"):
        load_loras(pipe, [str(wan / "pipe")])
    with pytest.raises(ValueError, match=r"--lora is .*nowhere, which does not exist"):
        load_loras(pipe, [str(tmp_path / "nowhere")])
    with pytest.raises(ValueError, match=r"a int loads none; leave it out"):
        load_loras(3, [str(tuned / "lora")])
    shutil.copytree(tuned / "lora", tmp_path / "cut")
    weights = tmp_path / "cut" / "pytorch_lora_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"--lora is .*cut, which a WanPipeline can't load"):
        load_loras(pipe, [str(tmp_path / "cut")])
