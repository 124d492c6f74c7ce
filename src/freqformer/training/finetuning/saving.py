"""What a run on a pipeline leaves: additions that diffusers loads, or a whole transformer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from freqformer._files import write_json, writing_folder
from freqformer._optional import needs
from freqformer.generation.lora import RECORD
from freqformer.training.averaged import gathered_average
from freqformer.training.config import TrainConfig
from freqformer.training.finetuning.folder import PipelineFolder
from freqformer.training.finetuning.lora import lora_state
from freqformer.training.report import CheckpointError

LORA_FOLDER = "lora"
"""In a run's folder: pytorch_lora_weights.safetensors, for `pipe.load_lora_weights`."""


def save_finetuned(config: TrainConfig, model: Any, ema: Any, *, main: bool = True) -> Path:
    """Write the averaged weights of a run, whole or not at all. All processes of the run call it.

    Args:
        config: of the run.
        model: a `FineTuned`.
        ema: the average of its trained weights.
        main: whether this is the process that writes.

    Returns: the folder: `lora/`, or one named as the transformer in its pipeline.

    Raises:
        CheckpointError: where it can't be written, or the folder holds anything else.
    """
    settings = config.pipeline
    target = finetuned_folder(config)
    averaged = {
        name.removeprefix("transformer."): weight
        for name, weight in gathered_average(model.weights, ema, keep=main).items()
    }
    if not main:
        return target
    with writing_folder(target, kind="fine-tuned", error=CheckpointError) as folder:
        if settings.weights == "full":
            _transformer_of(model.transformer, averaged).save_pretrained(str(folder))
            return target
        state, told = lora_state(model.transformer, averaged)
        kind = PipelineFolder(Path(str(settings.folder))).kind()
        if not hasattr(kind, "save_lora_weights"):
            kind = _writer()
        kind.save_lora_weights(
            str(folder),
            transformer_lora_layers=state,
            transformer_lora_adapter_metadata=told,
        )
        write_json(folder / RECORD, {"part": settings.part})
    return target


def _transformer_of(transformer: Any, weights: dict[str, Tensor]) -> Any:
    """A transformer of the same settings with these parameters, which are not copied."""
    with torch.device("meta"):
        made = type(transformer).from_config(transformer.config)
    parameters = dict(made.named_parameters())
    buffers = {name: x for name, x in transformer.state_dict().items() if name not in parameters}
    made.load_state_dict({**buffers, **weights}, assign=True)
    return made


def _writer() -> Any:
    """What writes the layout for a pipeline that has no writer of its own: it is the same."""
    with needs("model"):
        from diffusers.loaders.lora_pipeline import HunyuanVideoLoraLoaderMixin

    return HunyuanVideoLoraLoaderMixin


def finetuned_folder(config: TrainConfig) -> Path:
    """Where a run's weights are written."""
    name = LORA_FOLDER if config.pipeline.weights == "lora" else config.pipeline.part
    return Path(config.output) / name
