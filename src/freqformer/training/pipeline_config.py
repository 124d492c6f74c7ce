"""Which transformer of a diffusers pipeline a run trains, and what of it, as a frozen record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from freqformer._validate import check_choice, check_number, check_whole, shown

Part = Literal["transformer", "transformer_2"]
Weights = Literal["lora", "full"]

_MOST_RANK = 65_536
_MOST_BLOCKS = 100_000
_MOST_TOKENS = 10**9
_LEAST_DENSITY = 0.001
_MOST_GUIDANCE = 1000
LEARNING_RATES: dict[Weights, float] = {"lora": 1e-4, "full": 1e-5}
"""Where a run of a pipeline names none."""


@dataclass(frozen=True)
class PipelineConfig:
    """A trained video model of diffusers to go on with, on a cache, in place of `model`.

    Args:
        folder: of the pipeline, with its model_index.json; None trains this library's own model.
        part: which of its transformers, where it has two. Each is trained at the noise levels at
            which its pipeline calls it.
        weights: `lora` trains low-rank additions to some layers, `full` all weights.
        rank: of the additions.
        alpha: their scale is alpha / rank; None takes the rank.
        targets: endings of the names of the linear layers that get additions, like "attn2.to_q";
            empty takes queries, keys, values and outputs of self-attention.
        density: of frequency attention, as in `enable_frequency_attention`, at all noise levels; 1
            trains through the model's own attention.
        dense_blocks: how many first and how many last attention layers stay dense.
        min_tokens: video tokens below which a clip's attention is dense; None takes 12,288.
        offload_blocks: the last so many blocks wait in the computer's memory, without their
            additions, and come to the GPU one by one.
        guidance_scale: that a transformer which learned guidance by distillation is told
            (HunyuanVideo).
    """

    folder: str | None = None
    part: Part = "transformer"
    weights: Weights = "lora"
    rank: int = 16
    alpha: float | None = None
    targets: tuple[str, ...] = ()
    density: float = 0.2
    dense_blocks: tuple[int, int] = (0, 0)
    min_tokens: int | None = None
    offload_blocks: int = 0
    guidance_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.folder is not None and not (isinstance(self.folder, str) and self.folder):
            raise ValueError(
                f"folder is {shown(self.folder)}; the path of a pipeline's folder, as text, or None"
                " is allowed"
            )
        check_choice("part", self.part, get_args(Part))
        check_choice("weights", self.weights, get_args(Weights))
        check_whole("rank", self.rank, 1, most=_MOST_RANK)
        if self.alpha is not None:
            check_number("alpha", self.alpha, 1e-6, 1e6)
        # JSON gives lists; records compare by value.
        object.__setattr__(self, "targets", _as_tuple("targets", self.targets))
        for target in self.targets:
            if not isinstance(target, str) or not target:
                raise ValueError(
                    f"targets holds {shown(target)}; endings of names are allowed, like attn2.to_q"
                )
        check_number("density", self.density, _LEAST_DENSITY, 1)
        object.__setattr__(self, "dense_blocks", _as_tuple("dense_blocks", self.dense_blocks))
        if len(self.dense_blocks) != 2:
            raise ValueError(
                f"dense_blocks is {shown(self.dense_blocks)}; how many first and how many last"
                " blocks stay dense is allowed, like [1, 1]"
            )
        for count in self.dense_blocks:
            check_whole("dense_blocks", count, 0, most=_MOST_BLOCKS)
        if self.min_tokens is not None:
            check_whole("min_tokens", self.min_tokens, 0, most=_MOST_TOKENS)
        check_whole("offload_blocks", self.offload_blocks, 0, most=_MOST_BLOCKS)
        check_number("guidance_scale", self.guidance_scale, 0, _MOST_GUIDANCE)
        if self.offload_blocks and self.weights == "full":
            raise ValueError(
                f"offload_blocks is {self.offload_blocks} and weights 'full'; 0 is allowed, since"
                " an optimizer step needs all of them: train weights='lora', or share the weights"
                " among several GPUs"
            )


def _as_tuple(name: str, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{name} is {shown(value)}; a list is allowed")
    return tuple(value)
