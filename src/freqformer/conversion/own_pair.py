"""This package's own dense model, and the FreqFormer that it is turned into.

Shape legend: B batch, N video tokens, C channels, R rank.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from freqformer._files import write_json, writing_folder
from freqformer.attention import FreqAttention
from freqformer.config import FreqFormerConfig
from freqformer.conversion.pairs import Ask, Learn
from freqformer.grid import Grid
from freqformer.integrations.diffusers.converted.adapter import AdapterSettings
from freqformer.integrations.diffusers.converted.windows import window_config
from freqformer.models.pipeline import FreqFormerPipeline
from freqformer.models.transformer import FreqFormerTransformer3DModel
from freqformer.routing import SoftRouter

PIPELINE_FOLDER = "pipeline"
HISTORY_FILE = "conversion.json"
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out")


class OwnPair:
    """See `Pair`. Weights of the dense model are copied; it stays as it is.

    Args:
        pipeline: with a transformer of dense attention.
        settings: of the windows, and how projections change.
        grid: of the usual clip's tokens, on which the density is met; other sizes have the same
            window, or as many tiles.
        half: whether to compute in bfloat16.

    Raises:
        ValueError: for a transformer that isn't dense.
    """

    def __init__(
        self,
        pipeline: FreqFormerPipeline,
        settings: AdapterSettings,
        grid: Grid,
        *,
        half: bool = False,
    ) -> None:
        self._pipeline, self._settings, self._grid, self._half = pipeline, settings, grid, half
        self._dense: Any = pipeline.transformer.requires_grad_(False).eval()
        self._model = converted_model(self._dense, self._config(settings.windows.density))
        self._model.to(self._dense.device)
        if settings.change == "lora":
            for layer in self._layers:
                add_low_rank(layer, settings.rank)
        self._model.requires_grad_(False)
        for layer in self._layers:
            self._let_learn(layer)
        self.trained = nn.ModuleList(self._layers)
        self.layer_count = len(self._layers)

    def enable_gradient_checkpointing(self) -> None:
        """Compute blocks of the converted model again in the backward."""
        self._model.enable_gradient_checkpointing()

    def computing(self) -> AbstractContextManager[Any]:
        """Autocast to bfloat16, where that was asked for."""
        kind = self._dense.device.type
        return torch.autocast(kind, torch.bfloat16, enabled=self._half)

    def set_density(self, density: float) -> None:
        """See `Pair`."""
        config = self._config(density)
        for layer in self._layers:
            if self._settings.windows.pattern == "tiles":
                layer.set_mid_tiles(config.mid_tiles, config.summary_tokens)
            else:
                layer.set_window(config.window)

    @torch.no_grad()
    def teacher(self, ask: Ask) -> Tensor:
        """See `Pair`."""
        return ask(self._dense)

    def student(self, ask: Ask) -> Tensor:
        """See `Pair`."""
        return ask(self._model)

    @torch.no_grad()
    def align(self, ask: Ask, learn: Learn) -> None:
        """See `Pair`."""

        def compare(place: int, _layer: Any, args: tuple, kwargs: Any, output: Any) -> None:
            with torch.enable_grad():
                found = self._layers[place](*args, **kwargs)
                learn(f"transformer_blocks.{place}.attn1", found, output)

        hooks = [
            layer.register_forward_hook(partial(compare, place), with_kwargs=True)
            for place, layer in enumerate(self._dense.attentions)
        ]
        try:
            ask(self._dense)
        finally:
            for hook in hooks:
                hook.remove()

    def num_tokens(self, shape: Sequence[int]) -> int:
        """See `Pair`."""
        return self._dense.grid_for(shape).num_tokens

    def check_sizes(self, sizes: Sequence[Sequence[int]]) -> None:
        """See `Pair`: what heads see is that of the usual size, and fits any."""

    def check_clips(self, channels: int, text_channels: int | None) -> None:
        """See `Pair`."""
        config = self._dense.config
        takes = (config["in_channels"], config["cross_attention_dim"])
        if (channels, text_channels) != takes:
            raise ValueError(
                f"clips have {channels} channels and texts {text_channels}; the dense model takes "
                f"{takes[0]} and {takes[1]}: give the clips, or the cache, that it was trained on"
            )

    @property
    def model(self) -> FreqFormerTransformer3DModel:
        """What is learned so far, as a model of its own."""
        whole = copy.deepcopy(self._model)
        if self._settings.change == "lora":
            for layer in whole.attentions:
                for name in PROJECTIONS:
                    parametrize.remove_parametrizations(getattr(layer, name), "weight")
        made: Any = FreqFormerTransformer3DModel.from_config(self._model.config)
        made.load_state_dict(whole.state_dict())
        return made.to(self._dense.device).eval()

    def save(self, output: Path, history: Mapping[str, Any]) -> Path:
        """See `Pair`; the result is a pipeline."""
        target = output / PIPELINE_FOLDER
        with writing_folder(target, kind="pipeline") as folder, self._converted() as pipeline:
            pipeline.save_pretrained(folder)
            write_json(folder / HISTORY_FILE, dict(history))
        return target

    @contextmanager
    def _converted(self) -> Iterator[FreqFormerPipeline]:
        """The pipeline with what is learned so far."""
        self._pipeline.register_modules(transformer=self.model)
        try:
            yield self._pipeline
        finally:
            self._pipeline.register_modules(transformer=self._dense)

    @property
    def _layers(self) -> list[Any]:
        return list(self._model.attentions)

    def _config(self, density: float) -> FreqFormerConfig:
        """The record of a density on the usual grid."""
        windows = replace(self._settings.windows, density=density)
        made = replace(window_config(self._grid, windows), routing="timestep")
        if windows.pattern == "window":
            return made
        heads = self._dense.config["num_attention_heads"]
        # As in the preset, so that there is nothing at first that dense attention didn't learn.
        bands = (windows.band.value,) * heads
        return replace(made, allocation=bands, learned_summaries=False)

    def _let_learn(self, layer: Any) -> None:
        for name, parameter in layer.named_parameters():
            own = name.startswith(("gates.", "router."))
            low_rank = name.endswith((".down", ".up"))
            parameter.requires_grad_(own or low_rank or self._settings.change == "full")


def converted_model(
    dense: FreqFormerTransformer3DModel, config: FreqFormerConfig
) -> FreqFormerTransformer3DModel:
    """A FreqFormer with the weights of a dense model, whose gates and routers are zero at first, so
    that it computes what its windows or tiles alone do.

    Args:
        dense: of `FreqFormerConfig.dense()`.
        config: of the model that is made; it weighs.

    Raises:
        ValueError: for a model that isn't dense.
    """
    if not dense.frequency_config.is_dense:
        raise ValueError(
            "pipeline has a model with attention by bands already; one of dense attention is "
            "allowed: train one with --set model.frequency.preset=dense"
        )
    settings = {**dense.config, "frequency": config.to_dict(), "layer_allocations": None}
    made: Any = FreqFormerTransformer3DModel.from_config(settings)
    own = {name: x for name, x in dense.state_dict().items() if not name.endswith(".allocation")}
    missing, unknown = made.load_state_dict(own, strict=False)
    new = (".gates.", ".router.", ".allocation")
    assert not unknown
    assert all(any(part in name for part in new) for name in missing)
    for layer in made.attentions:
        assert isinstance(layer, FreqAttention)
        assert isinstance(layer.router, SoftRouter)
        for parameter in layer.router.layers[-1].parameters():
            nn.init.zeros_(parameter)
        nn.init.zeros_(layer.router.head_bias)
    return made


class LowRankWeight(nn.Module):
    """A weight (O, I) with a product of two matrices added, zero at first.

    Args:
        outputs, inputs: O and I.
        rank: R.
    """

    def __init__(self, outputs: int, inputs: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, inputs))
        self.up = nn.Parameter(torch.zeros(outputs, rank))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self, weight: Tensor) -> Tensor:
        """(O, I) -> (O, I)."""
        return weight + (self.up @ self.down).to(weight.dtype)


def add_low_rank(layer: Any, rank: int) -> None:
    """Let a layer's projections learn a change of low rank.

    Args:
        layer: of this package.
        rank: R.
    """
    for name in PROJECTIONS:
        linear = getattr(layer, name)
        change = LowRankWeight(linear.out_features, linear.in_features, rank)
        change.to(linear.weight.device)
        parametrize.register_parametrization(linear, "weight", change)
