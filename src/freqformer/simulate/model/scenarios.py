"""A scenario: a model, a machine, a video, and what the model's attention layers do.

    from freqformer.simulate import scenario, simulate
    result = simulate(scenario("wan2.1-14b", "h200", 262_144))
    print(result.layer.speedup, result.generation.seconds)

Without more it is of the library's default attention; `preset="paper"` names the source's method.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from freqformer._renamed import renamed_arguments, renamed_fields
from freqformer.config import LAYER_FIELDS, FreqFormerConfig
from freqformer.grid import Grid
from freqformer.simulate.model.allocations import RouterInputs, Routing
from freqformer.simulate.model.efficiency import load_efficiency
from freqformer.simulate.model.hardware import load_hardware
from freqformer.simulate.model.lengths import parse_length
from freqformer.simulate.model.presets import PRESETS, Attention, Preset, preset_named
from freqformer.simulate.model.profiles import ProfileError, known_profiles
from freqformer.simulate.model.roofline import Machine
from freqformer.simulate.model.transformers import ModelShape, load_model
from freqformer.training_free.dials import Dials


@renamed_fields(low_beside="low_branch")
@dataclass(frozen=True)
class Scenario:
    """What is simulated.

    Raises:
        ProfileError: for settings that contradict one another, or that dense attention can't
            follow.
    """

    model: ModelShape
    machine: Machine
    grid: Grid
    config: FreqFormerConfig = PRESETS["default"].config
    routing: Routing = field(default_factory=Routing)
    fps: float | None = None
    """Frames per second of the video; None: the model's own."""
    learned_summaries: bool = True
    """Whether mid and high summaries take part where there are summaries, as in trained models;
    training-free use has low ones alone."""
    low_branch: bool | None = None
    """Whether every head adds a gated LOW branch to its own; None: where a router weighs the
    two."""
    attention: Attention = "frequency"
    """As in `FreqAttention`. `dense` is exact attention, until `routing` has a table: its bands are
    then run as a dense layer runs them, with low summaries alone."""
    dials: Dials | None = None
    """Of `enable_frequency_attention`, which then say which steps and layers of a dense model are
    banded, and how densely."""
    preset: str = "default"
    """The name of what it was made from; `changes` says what has been changed since."""
    requested: str = ""
    """The length as it was asked for."""

    def __post_init__(self) -> None:
        preset_named(self.preset)
        if self.routing.weighs and self.low_branch is False:
            raise ProfileError(
                f"low_branch is false with routing {self.routing.kind!r}, which weighs each head's "
                "band and LOW; leave it "
                "out, or take routing=fixed"
            )
        if self.dials is not None and (self.attention != "dense" or self.routing.table is not None):
            raise ProfileError(
                "dials are given with bands of another kind; they are of dense models without a "
                "table: leave them out, or take preset training-free"
            )
        if self.attention == "dense":
            given = (
                self.routing.kind != "fixed",
                self.routing.split is not None,
                bool(self.low_branch),
            )
            for name, wrong in zip(("routing", "split", "low_branch"), given, strict=True):
                if wrong:
                    raise ProfileError(
                        f"{name} is set, and dense attention has no bands to act on: leave it out, "
                        "or take another preset"
                    )

    @property
    def tokens(self) -> int:
        """Video tokens."""
        return self.grid.num_tokens

    @property
    def seconds_of_video(self) -> float:
        """Seconds of the video."""
        return self.model.seconds(self.grid, self.fps)

    @property
    def initial(self) -> list[int]:
        """The band that every head starts with, where no table says."""
        return self.routing.initial(self.model.heads, self.config)

    @property
    def runs_dense(self) -> bool:
        """Whether every head runs exact attention, and nothing of the banded path runs."""
        return self.attention == "dense" and self.routing.table is None and self.dials is None

    @property
    def has_low_branch(self) -> bool:
        """Whether every head adds a gated LOW branch to its own."""
        return self.routing.weighs if self.low_branch is None else self.low_branch

    @property
    def pools_summaries(self) -> bool:
        """Whether mid and high summaries take part where there are summaries: a dense model has
        learned none."""
        return self.learned_summaries and self.attention == "frequency"

    @property
    def router(self) -> RouterInputs | None:
        """What the router that runs in every layer reads; None where none runs."""
        return self.routing.running

    @property
    def changes(self) -> list[str]:
        """Names of settings that are not those of the preset."""
        made = PRESETS[self.preset]
        own = [f.name for f in fields(FreqFormerConfig) if f.name not in LAYER_FIELDS]
        changed = [name for name in own if getattr(made.config, name) != getattr(self.config, name)]
        if self.dials is not None and made.dials is not None:
            before, now = asdict(made.dials), asdict(self.dials)
            changed += [name for name in now if now[name] != before[name]]
        changed += [
            {"kind": "routing"}.get(part.name, part.name)
            for part in fields(Routing)
            if getattr(made.routing, part.name) != getattr(self.routing, part.name)
        ]
        if not self.learned_summaries:
            changed.append("learned_summaries")
        if self.has_low_branch != made.routing.weighs:
            changed.append("low_branch")
        return changed


@renamed_arguments(calibration="efficiency")
def scenario(
    model: str | Path,
    hardware: str | Path,
    length: int | str,
    *,
    preset: str = "default",
    config: FreqFormerConfig | None = None,
    routing: Routing | None = None,
    head_dim: int | None = None,
    efficiency: str | Path | None = None,
) -> Scenario:
    """A scenario from names.

    Args:
        model: a known model's name, or the path of its JSON file.
        hardware: a known machine's name, or the path of its JSON file.
        length: video tokens, taken to the nearest whole number of frames at the model's resolution;
            or a text, see `parse_length`.
        preset: `default`, `paper`, `dense` or `training-free`: what the layers do where nothing
            else is said.
        config: bands, patterns and summaries; None for the preset's, or those of the routing's
            table.
        routing: who gives heads to bands; None for the preset's.
        head_dim: cut the model's width into heads of this size.
        efficiency: a known machine's name, or a JSON file; None takes the machine's own.

    Raises:
        ProfileError: for anything unknown, missing or out of range, naming it.
    """
    shape, machine, named = load_model(model), load_hardware(hardware), preset_named(preset)
    if head_dim is not None:
        shape = shape.with_head_dim(head_dim)
    grid, fps = parse_length(shape, length)
    achieved = load_efficiency(machine if efficiency is None else efficiency)
    if efficiency in known_profiles("efficiency") and efficiency != machine.name:
        achieved = replace(achieved, transferred=True)
    routing = named.routing if routing is None else routing
    return Scenario(
        model=shape,
        machine=Machine(machine, achieved),
        grid=grid,
        config=_base_config(named, routing) if config is None else config,
        routing=routing,
        fps=fps,
        attention=named.attention,
        # A table says itself what is banded.
        dials=None if routing.table is not None else named.dials,
        preset=named.name,
        requested=str(length),
    )


def _base_config(preset: Preset, routing: Routing) -> FreqFormerConfig:
    """The bands' meaning before anything is set: a table brings its own."""
    return preset.config if routing.table is None else routing.table.config
