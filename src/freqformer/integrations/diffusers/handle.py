"""What `enable_frequency_attention` gives back: what changed, what it costs, and the way back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from freqformer.integrations.diffusers.session import Session


class FrequencyAttentionHandle:
    """What `enable_frequency_attention` changed; `remove` undoes it. Usable as a context manager.

    Args:
        transformers: the enabled models, by their names in the pipeline; "" is one that was passed
            itself.
        sessions: the state that lives in each of them, by the same names.
    """

    def __init__(self, transformers: dict[str, nn.Module], sessions: dict[str, Session]) -> None:
        self.transformers = transformers
        self._sessions = sessions

    @property
    def transformer(self) -> nn.Module:
        """The enabled model; of a pipeline with several the first."""
        return next(iter(self.transformers.values()))

    @property
    def layer_names(self) -> list[str]:
        """The attention layers that have another processor, of a pipeline behind the names of its
        parts; none after `remove`."""
        return [
            f"{part}.{name}" if part else name
            for part, session in self._sessions.items()
            if session.hooks
            for name in session.replaced
        ]

    @property
    def density(self) -> float | None:
        """Attention FLOPs of the banded layers in a banded step over those of dense attention, by
        the plans of the last grid that was banded, the mean over the noise levels so far; None
        before the first such step."""
        total = 0.0
        counted = 0
        for session in self._sessions.values():
            if session.current.banded is None:
                continue
            # A transformer counts by its steps: two experts share those of a run unevenly.
            levels = sorted(session.current.levels)
            for entry in session.replaced.values():
                bands = entry.banded.bands
                total += len(levels) * bands.density(*session.current.banded, levels)
                counted += len(levels)
        return total / counted if counted else None

    @property
    def total_density(self) -> float | None:
        """The same over all layers and all of the sampler's steps, dense ones included; None before
        the first banded step."""
        density = self.density
        if density is None:
            return None
        session = next(iter(self._sessions.values()))
        inside, steps = session.banded_steps()
        layers = sum(session.num_layers for session in self._sessions.values())
        banded = sum(len(session.replaced) for session in self._sessions.values())
        return 1 - (1 - density) * (inside / steps) * (banded / layers)

    def describe(self) -> str:
        """One line: what is banded, and the share of dense attention's FLOPs that it takes."""
        density = self.density
        total = self.total_density
        if density is None or total is None:
            return "no banded step yet: its density is known after the first one"
        session = next(iter(self._sessions.values()))
        inside, steps = session.banded_steps()
        share = "all" if session.steps.all_steps else f"{inside} of {steps}"
        layers = sum(session.num_layers for session in self._sessions.values())
        banded = sum(len(session.replaced) for session in self._sessions.values())
        return (
            f"{density:.1%} of dense attention's FLOPs in {banded} of {layers} layers and {share} "
            f"steps, {total:.1%} in all"
        )

    @contextmanager
    def knowing_timesteps(self, timesteps: Tensor) -> Iterator[None]:
        """Around calls of the model whose timesteps the caller has on the host too, so that they
        need not be read back from the device, for which the host would wait.

        Args:
            timesteps: of every sample, (B,) on the host, in the scheduler's unit.
        """
        for session in self._sessions.values():
            session.known = timesteps.double()
        try:
            yield
        finally:
            for session in self._sessions.values():
                session.known = None

    def remove(self) -> None:
        """Give every layer its own processor back; once more does nothing."""
        for session in self._sessions.values():
            session.stop()

    def __enter__(self) -> FrequencyAttentionHandle:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()
