"""The model that a run begins with: a fresh one, one that is given, or one from a folder."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freqformer.training.config import TrainConfig
from freqformer.training.model_settings import refuse_text, whole_settings

if TYPE_CHECKING:
    from freqformer.models.transformer import FreqFormerTransformer3DModel


def starting_model(
    config: TrainConfig, given: FreqFormerTransformer3DModel | None
) -> FreqFormerTransformer3DModel:
    """The model to train: what is given, else that of `config.run.init_from`, else a fresh one.

    Raises:
        ValueError: for a model of another kind, one that takes text where there is none, two
            beginnings at once, and arguments that no model takes.
    """
    from freqformer.models.transformer import FreqFormerTransformer3DModel

    if given is not None:
        check_model(given)
        if config.data.cache is None:
            refuse_text(given.config)
        if config.run.init_from is not None:
            raise ValueError(
                f"model is given and run.init_from is {config.run.init_from!r}; one of them is "
                "allowed"
            )
        return given
    if config.run.init_from is not None:
        # Weights may be saved in half precision; training keeps them in float32.
        return FreqFormerTransformer3DModel.from_pretrained(_transformer(config)).float()
    unknown = sorted(set(config.model) - _arguments())
    if unknown:
        raise ValueError(
            f"model has unknown arguments {unknown}; allowed are {sorted(_arguments())}: remove or "
            "rename them"
        )
    return FreqFormerTransformer3DModel(**config.model)


def prepared_model(config: TrainConfig, given: FreqFormerTransformer3DModel | None) -> Any:
    """The starting model, or that of the pipeline, as the run trains it; raises as `starting_model`
    and `finetuned_model`."""
    if config.pipeline.folder is not None:
        return _prepared_transformer(config, given)
    model = starting_model(config, given)
    model.train()
    if any(layer.chooses for layer in model.attentions):
        model.set_router_training(config.routing.mode)
    if config.run.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    if config.run.compile:
        # Block by block: one compilation serves all layers; each size of clips has its own.
        model.compile_repeated_blocks(dynamic=False)
    return model


def _prepared_transformer(config: TrainConfig, given: Any) -> Any:
    from freqformer.training.finetuning.model import finetuned_model

    if given is not None:
        raise ValueError(
            f"model is given and pipeline.folder is {config.pipeline.folder!r}; one of them is"
            " allowed"
        )
    model = finetuned_model(config)
    model.train()
    transformer: Any = model.transformer
    if config.run.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    if config.run.compile:
        transformer.compile_repeated_blocks(dynamic=False)
    return model


def check_model(model: object) -> None:
    """Raise ValueError for anything but a transformer of this package, with what to give
    instead."""
    from freqformer.models.transformer import FreqFormerTransformer3DModel

    if isinstance(model, FreqFormerTransformer3DModel):
        return
    remedy = "models of other libraries get bands by the plug-in (docs/diffusers.md)"
    for name in ("transformer", "module", "_orig_mod"):
        if isinstance(getattr(model, name, None), FreqFormerTransformer3DModel):
            remedy = f"give what is in its attribute {name!r}"
    kind = type(model)
    raise ValueError(
        f"model is a {kind.__module__}.{kind.__qualname__}; a FreqFormerTransformer3DModel is "
        f"allowed: {remedy}"
    )


def with_initial_model(config: TrainConfig) -> TrainConfig:
    """The config with the model's arguments as in `config.run.init_from`; itself where that is
    None.

    Raises:
        ValueError: for a folder without a pipeline, or arguments that are not the folder's.
    """
    if config.run.init_from is None:
        return config
    path = _transformer(config) / "config.json"
    try:
        saved = whole_settings(json.loads(path.read_text(encoding="utf-8")))
        saved = {name: saved[name] for name in _arguments() & saved.keys()}
    except (OSError, ValueError, RecursionError, AttributeError, TypeError) as error:
        raise ValueError(
            f"init_from is {config.run.init_from!r}, and {path} can't be read ({error!r}); give a"
            " folder that training or save_pretrained wrote"
        ) from error
    for name, value in whole_settings(config.model).items():
        if name not in saved or value != saved[name]:
            has = f"{saved[name]!r}" if name in saved else "no such argument"
            raise ValueError(
                f"model.{name} is {value!r} and {config.run.init_from} has {has}; weights fit the"
                " model that they are of: leave it out, or train without init_from"
            )
    return replace(config, model=saved)


def _transformer(config: TrainConfig) -> Path:
    """The transformer's folder of a pipeline, or of a run."""
    folder = Path(str(config.run.init_from))
    for place in (folder, folder / "pipeline"):
        if (place / "transformer" / "config.json").is_file():
            return place / "transformer"
    what = "holds no pipeline" if folder.is_dir() else "does not exist"
    raise ValueError(
        f"init_from is {str(folder)!r}, which {what}; give the output folder of a training run that"
        " has ended, or a saved pipeline"
    )


def _arguments() -> set[str]:
    from freqformer.models.transformer import FreqFormerTransformer3DModel

    return set(inspect.signature(FreqFormerTransformer3DModel).parameters)
