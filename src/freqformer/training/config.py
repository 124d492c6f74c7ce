"""What a training run does, as frozen JSON-able records that refuse bad values."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from freqformer._older import current_settings
from freqformer._renamed import renamed_fields, renamed_keys
from freqformer._validate import (
    check_choice,
    check_flag,
    check_kind,
    check_number,
    check_whole,
    shown,
)
from freqformer.routing import RouterTraining
from freqformer.training.config_dict import build, check_json, sections
from freqformer.training.data_config import DataConfig
from freqformer.training.model_settings import refuse_text, without_notes
from freqformer.training.parallel_config import ParallelConfig
from freqformer.training.pipeline_config import LEARNING_RATES, PipelineConfig
from freqformer.training.validation.settings import ValidationConfig

Precision = Literal["fp32", "bf16"]
Device = Literal["auto", "cpu"]
Tracker = Literal["wandb", "trackio"]
OptimizerKind = Literal["adamw", "adamw8bit"]

LEARNING_RATE = 1e-3
"""Of this library's own model, where a run names none."""
_LARGE = 1e9
# Bounds far above any use, so that what is absurd is refused here and not by memory or by C's
# integers.
_MOST_STEPS = 10**12
_MOST_BATCH = 100_000
_MOST_KEPT = 10**6
_MOST_SEED = 2**63 - 1


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, its learning rate over the run, and the average of the weights.

    Args:
        kind: `adamw`, or `adamw8bit`, which keeps moments in 8 bits.
        learning_rate: reached after the warm-up, then lowered to 0 along half a cosine. None is
            1e-3; of a pipeline, 1e-4 for LoRA and 1e-5 for all weights.
        warmup_steps: steps over which the learning rate grows linearly.
        weight_decay: of weight matrices; vectors (norms, biases) have none.
        betas: decay of the first and second moment.
        max_grad_norm: norm that gradients are clipped to.
        ema_decay: largest decay of the exponential moving average of the weights; it grows from 0
            as (1 + n) / (10 + n).
    """

    kind: OptimizerKind = "adamw"
    learning_rate: float | None = None
    warmup_steps: int = 50
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999

    @property
    def peak_rate(self) -> float:
        """The learning rate after the warm-up."""
        return LEARNING_RATE if self.learning_rate is None else self.learning_rate

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, get_args(OptimizerKind))
        if self.learning_rate is not None:
            check_number("learning_rate", self.learning_rate, 0, 10)
        check_whole("warmup_steps", self.warmup_steps, 0, most=_MOST_STEPS)
        check_number("weight_decay", self.weight_decay, 0, 10)
        # JSON gives lists; records compare by value.
        object.__setattr__(
            self, "betas", tuple(self.betas) if isinstance(self.betas, list) else self.betas
        )
        if not isinstance(self.betas, tuple) or len(self.betas) != 2:
            raise ValueError(
                f"betas is {shown(self.betas)}; two numbers from 0 to below 1 are allowed, like "
                "(0.9, 0.99)"
            )
        for beta in self.betas:
            check_number("betas", beta, 0, 1 - 1e-9)
        check_number("max_grad_norm", self.max_grad_norm, 1e-9, _LARGE)
        check_number("ema_decay", self.ema_decay, 0, 1)


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
            check_number("shift", self.shift, 0.01, 100)
        check_number("logit_mean", self.logit_mean, -10, 10)
        check_number("logit_std", self.logit_std, 0, 10)
        check_flag("stratified", self.stratified)


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
        check_choice("mode", self.mode, get_args(RouterTraining))
        if self.budget is not None:
            check_number("budget", self.budget, 1e-6, 1)
        check_number("budget_weight", self.budget_weight, 0, _LARGE)
        check_number("entropy_weight", self.entropy_weight, -10, 10)


RUN_RENAMED = {"part_seconds": "stop_after_seconds"}
OF_A_SESSION = ("stop_after_seconds", "profile")
"""Fields of `RunConfig` that belong to one call, and not to the run."""


@renamed_fields(**RUN_RENAMED)
@dataclass(frozen=True)
class RunConfig:
    """How long and on what a run trains.

    Args:
        max_steps: optimizer steps.
        max_seconds: seconds of training after which the run ends though steps are left, pauses
            between sessions not counted; the learning rate then follows the clock and the run
            is not repeatable bit for bit.
        stop_after_seconds: seconds after which this session, building the model included, ends with
            a checkpoint; the same call goes on from there. The learning rate is that of the whole
            run, whose record has nothing of it.
        batch_size: clips per process and forward pass; of processes that share clips, of each
            group.
        accumulation: forward passes per optimizer step.
        precision: `bf16` computes in bfloat16 by autocast and keeps weights in float32.
        gradient_checkpointing: whether blocks are computed again in the backward instead of being
            kept: less memory, more time, the same bits.
        compile: whether blocks are compiled by torch.compile, which takes a while at the first
            step.
        seed: of weights, data order, noise and all else.
        device: `auto` takes a GPU where there is one.
        progress: whether to draw a progress bar.
        parallel: see its class.
        tracker: `wandb` or `trackio` logs there too, where it is installed.
        profile: first and last step, counted from 1, of which this session writes a profile.
        init_from: folder of a pipeline, or of a run, whose weights the run begins with; `model` may
            then be left out, and what it names must be as in that folder.
        log_every: steps whose losses are read from the device and logged together, so that it need
            not wait for the host; a loss that is not finite is noticed then, and before every
            checkpoint.
    """

    max_steps: int = 1000
    max_seconds: float | None = None
    stop_after_seconds: float | None = None
    batch_size: int = 4
    accumulation: int = 1
    precision: Precision = "fp32"
    gradient_checkpointing: bool = False
    compile: bool = False
    seed: int = 0
    device: Device = "auto"
    progress: bool = True
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    tracker: Tracker | None = None
    profile: tuple[int, int] | None = None
    init_from: str | None = None
    log_every: int = 10

    def __post_init__(self) -> None:
        check_whole("max_steps", self.max_steps, 1, most=_MOST_STEPS)
        check_whole("log_every", self.log_every, 1, most=_MOST_STEPS)
        for name in ("batch_size", "accumulation"):
            check_whole(name, getattr(self, name), 1, most=_MOST_BATCH)
        for name in ("max_seconds", "stop_after_seconds"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), 1e-3, _LARGE)
        check_choice("precision", self.precision, get_args(Precision))
        check_flag("gradient_checkpointing", self.gradient_checkpointing)
        check_flag("compile", self.compile)
        check_whole("seed", self.seed, 0, most=_MOST_SEED)
        check_choice("device", self.device, get_args(Device))
        check_flag("progress", self.progress)
        if self.tracker is not None:
            check_choice("tracker", self.tracker, get_args(Tracker))
        self._check_profile()
        check_kind("parallel", self.parallel, ParallelConfig, "give its fields, like cp")
        if self.init_from is not None and not (isinstance(self.init_from, str) and self.init_from):
            raise ValueError(
                f"init_from is {shown(self.init_from)}; the path of a folder, as text, or None is "
                "allowed"
            )

    def _check_profile(self) -> None:
        if isinstance(self.profile, list):
            # JSON gives lists; records compare by value.
            object.__setattr__(self, "profile", tuple(self.profile))
        if self.profile is None:
            return
        if not isinstance(self.profile, tuple) or len(self.profile) != 2:
            raise ValueError(
                f"profile is {shown(self.profile)}; a first and a last step is allowed, like"
                " [10, 12]"
            )
        first, last = self.profile
        check_whole("profile", first, 1, most=_MOST_STEPS)
        check_whole("profile", last, first, most=_MOST_STEPS)


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
        check_whole("every_steps", self.every_steps, 1, most=_MOST_STEPS)
        check_whole("keep", self.keep, 1, most=_MOST_KEPT)
        check_flag("resume", self.resume)
        check_flag("accept_changes", self.accept_changes)


@dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Args:
        output: folder for checkpoints, logs and the trained pipeline.
        model: constructor arguments of `FreqFormerTransformer3DModel`; a model's `config` is taken
            too, as a dict.
        pipeline: a trained model of diffusers to train on, in place of `model`.
        data, optimizer, objective, routing, run, checkpoint, validation: see their classes.

    Raises:
        ValueError: for a value out of range, NaN included, naming the field.
    """

    output: str
    model: dict[str, Any] = field(default_factory=dict)
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    routing: RoutingConfig = field(default_factory=RoutingConfig)
    run: RunConfig = field(default_factory=RunConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    def __post_init__(self) -> None:
        if not isinstance(self.output, str) or not self.output:
            raise ValueError(
                f"output is {shown(self.output)}; the path of a folder, as text, is allowed"
            )
        if not isinstance(self.model, dict):
            raise ValueError(
                f"model is {shown(self.model)}; a dict of the model's constructor arguments is "
                "allowed"
            )
        check_json("model", self.model)
        object.__setattr__(self, "model", current_settings(without_notes(self.model)))
        if not (isinstance(self.data, DataConfig) and self.data.cache is not None):
            refuse_text(self.model)
        for name, kind in sections(type(self)).items():
            if not isinstance(getattr(self, name), kind):
                raise ValueError(
                    f"{name} is {shown(getattr(self, name))}; a {kind.__name__} is allowed"
                )
        self._check_pipeline()
        if self.optimizer.kind != "adamw" and self.run.parallel != ParallelConfig():
            raise ValueError(
                f"optimizer.kind is {self.optimizer.kind!r} and run.parallel"
                f" {self.run.parallel}; 'adamw' is allowed, whose moments are shared among ranks as"
                " the weights are: leave kind out"
            )
        if self.optimizer.learning_rate is None:
            tuned = self.pipeline.folder is not None
            rate = LEARNING_RATES[self.pipeline.weights] if tuned else self.optimizer.peak_rate
            object.__setattr__(self, "optimizer", replace(self.optimizer, learning_rate=rate))
        if self.validation.asks and self.data.cache is None:
            raise ValueError(
                f"validation has held_out={self.validation.held_out} and"
                f" {len(self.validation.prompts)} prompts, and data.cache is None; both are for"
                " runs on a cache: leave them out"
            )

    def _check_pipeline(self) -> None:
        if self.pipeline.folder is None:
            return
        for name, value in {"model": self.model, "run.init_from": self.run.init_from}.items():
            if value:
                raise ValueError(
                    f"{name} is {shown(value)}, and pipeline.folder {self.pipeline.folder!r}; one"
                    " of the two is allowed: the pipeline says the model"
                )
        if self.run.parallel.cp > 1:
            raise ValueError(
                f"run.parallel.cp is {self.run.parallel.cp}, and pipeline.folder"
                f" {self.pipeline.folder!r}; 1 is allowed, since ranks don't share a clip of a"
                " pipeline: share its weights by run.parallel.dp_shard"
            )
        if self.pipeline.offload_blocks and self.run.parallel.dp_shard > 1:
            raise ValueError(
                f"pipeline.offload_blocks is {self.pipeline.offload_blocks} and"
                f" run.parallel.dp_shard {self.run.parallel.dp_shard}; 0 is allowed with weights"
                " that ranks share: leave offload_blocks out, or let every rank hold all weights"
                " (dp_shard 1)"
            )
        if self.pipeline.offload_blocks and (
            self.run.compile or not self.run.gradient_checkpointing
        ):
            raise ValueError(
                f"pipeline.offload_blocks is {self.pipeline.offload_blocks} with"
                f" run.gradient_checkpointing={self.run.gradient_checkpointing} and"
                f" run.compile={self.run.compile}; true and false are allowed, since weights that"
                " are kept for the backward, or compiled in, save no memory"
            )
        if self.data.cache is None:
            raise ValueError(
                f"pipeline.folder is {self.pipeline.folder!r} and data.cache None; a pipeline is"
                " trained on a cache: make one with freqformer cache, by the pipeline's own --vae"
                " and --text-encoder"
            )

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-able values; `from_dict` reads them back."""
        return asdict(self)

    def to_record(self) -> dict[str, Any]:
        """As `to_dict`, without what belongs to one call alone: what a run's train.json holds."""
        values = self.to_dict()
        for name in OF_A_SESSION:
            del values["run"][name]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """The config with these fields, sections as dicts.

        A model's settings of an older version are taken in today's words, with a FutureWarning.

        Raises:
            ValueError: for anything that is no dict of dicts, unknown or missing names, and values
                out of range, naming the field.
        """
        if isinstance(values, dict) and isinstance(values.get("run"), dict):
            values = {**values, "run": renamed_keys(values["run"], RUN_RENAMED, "run.")}
        return build(cls, "config", values)
