"""What a training run does, as frozen JSON-able records that refuse bad values."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, get_args, get_type_hints

from freqformer._older import current_settings
from freqformer.config import FreqFormerConfig
from freqformer.routing import RouterTraining

Precision = Literal["fp32", "bf16"]
Device = Literal["auto", "cpu"]

_LARGE = 1e9
# Bounds far above any use, so that what is absurd is refused here and not by memory or by C's
# integers.
_MOST_FRAMES = 100_000
_MOST_SIDE = 65_536
_MOST_VALUES = 2**31 - 1
_MOST_STEPS = 10**12
_MOST_BATCH = 100_000
_MOST_WORKERS = 1024
_MOST_MIB = 2**24
_MOST_KEPT = 10**6
_MOST_SEED = 2**63 - 1
_MOST_LEVELS = 16
_CHANNELS = 3


@dataclass(frozen=True)
class DataConfig:
    """Clips to train on.

    Args:
        path: a video file or a folder of them, searched in depth; None makes synthetic clips.
        photographs: a folder of JPEG or PNG files; synthetic clips are then camera moves over them
            with balls in front.
        num_frames: frames of a clip.
        height, width: pixels of a clip; videos are resized to cover it and cropped in the middle.
        fps: frames per second of a clip; videos of another rate are sampled at it.
        workers: threads that decode in the background.
        cache_mib: memory for decoded frames at the clip's size, in MiB. Where all videos fit they
            are decoded once; where they don't, every clip is decoded when its turn comes.
    """

    path: str | None = None
    photographs: str | None = None
    num_frames: int = 16
    height: int = 48
    width: int = 80
    fps: float = 8.0
    workers: int = 2
    cache_mib: int = 256

    def __post_init__(self) -> None:
        if self.path is not None and not isinstance(self.path, str):
            raise ValueError(
                f"path is {_shown(self.path)}; a path as text, or None for synthetic clips, is "
                "allowed"
            )
        if self.photographs is not None and (
            not isinstance(self.photographs, str) or self.path is not None
        ):
            raise ValueError(
                f"photographs is {_shown(self.photographs)} and path {_shown(self.path)}; a folder "
                "as"
                " text is allowed, and path None: clips come from videos or are synthetic"
            )
        _whole("num_frames", self.num_frames, 1, _MOST_FRAMES)
        for name in ("height", "width"):
            _whole(name, getattr(self, name), 1, _MOST_SIDE)
        if _CHANNELS * self.num_frames * self.height * self.width > _MOST_VALUES:
            raise ValueError(
                f"num_frames, height and width are {self.num_frames} x {self.height} x "
                f"{self.width};"
                f" {_MOST_VALUES // _CHANNELS:,} pixels in a clip at most are allowed: make it"
                " smaller"
            )
        _whole("workers", self.workers, 1, _MOST_WORKERS)
        _whole("cache_mib", self.cache_mib, 0, _MOST_MIB)
        _number("fps", self.fps, 1e-3, 1e3)


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, its learning rate over the run, and the average of the weights.

    Args:
        learning_rate: reached after the warm-up, then lowered to 0 along half a cosine.
        warmup_steps: steps over which the learning rate grows linearly.
        weight_decay: of weight matrices; vectors (norms, biases) have none.
        betas: decay of the first and second moment.
        max_grad_norm: norm that gradients are clipped to.
        ema_decay: largest decay of the exponential moving average of the weights; it grows from 0
            as (1 + n) / (10 + n).
    """

    learning_rate: float = 1e-3
    warmup_steps: int = 50
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999

    def __post_init__(self) -> None:
        _number("learning_rate", self.learning_rate, 0, 10)
        _whole("warmup_steps", self.warmup_steps, 0, _MOST_STEPS)
        _number("weight_decay", self.weight_decay, 0, 10)
        # JSON gives lists; records compare by value.
        object.__setattr__(
            self, "betas", tuple(self.betas) if isinstance(self.betas, list) else self.betas
        )
        if not isinstance(self.betas, tuple) or len(self.betas) != 2:
            raise ValueError(
                f"betas is {_shown(self.betas)}; two numbers from 0 to below 1 are allowed, like "
                "(0.9, 0.99)"
            )
        for beta in self.betas:
            _number("betas", beta, 0, 1 - 1e-9)
        _number("max_grad_norm", self.max_grad_norm, 1e-9, _LARGE)
        _number("ema_decay", self.ema_decay, 0, 1)


@dataclass(frozen=True)
class ObjectiveConfig:
    """How noise levels are drawn.

    Args:
        shift: pushes timesteps towards noise, 1 leaves them; None takes `resolution_shift` of the
            clip's tokens.
        logit_mean, logit_std: of the normal distribution of the timestep's logit.
        stratified: whether a batch takes one timestep from each of its equally likely parts; lowers
            the loss's variance.
    """

    shift: float | None = None
    logit_mean: float = 0.0
    logit_std: float = 1.0
    stratified: bool = True

    def __post_init__(self) -> None:
        if self.shift is not None:
            _number("shift", self.shift, 0.01, 100)
        _number("logit_mean", self.logit_mean, -10, 10)
        _number("logit_std", self.logit_std, 0, 10)
        _flag("stratified", self.stratified)


@dataclass(frozen=True)
class RoutingConfig:
    """How routers that choose bands train; ignored by a model without any, soft routing included.

    Args:
        mode: `sampled` computes one other band per head beside the chosen one, `all` both, `off`
            leaves routers as they are.
        budget: attention cost relative to dense that the routers are held to; None takes the cost
            of an even split.
        budget_weight: of the squared excess over the budget.
        entropy_weight: of the entropy that keeps the choice open; it falls linearly to 0 over the
            run.
    """

    mode: RouterTraining = "sampled"
    budget: float | None = None
    budget_weight: float = 1.0
    entropy_weight: float = 0.01

    def __post_init__(self) -> None:
        _choice("mode", self.mode, get_args(RouterTraining))
        if self.budget is not None:
            _number("budget", self.budget, 1e-6, 1)
        _number("budget_weight", self.budget_weight, 0, _LARGE)
        _number("entropy_weight", self.entropy_weight, -10, 10)


@dataclass(frozen=True)
class RunConfig:
    """How long and on what a run trains.

    Args:
        max_steps: optimizer steps.
        max_seconds: seconds of training after which the run ends though steps are left, pauses
            between resumed parts not counted; the learning rate then follows the clock and the run
            is not repeatable bit for bit.
        part_seconds: seconds after which this part of the run, building the model included, ends
            with a checkpoint; the same call goes on from there. The learning rate is that of the
            whole run.
        batch_size: clips per process and forward pass.
        accumulation: forward passes per optimizer step.
        precision: `bf16` computes in bfloat16 by autocast and keeps weights in float32.
        gradient_checkpointing: whether blocks are computed again in the backward instead of being
            kept: less memory, more time, the same bits.
        compile: whether blocks are compiled by torch.compile, which takes a while at the first
            step.
        seed: of weights, data order, noise and all else.
        device: `auto` takes a GPU where there is one.
        progress: whether to draw a progress bar.
        init_from: folder of a pipeline, or of a run, whose weights the run begins with; `model` may
            then be left out, and what it names must be as in that folder.
    """

    max_steps: int = 1000
    max_seconds: float | None = None
    part_seconds: float | None = None
    batch_size: int = 4
    accumulation: int = 1
    precision: Precision = "fp32"
    gradient_checkpointing: bool = False
    compile: bool = False
    seed: int = 0
    device: Device = "auto"
    progress: bool = True
    init_from: str | None = None

    def __post_init__(self) -> None:
        _whole("max_steps", self.max_steps, 1, _MOST_STEPS)
        for name in ("batch_size", "accumulation"):
            _whole(name, getattr(self, name), 1, _MOST_BATCH)
        for name in ("max_seconds", "part_seconds"):
            if getattr(self, name) is not None:
                _number(name, getattr(self, name), 1e-3, _LARGE)
        _choice("precision", self.precision, get_args(Precision))
        _flag("gradient_checkpointing", self.gradient_checkpointing)
        _flag("compile", self.compile)
        _whole("seed", self.seed, 0, _MOST_SEED)
        _choice("device", self.device, get_args(Device))
        _flag("progress", self.progress)
        if self.init_from is not None and not (isinstance(self.init_from, str) and self.init_from):
            raise ValueError(
                f"init_from is {_shown(self.init_from)}; the path of a folder, as text, or None is "
                "allowed"
            )


@dataclass(frozen=True)
class CheckpointConfig:
    """When a run saves itself.

    Args:
        every_steps: steps between checkpoints; the last step always makes one.
        keep: newest checkpoints that stay on disk.
        resume: whether to go on from the newest checkpoint in the output folder; without it a
            folder that holds one is refused.
        accept_changes: whether a resumed run may go on with other settings of the optimizer, the
            objective, the routers or the precision than it began with. What changes is logged.
    """

    every_steps: int = 500
    keep: int = 2
    resume: bool = True
    accept_changes: bool = False

    def __post_init__(self) -> None:
        _whole("every_steps", self.every_steps, 1, _MOST_STEPS)
        _whole("keep", self.keep, 1, _MOST_KEPT)
        _flag("resume", self.resume)
        _flag("accept_changes", self.accept_changes)


@dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Args:
        output: folder for checkpoints, logs and the trained pipeline.
        model: constructor arguments of `FreqFormerTransformer3DModel`.
        data, optimizer, objective, routing, run, checkpoint: see their classes.

    Raises:
        ValueError: for a value out of range, NaN included, naming the field.
    """

    output: str
    model: dict[str, Any] = field(default_factory=dict)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    routing: RoutingConfig = field(default_factory=RoutingConfig)
    run: RunConfig = field(default_factory=RunConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        if not isinstance(self.output, str) or not self.output:
            raise ValueError(
                f"output is {_shown(self.output)}; the path of a folder, as text, is allowed"
            )
        if not isinstance(self.model, dict):
            raise ValueError(
                f"model is {_shown(self.model)}; a dict of the model's constructor arguments is "
                "allowed"
            )
        _check_json("model", self.model)
        refuse_text(self.model)
        for name, kind in _sections().items():
            if not isinstance(getattr(self, name), kind):
                raise ValueError(
                    f"{name} is {_shown(getattr(self, name))}; a {kind.__name__} is allowed"
                )

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-able values; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """The config with these fields, sections as dicts.

        A model's settings of an older version are taken in today's words, with a FutureWarning.

        Raises:
            ValueError: for anything that is no dict of dicts, unknown or missing names, and values
                out of range, naming the field.
        """
        made: TrainConfig = _build(cls, "config", values)
        return replace(made, model=current_settings(made.model))


def whole_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a model to compare with others: in today's words, as JSON holds them, and with
    all fields of `frequency`.

    Args:
        settings: of any version, maybe damaged: a `frequency` that is no record stays as it is.
    """
    made = current_settings(settings, warn=False)
    if isinstance(made.get("frequency"), Mapping):
        with suppress(ValueError):
            made["frequency"] = FreqFormerConfig.from_dict(dict(made["frequency"])).to_dict()
    return json.loads(json.dumps(made))


def refuse_text(arguments: Mapping[str, Any]) -> None:
    """Raise ValueError for constructor arguments of a model that takes text, which no clip has."""
    if arguments.get("cross_attention_dim") is not None:
        raise ValueError(
            f"model has cross_attention_dim={_shown(arguments['cross_attention_dim'])}; None is"
            " allowed: training feeds no text, so what reads text would never learn. Leave"
            " cross_attention_dim out, or write a loop of your own with"
            " freqformer.training.objective"
        )


def _sections() -> dict[str, type]:
    hints = get_type_hints(TrainConfig)
    return {name: kind for name, kind in hints.items() if is_dataclass(kind)}  # type: ignore[misc]


def _build(kind: type, name: str, values: Any) -> Any:
    """The record with these fields; its own sections are built of dicts, too."""
    if isinstance(values, kind):
        return values
    known = [item.name for item in fields(kind)]
    if not isinstance(values, dict):
        raise ValueError(f"{name} is {_shown(values)}; an object with fields of {known} is allowed")
    unknown = sorted(_shown(field) for field in values if field not in known)
    if unknown:
        raise ValueError(
            f"{name} has unknown fields [{', '.join(unknown)}]; {known} are allowed: remove or "
            "rename the others"
        )
    needed = [item.name for item in fields(kind) if item.default is item.default_factory is MISSING]
    missing = [field for field in needed if field not in values]
    if missing:
        raise ValueError(f"{name} lacks {missing}; give {'them' if missing[1:] else 'it'}")
    sections = _sections() if kind is TrainConfig else {}
    made = {
        field: _build(sections[field], field, value) if field in sections else value
        for field, value in values.items()
    }
    return kind(**made)


def _check_json(name: str, value: Any) -> None:
    """Raise ValueError for what JSON can't hold, NaN included, and for what no model needs."""
    level = [value]
    for _ in range(_MOST_LEVELS):
        inner: list[Any] = []
        for part in level:
            if isinstance(part, dict) and all(isinstance(key, str) for key in part):
                inner += part.values()
            elif isinstance(part, list | tuple):
                inner += part
            elif not (part is None or isinstance(part, str | int) or _finite(part)):
                raise ValueError(
                    f"{name} is {_shown(value)} with {_shown(part)}; values that JSON holds are "
                    "allowed, no NaN"
                )
        if not inner:
            return
        level = inner
    raise ValueError(
        f"{name} is {_shown(value)}, nested deeper than {_MOST_LEVELS} levels; fewer are allowed"
    )


def _finite(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


_shortened = reprlib.Repr()
_shortened.maxstring = _shortened.maxother = 100
_shortened.maxlevel = 3


def _shown(value: Any) -> str:
    """A value as errors show it: cut short, since a file may hold megabytes in a field."""
    return _shortened.repr(value)


def _number(name: str, value: Any, low: float, high: float) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    # The comparison is False for NaN, so NaN is refused too.
    if not number or not low <= value <= high:
        raise ValueError(f"{name} is {_shown(value)}; numbers from {low:g} to {high:g} are allowed")


def _whole(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(
            f"{name} is {_shown(value)}; whole numbers from {low} to {high:,} are allowed"
        )


def _choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} is {_shown(value)}; choose one of {', '.join(allowed)}")


def _flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {_shown(value)}; True or False is allowed")
