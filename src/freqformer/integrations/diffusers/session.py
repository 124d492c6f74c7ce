"""Frequency attention while it is on: what is changed in a transformer, and what each call notes.

The state lives in the transformer's own hooks and processors, so a copy or a pickle of an enabled
model is enabled too, and shares nothing with the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from freqformer.attention.record import CallRecord
from freqformer.integrations.diffusers.calls import Call, CurrentCall, VideoTokens
from freqformer.integrations.diffusers.processor import Family, FrequencyProcessor
from freqformer.integrations.diffusers.steps import SamplerSteps
from freqformer.integrations.diffusers.ulysses import own_tables, ulysses_of


@dataclass
class Replaced:
    """One attention layer, and the two processors that it can have."""

    layer: Any
    own: Any
    banded: FrequencyProcessor


class Session:
    """Frequency attention in one transformer.

    Args:
        family: how the transformer is read.
        names: of the arguments of its forward, in order.
        current: where calls are noted for its processors.
        replaced: by name of the attention layer.
        num_layers: attention layers of the transformer, replaced or not.
        steps: which of the sampler's steps are banded.
        min_tokens: video tokens below which a call is the model's own.
    """

    def __init__(
        self,
        family: Family,
        names: tuple[str, ...],
        current: CurrentCall,
        replaced: dict[str, Replaced],
        *,
        num_layers: int,
        steps: SamplerSteps,
        min_tokens: int,
    ) -> None:
        self.family = family
        self.names = names
        self.current = current
        self.replaced = replaced
        self.num_layers = num_layers
        self.steps = steps
        self.min_tokens = min_tokens
        self.known: Tensor | None = None
        """Timesteps of the calls that come, on the host; None reads them from each call."""
        self.hooks: list[RemovableHandle] = []
        self._checkpointing: Callable[..., Any] | None = None

    def banded_steps(self) -> tuple[int, int]:
        """How many of the sampler's steps are banded, and how many there are; without a guard all
        of one."""
        return (1, 1) if self.steps.all_steps else self.steps.shares()

    def start(self, transformer: nn.Module) -> None:
        """Give the layers their processors, and watch the transformer's calls."""
        for entry in self.replaced.values():
            entry.layer.set_processor(entry.banded)
        if self.replaced:
            before = transformer.register_forward_pre_hook(self.before, with_kwargs=True)
            # Also where the forward pass fails, so that nothing is taken for a part of it later.
            after = transformer.register_forward_hook(self.after, always_call=True)
            tables = [
                transformer.get_submodule(name).register_forward_hook(self.split_tables)
                for name in self.family.video_tables
            ]
            self.hooks = [before, after, *tables]

    def stop(self) -> None:
        """Give the layers their own processors back; once more does nothing."""
        for hook in self.hooks:
            hook.remove()
        if self.hooks:
            for entry in self.replaced.values():
                entry.layer.set_processor(entry.own)
        self.hooks = []

    def before(
        self, transformer: Any, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]] | None:
        """Before the transformer runs: note the grid and the timesteps of this call. Where ranks
        share it, masks that hide no text are left out."""
        for name, entry in self.replaced.items():
            found = entry.layer.processor
            if found is not entry.banded:
                raise ValueError(
                    f"{name} was given a {type(found).__name__} after frequency attention; none is "
                    "allowed: call remove() on its handle, change the model, and enable it again"
                )
        # Refuses what bands can't do.
        self.current.ranks = ulysses_of(getattr(transformer, "_parallel_config", None))
        call = self.call_of(transformer, args, kwargs)
        if call is None:
            return None
        device = self._given(args, kwargs)["hidden_states"].device
        self._begin(call, device)
        if getattr(transformer, "gradient_checkpointing", False) and self._checkpointing is None:
            own: Callable[..., Any] = transformer._gradient_checkpointing_func
            self._checkpointing = own
            transformer._gradient_checkpointing_func = partial(
                self._checkpointed, own, call, device
            )
        if self.current.ranks is None or not self.family.text_masks:
            return None
        given = self._given(args, kwargs)
        return (), given | {name: _hiding(given.get(name)) for name in self.family.text_masks}

    def split_tables(self, _: Any, args: tuple[Tensor, ...], tables: tuple[Tensor, ...]) -> Any:
        """After rotary tables were made: this rank's tokens of them, where ranks share these."""
        (coordinates, *_rest) = args
        if self.current.ranks is None:
            return tables
        return own_tables(tables, coordinates.shape[2], self.current.ranks)

    def call_of(self, transformer: Any, args: tuple, kwargs: dict[str, Any]) -> Call | None:
        """What layers need to know of a call of the transformer.

        Args:
            transformer: that is called.
            args, kwargs: its arguments.

        Returns: None where the call lacks some, of which the transformer itself says what.
        """
        given = self._given(args, kwargs)
        if given.get("hidden_states") is None or given.get("timestep") is None:
            return None
        return self._call(transformer, given)

    @contextmanager
    def only(self, name: str, call: Call) -> Iterator[None]:
        """One layer banded, as in this call, while all else is the model's own.

        Args:
            name: of the layer.
            call: of `call_of`.
        """
        entry = self.replaced[name]
        device = _device(entry.layer, self.current.device)
        entry.banded.prepare(call, device)
        entry.layer.set_processor(entry.banded)
        try:
            yield
        finally:
            entry.layer.set_processor(entry.own)
            entry.banded.prepare(None, device)

    def _given(self, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a call by name."""
        return dict(zip(self.names, args, strict=False)) | kwargs

    def _call(self, transformer: Any, given: dict[str, Any]) -> Call:
        """What layers need to know of a call with these arguments."""
        samples = len(given["hidden_states"])
        timesteps = self.family.timesteps(given) if self.known is None else self.known
        level = noise_levels(timesteps, self.family.noise_level(timesteps), samples)
        video = self.family.video(transformer, given)
        if video.grid.num_tokens < self.min_tokens:
            return Call(video, level, (True,) * samples)
        dtype = getattr(given["timestep"], "dtype", None)
        dense = self.steps.dense(timesteps.expand(samples), dtype, self.family.schedule)
        return Call(video, level, tuple(dense))

    def _begin(self, call: Call | None, device: torch.device) -> None:
        """Tell every layer of a call, or that there is none."""
        self.current.call = call
        self.current.device = device
        by_record = call is not None and not all(call.dense) and self._varies(call.video)
        banded = [
            entry.banded.prepare(call, _device(entry.layer, device), by_record=by_record)
            for entry in self.replaced.values()
        ]
        if call is not None and any(banded):
            self.current.banded = (call.video.grid, call.video.exact)
        if call is not None:
            levels = zip(call.noise_level.tolist(), call.dense, strict=True)
            self.current.levels |= {round(level, 6) for level, dense in levels if not dense}

    def _varies(self, video: VideoTokens) -> bool:
        """Whether layers or steps do different things on these tokens."""
        found: set[CallRecord] = set()
        for entry in self.replaced.values():
            found |= entry.banded.bands.records(video.grid, video.exact)
            if len(found) > 1:
                return True
        return False

    def after(self, transformer: Any, _args: Any, _output: Any) -> None:
        """After the transformer ran, well or not."""
        self._begin(None, self.current.device)
        if self._checkpointing is not None:
            transformer._gradient_checkpointing_func = self._checkpointing
            self._checkpointing = None

    def _checkpointed(
        self,
        checkpointing: Callable[..., Any],
        call: Call,
        device: torch.device,
        block: Callable[..., Any],
        *args: Any,
    ) -> Any:
        """Checkpointing of a block that, when the backward computes it again, is in the same call.

        Other calls may have come in between, and frequency attention may be off by then.
        """
        return checkpointing(partial(self._again, call, device, block), *args)

    def _again(
        self, call: Call, device: torch.device, block: Callable[..., Any], *args: Any
    ) -> Any:
        if self.current.call is call:
            return block(*args)
        with self._during(call, device):
            return block(*args)

    @contextmanager
    def _during(self, call: Call, device: torch.device) -> Iterator[None]:
        noted = self.current.call
        noted_device = self.current.device
        others = [
            (entry, entry.layer.processor)
            for entry in self.replaced.values()
            if entry.layer.processor is not entry.banded
        ]
        self._begin(call, device)
        for entry, _ in others:
            entry.layer.set_processor(entry.banded)
        try:
            yield
        finally:
            self._begin(noted, noted_device)
            for entry, processor in others:
                entry.layer.set_processor(processor)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_checkpointing": None}


def _hiding(mask: Tensor | None) -> Tensor | None:
    """A mask of text (B, L) that hides some; None for others. Reads it on the host."""
    hides_none = mask is not None and mask.ndim == 2 and bool((mask == 1).all())
    return None if hides_none else mask


def _device(layer: Any, otherwise: torch.device) -> torch.device:
    """Where a layer's weights are; while they wait elsewhere, that of the call's tensors."""
    device = next(layer.parameters()).device
    return otherwise if device.type == "meta" else device


def session_of(transformer: nn.Module) -> Session | None:
    """The session of an enabled transformer, None where it isn't enabled."""
    owners = (getattr(hook, "__self__", None) for hook in transformer._forward_pre_hooks.values())
    return next((owner for owner in owners if isinstance(owner, Session)), None)


def noise_levels(timestep: Tensor, level: Tensor, samples: int) -> Tensor:
    """Noise levels of a call's samples, checked: (B,) or (1,) on the host -> (B,).

    Args:
        timestep: as the model was given them, for the message.
        level: what they are as noise levels.
        samples: B.

    Raises:
        ValueError: for levels outside [0, 1], or a number of them that doesn't fit the batch.
    """
    if len(level) not in (1, samples) or not bool(((level >= 0) & (level <= 1)).all()):
        raise ValueError(
            f"timestep is {timestep.tolist()[:4]} for {samples} samples; one number or one a "
            "sample, from 0 (clean) to 1000 (noise), is allowed, or as this model's scheduler in "
            "diffusers gives them"
        )
    return level.expand(samples)
