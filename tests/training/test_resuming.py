"""What may change when a run goes on: freely, on purpose, and not at all."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
from tests.support.tiny_training import changed, losses, tiny_config

from freqformer.models.transformer import FreqFormerTransformer3DModel
from freqformer.training.checkpoint import CheckpointError, load_checkpoint
from freqformer.training.config import OptimizerConfig, TrainConfig
from freqformer.training.resuming import check_resumable


@pytest.fixture
def begun(tmp_path: Path) -> TrainConfig:
    """Of three steps, the first is done."""
    config = tiny_config(tmp_path / "out")
    losses(changed(config, "run", max_steps=1))
    return config


def test_a_learning_rate_changes_on_purpose(begun, caplog):
    slower = changed(begun, "optimizer", learning_rate=1e-5, weight_decay=0.0)
    with pytest.raises(
        CheckpointError,
        match=r"learning_rate was 0\.001 and is 1e-05.*weight_decay.*accept_changes=true",
    ):
        losses(slower)
    assert [step for step, _ in losses(changed(slower, "checkpoint", accept_changes=True))] == [
        2,
        3,
    ]
    assert "with changes: optimizer.learning_rate was 0.001 and is 1e-05" in caplog.text
    state = load_checkpoint(Path(begun.output) / "checkpoints" / "step-00000003")[1]
    assert state["config"]["optimizer"]["learning_rate"] == 1e-5
    # What was accepted once is now what the run is.
    assert losses(slower) == []


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("objective", {"shift": 2.0}),
        ("objective", {"logit_mean": 1.0, "stratified": False}),
        ("routing", {"mode": "off", "budget": 0.5}),
        ("run", {"precision": "bf16"}),
    ],
)
def test_other_settings_change_on_purpose(begun, section, values):
    other = changed(begun, section, **values)
    with pytest.raises(CheckpointError, match=r"--accept-changes"):
        losses(other)
    assert [step for step, _ in losses(changed(other, "checkpoint", accept_changes=True))] == [2, 3]


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("run", {"seed": 4}, r"run\.seed was 0 and is 4"),
        ("data", {"height": 16}, r"data\.height was 8 and is 16"),
        ("run", {"batch_size": 3}, r"clips_per_step was 2 and is 3"),
    ],
)
def test_what_makes_another_run_is_refused_on_purpose_too(begun, section, values, message):
    other = changed(changed(begun, section, **values), "checkpoint", accept_changes=True)
    with pytest.raises(CheckpointError, match=rf"another run: .*{message}.*empty output folder"):
        losses(other)


def test_a_checkpoint_of_an_older_version_goes_on(tmp_path):
    """Its state holds the settings in the words of then."""
    model = {"num_layers": 1, "num_heads": 2, "head_dim": 8, "routing": "learned"}
    old = json.loads(json.dumps(TrainConfig("out").to_dict() | {"model": model}))
    state = {"config": old, "clips_per_step": 4, "data": None, "ema_steps": 1, "seconds": 1.0}
    with pytest.warns(FutureWarning, match="'learned' is 'hard'"):
        config = TrainConfig.from_dict(old)
    assert config.model["num_attention_heads"] == 2
    check_resumable(tmp_path, state | {"step": 1}, config, {"clips_per_step": 4})
    other = replace(config, model={**config.model, "num_attention_heads": 3})
    with pytest.raises(CheckpointError, match=r"model\.num_attention_heads was 2 and is 3"):
        check_resumable(tmp_path, state | {"step": 1}, other, {"clips_per_step": 4})


def test_a_models_own_config_goes_on_in_another_process(tmp_path):
    """diffusers notes there which arguments were defaults, in the order of a set."""
    model = FreqFormerTransformer3DModel(num_layers=1, num_attention_heads=2, attention_head_dim=8)
    config = TrainConfig("out", model=dict(model.config))
    assert config.model["num_layers"] == 1
    assert not any(name.startswith("_") for name in config.model)
    old = json.loads(json.dumps(config.to_dict()))
    old["model"]["_use_default_values"] = ["prediction_type", "in_channels"]
    state = {"config": old, "clips_per_step": 4, "data": None, "ema_steps": 1, "seconds": 1.0}
    check_resumable(tmp_path, state | {"step": 1}, config, {"clips_per_step": 4})


def test_an_accepted_learning_rate_is_the_one_that_trains(begun):
    """With a rate of 0 the weights stay where they are."""
    still = {field.name: getattr(begun.optimizer, field.name) for field in fields(OptimizerConfig)}
    still |= {"learning_rate": 0.0, "weight_decay": 0.0}
    losses(changed(changed(begun, "optimizer", **still), "checkpoint", accept_changes=True, keep=9))
    first, last = (
        load_checkpoint(Path(begun.output) / "checkpoints" / f"step-0000000{step}")[0]["model"]
        for step in (1, 3)
    )
    assert all(bool((weight == last[name]).all()) for name, weight in first.items())
