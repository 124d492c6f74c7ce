"""A run of LoRA on a pipeline: what it computes, keeps, repeats and refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tests.support.tiny_finetuning import (
    lora_config,
    make_pipeline_and_cache,
    pipeline_cache,
    with_run,
)
from tests.support.tiny_pipelines import tiny_text_encoder, tiny_wan_vae
from tests.support.tiny_training import changed, losses

from freqformer.integrations.diffusers.velocity import VELOCITIES
from freqformer.training.cache.making import make_cache
from freqformer.training.cache.reading import LatentCache
from freqformer.training.config import TrainConfig
from freqformer.training.finetuning.model import finetuned_model
from freqformer.training.loop import train
from freqformer.training.validation.held_out import choose_held_out, held_out_losses


def checkpoint(folder: Path, step: int, group: str = "model") -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"step-{step:08d}" / f"{group}.safetensors")


def test_a_checkpoint_holds_the_additions_alone(tuned: Path) -> None:
    for group in ("model", "ema"):
        weights = checkpoint(tuned, 3, group)
        assert len(weights) == 3 * 4 * 2  # layers, projections, two matrices
        assert all("lora" in name and x.dtype == torch.float32 for name, x in weights.items())
        assert all(bool(x.any()) for x in weights.values())
    assert not (tuned / "pipeline").exists()
    record = json.loads((tuned / "train.json").read_text())
    assert (record["pipeline"]["rank"], record["optimizer"]["learning_rate"]) == (4, 0.01)


def test_density_counts_and_recomputing_does_not(wan: Path, tmp_path: Path) -> None:
    """Sparse attention is another model; blocks that are computed again are the same."""
    half = losses(lora_config(wan, tmp_path / "half"))
    again = with_run(lora_config(wan, tmp_path / "again"), gradient_checkpointing=True)
    assert losses(again) == half
    dense = losses(lora_config(wan, tmp_path / "dense", density=1.0))
    short = losses(lora_config(wan, tmp_path / "short", min_tokens=None))
    assert short == dense  # 400 tokens are fewer than those from which on attention is banded
    assert dense[0][1] != half[0][1]


def test_a_resumed_run_repeats_the_other(wan: Path, tuned: Path, tmp_path: Path) -> None:
    config = lora_config(wan, tmp_path / "run", alpha=6.0)
    first = replace(config, run=replace(config.run, stop_after_seconds=1e-3))
    train(first)
    assert [step for step, _ in losses(config)] == [2, 3]
    for group in ("model", "ema", "optimizer"):
        whole, resumed = checkpoint(tuned, 3, group), checkpoint(tmp_path / "run", 3, group)
        assert whole.keys() == resumed.keys()
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_checkpoint_of_another_base_or_rank_is_refused(copied: Path) -> None:
    config = with_run(lora_config(copied, copied / "run", alpha=6.0), max_steps=4)
    with pytest.raises(ValueError, match=r"pipeline\.rank was 4 and is 5"):
        train(changed(config, "pipeline", rank=5))
    with pytest.raises(ValueError, match=r"pipeline\.density was 0\.5 and is 1\.0; .*accept"):
        train(changed(config, "pipeline", density=1.0))
    weights = copied / "pipe" / "transformer" / "diffusion_pytorch_model.safetensors"
    changed_bytes = bytearray(weights.read_bytes())
    changed_bytes[-1] ^= 1
    weights.write_bytes(changed_bytes)
    with pytest.raises(ValueError, match=r"made by another run: base was"):
        train(config)


def test_sixteen_bits(wan: Path, tmp_path: Path) -> None:
    """Frozen weights in bfloat16, what is trained in float32."""
    config = with_run(lora_config(wan, tmp_path / "half"), precision="bf16")
    model = finetuned_model(config)
    kinds = {weight.requires_grad: weight.dtype for weight in model.parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}
    whole = losses(lora_config(wan, tmp_path / "whole"))
    assert losses(config)[0][1] == pytest.approx(whole[0][1], rel=0.02)


def test_whole_weights(wan: Path, tmp_path: Path) -> None:
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

    config = lora_config(wan, tmp_path / "run", weights="full")
    assert train(config) == tmp_path / "run" / "transformer"
    made = WanTransformer3DModel.from_pretrained(tmp_path / "run" / "transformer")
    averaged = checkpoint(tmp_path / "run", 3, "ema")
    state = made.state_dict()
    assert {f"transformer.{name}" for name in state} == averaged.keys()
    assert all(torch.equal(state[name], averaged[f"transformer.{name}"]) for name in state)
    before = WanTransformer3DModel.from_pretrained(wan / "pipe" / "transformer").state_dict()
    moved = [name for name in state if not torch.equal(state[name], before[name])]
    assert len(moved) > 0.9 * len(state)


def test_learning_rates_are_those_of_what_is_trained(tmp_path: Path) -> None:
    for weights, rate in (("lora", 1e-4), ("full", 1e-5)):
        plain = lora_config(tmp_path, tmp_path / "run", weights=weights)
        config = changed(plain, "optimizer", learning_rate=None)
        assert config.optimizer.learning_rate == rate
    assert TrainConfig("run").optimizer.learning_rate == 1e-3


def test_caches_of_other_encoders_are_refused(copied: Path) -> None:
    config = lora_config(copied, copied / "new")
    torch.manual_seed(7)
    tiny_wan_vae().save_pretrained(copied / "pipe" / "vae")
    message = "another VAE than that of .* make a cache with --vae"
    with pytest.raises(ValueError, match=message):
        train(config)
    make_cache(pipeline_cache(copied, output=str(copied / "newer")))
    config = changed(config, "data", cache=str(copied / "newer"))
    tiny_text_encoder().save_pretrained(copied / "pipe" / "text_encoder")
    with pytest.raises(ValueError, match=r"another text encoder than that of .* --text-encoder"):
        train(config)
    make_cache(pipeline_cache(copied, output=str(copied / "mute"), text_encoder=None))
    with pytest.raises(ValueError, match=r"which has no text, and .* make the cache with --text"):
        train(changed(config, "data", cache=str(copied / "mute")))
    shutil.rmtree(copied / "pipe" / "vae")
    with pytest.raises(ValueError, match="another VAE"):
        train(config)


def test_what_is_no_pipeline_is_refused(wan: Path, tmp_path: Path) -> None:
    config = lora_config(wan, tmp_path / "run")
    with pytest.raises(ValueError, match=r"which has no model_index\.json; give a folder"):
        train(changed(config, "pipeline", folder=str(tmp_path)))
    with pytest.raises(ValueError, match=r"part is 'transformer_2', and .* has no transformer_2/"):
        train(changed(config, "pipeline", part="transformer_2"))
    shutil.copytree(wan / "pipe", tmp_path / "other")
    index = tmp_path / "other" / "transformer" / "config.json"
    values: dict[str, Any] = json.loads(index.read_text())
    index.write_text(json.dumps(values | {"_class_name": "CogVideoXTransformer3DModel"}))
    with pytest.raises(ValueError, match=r"CogVideoX.*, and it learned a diffusion in steps"):
        train(changed(config, "pipeline", folder=str(tmp_path / "other")))
    with pytest.raises(ValueError, match=r"folder is '.*' and data\.cache None; a pipeline is"):
        changed(config, "data", cache=None)
    with pytest.raises(ValueError, match=r"model is \{'num_layers': 1\}, and pipeline"):
        replace(config, model={"num_layers": 1})
    with pytest.raises(ValueError, match="offload_blocks is 1 and weights 'full'; 0 is allowed"):
        changed(config, "pipeline", offload_blocks=1, weights="full")


def test_experts_train_at_their_own_noise_levels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_pipeline_and_cache(tmp_path, experts=2)
    seen: list[float] = []
    config = lora_config(tmp_path, tmp_path / "run")
    own = VELOCITIES["WanTransformer3DModel"].velocity

    def note(transformer: Any, call: Any, settings: Any) -> Any:
        seen.extend(call.timestep.tolist())
        return own(transformer, call, settings)

    name = "WanTransformer3DModel"
    monkeypatch.setitem(VELOCITIES, name, replace(VELOCITIES[name], velocity=note))
    train(config)
    assert len(seen) == 3
    assert min(seen) >= 875
    seen.clear()
    train(lora_config(tmp_path, tmp_path / "second", part="transformer_2"))
    assert len(seen) == 3
    assert max(seen) <= 875
    held_out = changed(config, "validation", held_out=1)
    with pytest.raises(
        ValueError, match=r"levels has \[0\.1, .*, 0\.7\], and .* 0\.875 to 1 alone"
    ):
        train(replace(held_out, output=str(tmp_path / "third")))
    shown = replace(changed(config, "validation", prompts=("",)), output=str(tmp_path / "fourth"))
    with pytest.raises(ValueError, match=r"prompts has 1 prompts, and .* from 0\.875 to 1 alone"):
        train(shown)


def test_held_out_loss_is_that_of_the_averaged_additions(wan: Path, tmp_path: Path) -> None:
    config = changed(lora_config(wan, tmp_path / "run"), "validation", held_out=1, levels=(0.5,))
    train(config)
    model: Any = finetuned_model(config)
    model.weights.load_state_dict(checkpoint(tmp_path / "run", 3, "ema"))
    cache = LatentCache(wan / "cache")
    numbers = choose_held_out(2, 1, config.run.seed)
    expected = held_out_losses(model.eval(), cache, numbers, (0.5,), 0, torch.device("cpu"))
    events = EventAccumulator(str(tmp_path / "run" / "logs")).Reload()
    (logged,) = events.Scalars("held_out_loss/0.5")
    assert (logged.step, logged.value) == (3, pytest.approx(expected[0.5], rel=1e-5))


def test_ltx(tmp_path: Path) -> None:
    make_pipeline_and_cache(tmp_path, "ltx", size=(32, 64))
    folder = train(lora_config(tmp_path, tmp_path / "run"))
    assert (folder / "pytorch_lora_weights.safetensors").is_file()
