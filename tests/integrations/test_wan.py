"""Frequency attention in a small random Wan model: exact where it should be, and taken back without
a trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from tests.support.enabled_models import (
    DENSE,
    HEADS,
    HIGH,
    LOW,
    NUM_TOKENS,
    SIZE,
    Call,
    differs,
    every_check,
    make_table,
    uniform,
)
from tests.support.tiny_transformers import WAN, wan_inputs

from freqformer import FreqFormerTransformer3DModel
from freqformer.integrations.diffusers import enable_frequency_attention

LAYERS = WAN["num_layers"]


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    return WanTransformer3DModel(**WAN).eval()


def call(
    model: Any,
    timestep: Sequence[float] | torch.Tensor = (500.0,),
    size: tuple[int, int, int] = SIZE,
) -> torch.Tensor:
    return model(**wan_inputs(timestep, size)).sample


@every_check
def test_as_every_family(model: Any, check: Call) -> None:
    check(model, call)


def test_timesteps_by_token_count_as_the_largest(model: Any) -> None:
    by_token = torch.full((1, NUM_TOKENS), 900.0)
    by_token[:, :54] = 0.0
    table = make_table([[[DENSE] * HEADS] * LAYERS, [[LOW, LOW]] * LAYERS])
    before = call(model, by_token)
    with enable_frequency_attention(model, table):
        assert differs(call(model, by_token), before)


class Holder(DiffusionPipeline):
    """A pipeline of anything."""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.register_modules(transformer=transformer)


def test_what_is_no_transformer_is_refused_with_the_remedy(model: Any) -> None:
    table = uniform(model, [LOW, HIGH])
    cases: tuple[tuple[Any, str], ...] = (
        (
            torch.nn.Linear(1, 1),
            r"is a Linear; a pipeline, or one of WanTransformer3DModel, .* CONTRIBUTING\.md",
        ),
        (
            Holder(torch.nn.Linear(1, 1)),
            r"is a Holder with \{'transformer': 'Linear'\}; pipelines with one of Wan.* recipe",
        ),
        (
            Holder(torch.compile(model, backend="eager")),
            r"pipe\.transformer is a compiled module: pass its \._orig_mod",
        ),
        (torch.nn.DataParallel(model), r"it is a parallel wrapper: pass its \.module"),
        (
            torch.compile(model, backend="eager"),
            r"it is a compiled module: pass its \._orig_mod",
        ),
        (
            object.__new__(FreqFormerTransformer3DModel),
            r"own model takes a table by set_routing_table",
        ),
        (None, r"pipe_or_transformer is a NoneType"),
    )
    for wrong, message in cases:
        with pytest.raises(ValueError, match=message):
            enable_frequency_attention(wrong, table)


def test_one_timestep_serves_all_samples_and_what_is_missing_is_the_models_to_say(
    model: Any,
) -> None:
    with enable_frequency_attention(model, uniform(model, [LOW, HIGH])):
        after = call(model, (500.0, 500.0))
        video = torch.randn(2, 4, *(SIZE[0], 2 * SIZE[1], 2 * SIZE[2]))
        with pytest.raises(ValueError, match="for 2 samples; one number or one a sample"):
            model(video, torch.tensor([1.0, 2.0, 3.0]), torch.randn(2, 7, 16))
        with pytest.raises(TypeError, match="missing 1 required positional argument: 'timestep'"):
            model(video, encoder_hidden_states=torch.randn(2, 7, 16))
    torch.testing.assert_close(after[0], after[1])


def test_other_parallelism_than_ulysses_is_refused_at_the_call(model: Any) -> None:
    with enable_frequency_attention(model, uniform(model, [LOW, HIGH])):
        model._parallel_config = object()
        with pytest.raises(ValueError, match=r"of another kind.*ContextParallelConfig\("):
            call(model)


def test_fused_projections_are_refused_at_the_call(model: Any) -> None:
    with enable_frequency_attention(model, uniform(model, [LOW, HIGH])):
        model.blocks[0].attn1.fused_projections = True
        with pytest.raises(
            ValueError, match="given fused projections, and none is allowed: call unfuse"
        ):
            call(model)
