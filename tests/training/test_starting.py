"""The model that a run begins with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from tests.support.tiny_training import MODEL, changed, losses, tiny_config

from freqformer.models.pipeline import FreqFormerPipeline
from freqformer.models.transformer import FreqFormerTransformer3DModel
from freqformer.training.checkpoint import CheckpointError, load_checkpoint
from freqformer.training.config import TrainConfig
from freqformer.training.loop import train
from freqformer.training.starting import check_model, with_initial_model


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    return train(tiny_config(folder)).parent


def beginning_with(folder: Path, output: Path) -> TrainConfig:
    return changed(replace(tiny_config(output), model={}), "run", init_from=str(folder))


@pytest.mark.parametrize("place", ["", "pipeline"])
def test_a_run_begins_with_the_weights_of_a_folder(trained, place, tmp_path):
    config = changed(
        beginning_with(trained / place, tmp_path / "out"),
        "optimizer",
        learning_rate=0.0,
        weight_decay=0.0,
    )
    losses(config)
    weights = load_checkpoint(tmp_path / "out" / "checkpoints" / "step-00000003")
    pipeline = FreqFormerPipeline.from_pretrained(str(trained / "pipeline"))
    for name, weight in pipeline.transformer.state_dict().items():
        assert torch.equal(weight, weights[0]["model"][name]), name
    # The checkpoint names the whole model, and so may the config.
    assert weights[1]["config"]["model"]["num_attention_heads"] == MODEL["num_attention_heads"]
    assert losses(replace(config, model=MODEL)) == []


def test_half_precision_weights_are_trained_in_float32(trained, tmp_path):
    pipeline = FreqFormerPipeline.from_pretrained(str(trained / "pipeline"), dtype=torch.bfloat16)
    pipeline.save_pretrained(tmp_path / "half")
    losses(beginning_with(tmp_path / "half", tmp_path / "out"))
    groups, _ = load_checkpoint(tmp_path / "out" / "checkpoints" / "step-00000003")
    weights = [weight for weight in groups["model"].values() if weight.is_floating_point()]
    assert {weight.dtype for weight in weights} == {torch.float32}


def test_other_weights_are_another_run(trained, tmp_path):
    config = beginning_with(trained, tmp_path / "out")
    losses(config)
    with pytest.raises(CheckpointError, match=r"run\.init_from was '.*' and is None"):
        losses(tiny_config(tmp_path / "out"))


def test_folders_and_models_that_do_not_fit(trained, tmp_path):
    config = beginning_with(trained, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken" / "transformer").mkdir(parents=True)
    (tmp_path / "broken" / "transformer" / "config.json").write_text("[1, 2")
    for folder, message in (
        ("no", "does not exist"),
        ("empty", "holds no pipeline"),
        ("broken", "can't be read"),
    ):
        with pytest.raises(ValueError, match=rf"init_from is '.*{folder}'.* {message}"):
            with_initial_model(changed(config, "run", init_from=str(tmp_path / folder)))
    with pytest.raises(
        ValueError, match=r"model\.num_attention_heads is 4 and .* has 2; .*leave it out"
    ):
        losses(replace(config, model={"num_attention_heads": 4}))
    with pytest.raises(ValueError, match=r"model\.layers is 4 and .* has no such argument"):
        losses(replace(config, model={"layers": 4}))
    with pytest.raises(ValueError, match=r"model is given and run.init_from is"):
        losses(config, model=FreqFormerTransformer3DModel(**MODEL))


def wan() -> WanTransformer3DModel:
    return WanTransformer3DModel(
        num_attention_heads=1,
        attention_head_dim=12,
        num_layers=1,
        ffn_dim=8,
        text_dim=8,
        freq_dim=8,
    )


def test_models_of_other_kinds_are_refused_with_what_to_give_instead(trained, tmp_path):
    config = tiny_config(tmp_path / "out")
    with pytest.raises(
        ValueError, match=r"model is a diffusers.*WanTransformer3DModel; .*docs/diffusers.md"
    ):
        losses(config, model=wan())
    with pytest.raises(
        ValueError, match=r"FreqFormerPipeline; .*give what is in its attribute 'transformer'"
    ):
        losses(config, model=FreqFormerPipeline.from_pretrained(str(trained / "pipeline")))
    with pytest.raises(ValueError, match=r"give what is in its attribute 'module'"):
        check_model(torch.nn.DataParallel(FreqFormerTransformer3DModel(**MODEL)))
    with pytest.raises(ValueError, match=r"model has cross_attention_dim=16; None is allowed"):
        losses(config, model=FreqFormerTransformer3DModel(**MODEL, cross_attention_dim=16))
    assert not (tmp_path / "out" / "checkpoints").exists()
