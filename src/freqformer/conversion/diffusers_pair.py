"""A transformer of diffusers that teaches itself: its own attention, and windows with a LOW branch
over the same weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from freqformer.conversion.pairs import Ask, Learn
from freqformer.distributed.weights import shard_weights
from freqformer.grid import Grid
from freqformer.integrations.diffusers.building import make_session
from freqformer.integrations.diffusers.calls import Call
from freqformer.integrations.diffusers.converted.adapter import KIND, Adapter, AdapterSettings
from freqformer.integrations.diffusers.converted.learned import LearnedLayers
from freqformer.integrations.diffusers.converted.windows import (
    WindowBands,
    window_config,
)
from freqformer.integrations.diffusers.families import blocks_of, family_of
from freqformer.integrations.diffusers.ulysses import class_name
from freqformer.integrations.diffusers.velocity import VelocityModel
from freqformer.routing.origin import origin_of


class DiffusersPair:
    """See `Pair`. The transformer's weights stay as they are, and so does its state dict.

    Args:
        transformer: of a known kind, with its own processors, where it is to run.
        settings: of the adapter that is made.
        model: that is asked, `VelocityModel` or the transformer itself.
    """

    def __init__(
        self, transformer: nn.Module, settings: AdapterSettings, model: nn.Module | None = None
    ) -> None:
        self._transformer: Any = transformer.requires_grad_(False).eval()
        self._model = transformer if model is None else model
        self._settings = settings
        self._layers: dict[str, Any] = dict(family_of(transformer).layers(transformer))
        self.trained = LearnedLayers(self._layers, settings.change, settings.rank)
        self._bands = {
            name: WindowBands(settings.windows, layer.heads) for name, layer in self._layers.items()
        }
        self._session = make_session(transformer, self._bands, learned=self.trained)
        self.trained.to(next(transformer.parameters()).device)
        self.layer_count = len(self._layers)
        self._kind = class_name(transformer)
        # Read now: ranks that share the weights have none that is whole.
        self._origin = origin_of(list(self._layers.values()))
        self._call: Call | None = None
        """Of the dense model's forward pass in progress."""
        self._comparing = False

    def share_teacher(self, mesh: DeviceMesh) -> None:
        """Let ranks share the transformer's weights by FSDP2, which is on the CPU or their device;
        what learns stays whole on each, and goes to their device.

        Args:
            mesh: from `make_mesh`.
        """
        blocks = {type(block).__name__ for block in blocks_of(self._transformer)}
        shard_weights(self._transformer, mesh, blocks=blocks)
        # The model's output is one, and losses change it in no place.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
        self.trained.to(next(self._transformer.parameters()).device)

    def computing(self) -> AbstractContextManager[Any]:
        """The transformer computes in its own dtype."""
        return nullcontext()

    def set_density(self, density: float) -> None:
        """See `Pair`."""
        for bands in self._bands.values():
            bands.settings = replace(self._settings.windows, density=density)

    @torch.no_grad()
    def teacher(self, ask: Ask) -> Tensor:
        """See `Pair`."""
        return ask(self._model)

    def student(self, ask: Ask) -> Tensor:
        """See `Pair`."""
        self._session.start(self._transformer)
        try:
            return ask(self._model)
        finally:
            self._session.stop()

    @torch.no_grad()
    def align(self, ask: Ask, learn: Learn) -> None:
        """See `Pair`."""
        hooks = [self._transformer.register_forward_pre_hook(self._note, with_kwargs=True)]
        for name, layer in self._layers.items():
            compare: Callable[..., None] = partial(self._compare, name, learn)
            hooks.append(layer.register_forward_hook(compare, with_kwargs=True))
        try:
            ask(self._model)
        finally:
            self._call = None
            for hook in hooks:
                hook.remove()

    def num_tokens(self, shape: Sequence[int]) -> int:
        """See `Pair`."""
        return self._grid(shape).num_tokens

    def check_sizes(self, sizes: Sequence[Sequence[int]]) -> None:
        """See `Pair`."""
        for size in sizes:
            window_config(self._grid(size), self._settings.windows)

    def check_clips(self, channels: int, text_channels: int | None) -> None:
        """See `Pair`."""
        if not isinstance(self._model, VelocityModel):
            return
        family = self._model.family
        takes = (family.latent_channels(self._transformer), family.text_channels(self._transformer))
        if (channels, text_channels) != takes:
            raise ValueError(
                f"the cache has latents of {channels} channels and texts of {text_channels}; this "
                f"{class_name(self._transformer)} takes {takes[0]} and {takes[1]}: make the cache "
                "with the VAE and the text encoder of its pipeline"
            )

    def adapter(self, history: Mapping[str, Any] | None = None) -> Adapter:
        """What is learned so far."""
        return Adapter.of(
            self._kind, self._layers, self.trained, self._settings, history, self._origin
        )

    def save(self, output: Path, history: Mapping[str, Any]) -> Path:
        """See `Pair`; the result is an adapter."""
        target = output / KIND
        self.adapter(history).save(target)
        return target

    def _grid(self, shape: Sequence[int]) -> Grid:
        """Of clips of this shape."""
        config = self._transformer.config
        patch = config.patch_size
        if isinstance(patch, int):
            patch = (getattr(config, "patch_size_t", 1), patch, patch)
        frames, height, width = (side // step for side, step in zip(shape[-3:], patch, strict=True))
        return Grid(frames, height, width)

    def _note(self, transformer: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        self._call = self._session.call_of(transformer, args, kwargs)

    def _compare(
        self, name: str, learn: Learn, layer: Any, args: tuple, kwargs: dict[str, Any], output: Any
    ) -> None:
        """After a layer of the dense model: the converted one on the same input."""
        if self._comparing or self._call is None:
            return
        with self._as_student(), torch.enable_grad():
            with self._session.only(name, self._call):
                found = layer(*args, **kwargs)
            learn(name, found, output)

    @contextmanager
    def _as_student(self) -> Iterator[None]:
        self._comparing = True
        try:
            yield
        finally:
            self._comparing = False
