"""What a run on a pipeline leaves: additions that diffusers loads, or a whole transformer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from freqformer._files import write_json, writing_folder
from freqformer._optional import needs
from freqformer.generation.lora import RECORD
from freqformer.training.averaged import averaged_weights
from freqformer.training.config import TrainConfig
from freqformer.training.finetuning.folder import PipelineFolder
from freqformer.training.finetuning.lora import lora_state
from freqformer.training.report import CheckpointError

LORA_FOLDER = "lora"
"""In a run's folder: pytorch_lora_weights.safetensors, for `pipe.load_lora_weights`."""


def save_finetuned(config: TrainConfig, model: Any, ema: Any) -> Path:
    """Write the averaged weights of a run, whole or not at all.

    Args:
        config: of the run.
        model: a `FineTuned`.
        ema: the average of its trained weights.

    Returns: the folder: `lora/`, or one named as the transformer in its pipeline.

    Raises:
        CheckpointError: where it can't be written, or the folder holds anything else.
    """
    settings = config.pipeline
    lora = settings.weights == "lora"
    target = finetuned_folder(config)
    with (
        averaged_weights(model.weights, ema),
        writing_folder(target, kind="fine-tuned", error=CheckpointError) as folder,
    ):
        if not lora:
            model.transformer.save_pretrained(str(folder))
            return target
        state, told = lora_state(model.transformer)
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


def _writer() -> Any:
    """What writes the layout for a pipeline that has no writer of its own: it is the same."""
    with needs("model"):
        from diffusers.loaders.lora_pipeline import HunyuanVideoLoraLoaderMixin

    return HunyuanVideoLoraLoaderMixin


def finetuned_folder(config: TrainConfig) -> Path:
    """Where a run's weights are written."""
    name = LORA_FOLDER if config.pipeline.weights == "lora" else config.pipeline.part
    return Path(config.output) / name
