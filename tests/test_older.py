"""What older versions wrote is taken in today's words, with a warning that names them."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.support.layers import weights_of
from tests.support.models import TIMESTEP, make_model, make_video

from freqformer import FreqFormerConfig, FreqFormerTransformer3DModel
from freqformer._older import current_settings
from freqformer.routing import RoutingTable
from freqformer.training.config import RunConfig, TrainConfig
from freqformer.training.starting import with_initial_model

FREQUENCY = {"tile": [2, 2, 3], "compression": 16, "window": [1, 1, 1], "mid_tiles": 2}
OLD: dict[str, Any] = {
    "_class_name": "FreqFormerTransformer3DModel",
    "_diffusers_version": "0.42.1",
    "absolute_positions": False,
    "allocation": None,
    "attention": "frequency",
    "frequency": FREQUENCY,
    "head_dim": 8,
    "in_channels": 2,
    "low_beside": None,
    "num_heads": 3,
    "num_layers": 2,
    "patch_size": [1, 2, 2],
    "prediction": "velocity",
    "prior": None,
    "routing": "soft",
    "text_dim": None,
}
"""A config.json as version 0.1.0 wrote it, before there was one record."""
SOFT = {"allocation": "high", "routing": "soft", "low_branch": True, "prior": "none"}
HARD = {"allocation": "thirds", "routing": "hard", "low_branch": False, "prior": "noise_level"}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "soft": ({}, SOFT | {"summary_tokens": 256}),
    "soft, no record": ({"frequency": None}, SOFT | {"summary_tokens": 0}),
    "soft, idle prior": ({"prior": "paper"}, SOFT | {"summary_tokens": 256}),
    "timed": ({"routing": "timed"}, SOFT | {"routing": "timestep", "summary_tokens": 256}),
    "bands for all layers": (
        {"allocation": [1, 2, 2]},
        SOFT | {"allocation": [1, 2, 2], "summary_tokens": 256},
    ),
    "learned": ({"routing": "learned", "prior": "paper"}, HARD | {"summary_tokens": 256}),
    "learned, no record": ({"routing": "learned", "frequency": None}, HARD),
    "learned, no prior": (
        {"routing": "learned", "prior": "none", "low_beside": True},
        HARD | {"prior": "none", "low_branch": True},
    ),
    "fixed": (
        {"routing": "fixed", "frequency": FREQUENCY | {"summary_tokens": 6}},
        HARD | {"routing": "fixed", "prior": "none", "summary_tokens": 6},
    ),
    "dense": (
        {"attention": "dense", "routing": None, "prior": "paper", "allocation": [0, 1, 2]},
        {"allocation": "dense", "routing": "fixed", "low_branch": False, "prior": "none"},
    ),
    "strict": (
        {"frequency": FREQUENCY | {"band_features": "strict", "low_output": "synthesis"}},
        SOFT | {"band_features": "own_band", "low_output": "inverse_dct"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_models_config_of_an_older_version(case: str) -> None:
    changes, expected = CASES[case]
    told = r"num_heads is num_attention_heads.*low_beside is frequency\.low_branch"
    with pytest.warns(FutureWarning, match=told):
        made = current_settings(OLD | changes)
    frequency = made.pop("frequency")
    assert {name: frequency[name] for name in expected} == expected
    record = FreqFormerConfig.from_dict(frequency)
    old = (OLD | changes)["frequency"] or {}
    assert [getattr(record, name) for name in ("tile", "window")] == [
        tuple(old["tile"]) if old else None,
        tuple(old["window"]) if old else (3, 3, 3),
    ]
    assert {name: value for name, value in made.items() if not name.startswith("_")} == {
        "absolute_positions": False,
        "attention_head_dim": 8,
        "cross_attention_dim": None,
        "in_channels": 2,
        "num_attention_heads": 3,
        "num_layers": 2,
        "patch_size": [1, 2, 2],
        "prediction_type": "velocity",
    }


def test_settings_of_today_are_left_alone() -> None:
    model = make_model()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert current_settings(model.config) == dict(model.config)
        assert current_settings({}) == {}
        assert current_settings({"frequency": 3}) == {"frequency": 3}


@pytest.mark.parametrize("value", [[], {}, 3, ["clip"]])
def test_what_a_damaged_config_holds_is_left_for_others_to_refuse(value: Any) -> None:
    for name in OLD:
        made = current_settings(OLD | {name: value}, warn=False)
        assert made["num_attention_heads"] == (value if name == "num_heads" else 3)


def write_old(model: FreqFormerTransformer3DModel, folder: Path, **changes: Any) -> Path:
    """A model's folder as the older version wrote it: its config, and weights without bands."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(OLD | changes))
    save_file(weights_of(model), folder / "diffusion_pytorch_model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("today", "old"),
    [
        ({"routing": "soft"}, {}),
        ({"routing": "timestep", "allocation": [1, 2, 2]}, {"routing": "timed"}),
        ({"routing": "hard"}, {"routing": "learned", "prior": "paper"}),
        ({"routing": "hard", "low_branch": True}, {"routing": "learned", "low_beside": True}),
        ({"routing": "fixed"}, {"routing": "fixed"}),
        (
            {"routing": "fixed", "layer_allocations": [[0, 1, 2], [3, 2, 1]]},
            {"routing": "fixed", "allocation": [[0, 1, 2], [3, 2, 1]]},
        ),
        ({"allocation": "dense"}, {"attention": "dense", "routing": None}),
        ({"cross_attention_dim": 10}, {"routing": "learned", "text_dim": 10}),
        ({"prediction_type": "sample"}, {"routing": "learned", "prediction": "clip"}),
        (
            {"frequency": FREQUENCY | {"band_features": "band_gains", "summary_tokens": 256}},
            {"routing": "learned", "frequency": FREQUENCY | {"band_features": "gains"}},
        ),
    ],
)
def test_a_saved_model_of_an_older_version_is_the_model(
    today: dict[str, Any], old: dict[str, Any], tmp_path: Path
) -> None:
    model = make_model(**{"frequency": FREQUENCY | {"summary_tokens": 256}} | today)
    if "allocation" in today and today["allocation"] != "dense":
        old = old | {"allocation": today["allocation"]}
    folder = write_old(model, tmp_path / "old", **old)
    with pytest.warns(FutureWarning, match="written by an older version") as warned:
        loaded = FreqFormerTransformer3DModel.from_pretrained(folder)
    assert len(warned) == 1
    assert loaded.frequency_config == model.frequency_config
    assert [layer.bands for layer in loaded.attentions] == [
        layer.bands for layer in model.attentions
    ]
    text = (torch.ones(2, 7, 10),) if "cross_attention_dim" in today else ()
    with torch.no_grad():
        assert torch.equal(
            loaded(make_video(), TIMESTEP, *text).sample,
            model(make_video(), TIMESTEP, *text).sample,
        )
    loaded.save_pretrained(tmp_path / "new")
    FreqFormerTransformer3DModel.from_pretrained(tmp_path / "new")  # without a warning


def test_a_run_may_begin_with_a_model_of_an_older_version(tmp_path: Path) -> None:
    model = make_model(routing="soft", frequency=FREQUENCY | {"summary_tokens": 256})
    folder = write_old(model, tmp_path / "transformer").parent
    asked = {"num_attention_heads": 3, "frequency": model.frequency_config.to_dict()}
    config = TrainConfig("out", model=asked, run=RunConfig(init_from=str(folder)))
    saved = with_initial_model(config).model
    assert FreqFormerConfig.from_dict(saved["frequency"]) == model.frequency_config
    wrong = replace(config, model={"frequency": {"mid_tiles": 3}})
    with pytest.raises(ValueError, match=r"model\.frequency is .*leave it out"):
        with_initial_model(wrong)


def test_summaries_that_nothing_used_are_left_out(tmp_path: Path) -> None:
    """Weights of early versions hold them."""
    model = make_model(routing="soft", frequency={**FREQUENCY, "summary_tokens": 0})
    folder = write_old(model, tmp_path / "old", frequency=FREQUENCY | {"summary_tokens": 0})
    old = weights_of(model)
    for index in range(len(model.attentions)):
        old[f"transformer_blocks.{index}.attn1.summary_queries"] = torch.randn(3, 2, 8)
        old[f"transformer_blocks.{index}.attn1.summary_offsets"] = torch.randn(3, 3)
    save_file(old, folder / "diffusion_pytorch_model.safetensors")
    with pytest.warns(FutureWarning, match="save it again"):
        loaded = FreqFormerTransformer3DModel.from_pretrained(folder)
    with torch.no_grad():
        assert torch.equal(
            loaded(make_video(), TIMESTEP).sample, model(make_video(), TIMESTEP).sample
        )
    other = FreqFormerTransformer3DModel.from_config(model.config)
    assert other.load_state_dict(old).missing_keys == []


def test_a_routing_table_of_an_older_version(tmp_path: Path) -> None:
    """Its record has no fields of layers, and older words."""
    bands = torch.tensor([[[0, 1, 2]]])
    config = FreqFormerConfig(tile=(2, 3, 4), band_features="high_pass_values")
    table = RoutingTable(bands, torch.full_like(bands, 16), config)
    table.save(tmp_path)
    path = tmp_path / "routing_table.json"
    record = json.loads(path.read_text())
    for name in ("allocation", "routing", "low_branch", "prior"):
        del record["config"][name]
    record["config"]["band_features"] = "values"
    del record["seal"]
    path.write_text(json.dumps(record))
    with pytest.warns(FutureWarning, match="band_features 'values' is 'high_pass_values'"):
        loaded = RoutingTable.load(tmp_path)
    assert loaded.config == table.config
    assert torch.equal(loaded.bands, bands)


def test_a_runs_settings_of_an_older_version() -> None:
    model = {"num_heads": 3, "head_dim": 8, "routing": "learned", "frequency": FREQUENCY}
    with pytest.warns(FutureWarning, match="routing 'learned' is 'hard'"):
        config = TrainConfig.from_dict({"output": "out", "model": model})
    assert config.model["frequency"]["routing"] == "hard"
    made = FreqFormerTransformer3DModel(**config.model)
    assert made.frequency_config.summary_tokens == 256
    assert TrainConfig.from_dict(config.to_dict()) == config
    with pytest.warns(FutureWarning), pytest.raises(ValueError, match="cross_attention_dim=32"):
        TrainConfig.from_dict({"output": "out", "model": {"text_dim": 32}})
