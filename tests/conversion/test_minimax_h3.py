"""MiniMax-H3 learns from a cache: it is asked about a clip, its sound and their noise as training
asks it, and what comes out goes on its own pipeline."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.tiny_conversions import tiny_conversion
from tests.support.tiny_finetuning import lora_config
from tests.support.tiny_minimax import load_minimax, make_minimax
from torch import Tensor

from freqformer.conversion import ConvertConfig, convert
from freqformer.conversion.config import StagesConfig
from freqformer.conversion.loading import clip_feed, load_pair, run_source
from freqformer.integrations.diffusers import enable_frequency_attention
from freqformer.integrations.diffusers.converted.windows import WindowSettings
from freqformer.training.config import DataConfig
from freqformer.training.finetuning.model import finetuned_model
from freqformer.training.objective import batch_loss
from freqformer.training.report import StepReport
from freqformer.training.sources import loader_of

pytestmark = pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
CPU = torch.device("cpu")
SHIFT = 5.0
"""Of the sampler of sound, which is not the usual one."""


@pytest.fixture(scope="module")
def minimax(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `pipe`, `videos` and `cache`; not to be changed."""
    return make_minimax(tmp_path_factory.mktemp("minimax"))


def config_of(minimax: Path, output: Path) -> ConvertConfig:
    return replace(
        tiny_conversion(minimax, output=str(output)),
        pipeline=str(minimax / "pipe"),
        data=DataConfig(cache=str(minimax / "cache"), caption_dropout=0.0),
        stages=StagesConfig(1, 1, 1),
        windows=WindowSettings(0.9, (2, 4, 4), 64),
    )


def calls_of(transformer: Any) -> list[dict[str, Tensor]]:
    """The arguments of its calls from here on."""
    calls: list[dict[str, Tensor]] = []

    def note(_module: Any, _given: Any, named: dict[str, Any]) -> None:
        calls.append({name: x for name, x in named.items() if isinstance(x, Tensor)})

    transformer.register_forward_pre_hook(note, with_kwargs=True)
    return calls


def test_it_is_asked_as_in_training(minimax: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(minimax, tmp_path / "copied"))
    for name, shift in (("scheduler", 12.0), ("audio_scheduler", SHIFT)):
        (folder / "pipe" / name).mkdir(exist_ok=True)
        path = folder / "pipe" / name / "scheduler_config.json"
        path.write_text(json.dumps({"shift": shift}), encoding="utf-8")
    config = config_of(folder, tmp_path / "out")
    source = run_source(config, None)
    pair: Any = load_pair(config, CPU, source)
    asked = calls_of(pair._transformer)
    with clip_feed(config, source, pair, CPU, config.shards()).open(0) as questions:
        (question,) = questions(0)
        pair.teacher(question.ask)
    indices = config.shards().indices(0)
    with loader_of(source, indices, CPU, seed=config.run.seed, batch_size=1, workers=1) as loader:
        batch = loader.take(1)
    training = lora_config(folder, tmp_path / "unused", density=1.0)
    model: Any = finetuned_model(training)
    trained = calls_of(model.transformer)
    level = 1 - asked[0]["timestep"][0]
    batch_loss(model, batch, level.view(1).float())
    assert len(asked) == len(trained) == 1
    assert asked[0].keys() == trained[0].keys()
    for name, x in asked[0].items():
        torch.testing.assert_close(x, trained[0][name], rtol=1e-4, atol=1e-5, msg=name)
    sound = asked[0]["audio_hidden_states"][0]
    assert not torch.equal(sound, batch.conditions["sound"][0])
    heard = 1 - asked[0]["timestep"][1]
    even = level / (12 - 11 * level)
    assert float(heard) == pytest.approx(float(SHIFT * even / (1 + (SHIFT - 1) * even)), abs=1e-5)


def test_from_a_cache_to_its_pipeline(minimax: Path, tmp_path: Path) -> None:
    reports: list[StepReport] = []
    adapter = convert(config_of(minimax, tmp_path / "out"), on_step=reports.append)
    assert [report.step for report in reports] == [1, 2, 3]
    assert all(report.gradient_norm > 0 for report in reports[1:])
    pipe = load_minimax(minimax / "pipe")
    with enable_frequency_attention(
        pipe.transformer, adapter=str(adapter), scheduler=pipe.scheduler
    ) as attention:
        assert attention.layer_names
