"""One call for whole pipelines: which steps, layers and transformers it changes, and what its
handle says."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from tests.support.tiny_pipelines import generate, tiny_wan_pipeline

from freqformer.config import Band, FreqFormerConfig
from freqformer.integrations.diffusers import (
    disable_frequency_attention,
    enable_frequency_attention,
)
from freqformer.routing import RoutingTable

SMALL: dict[str, Any] = {"density": 0.5, "min_tokens": 1}
"""Dials for videos of 400 tokens."""


@pytest.fixture(scope="module")
def shared() -> Any:
    return tiny_wan_pipeline()


@pytest.fixture
def pipe(shared: Any) -> Iterator[Any]:
    yield shared
    disable_frequency_attention(shared)


def watched(transformer: Any) -> list[tuple[float, bool]]:
    """By call of its first banded layer: the timestep, and whether it was banded."""
    seen: list[tuple[float, bool]] = []
    processor = transformer.blocks[1].attn1.processor
    run, banded = processor.run, processor.banded

    def note_run(attn: Any, given: Any) -> Any:
        seen.append((1000 * float(processor.current.call.noise_level[0]), False))
        return run(attn, given)

    def note_banded(*given: Any) -> Any:
        seen[-1] = (seen[-1][0], True)
        return banded(*given)

    processor.run, processor.banded = note_run, note_banded
    return seen


def test_a_fifth_of_the_steps_stays_dense_under_guidance(pipe: Any) -> None:
    """Two calls a step."""
    with enable_frequency_attention(pipe, **SMALL) as handle:
        assert handle.density is None
        assert "no banded step yet" in handle.describe()
        seen = watched(pipe.transformer)
        generate(pipe, num_inference_steps=10)
        assert [banded for _, banded in seen] == [False] * 4 + [True] * 16
        steps = pipe.scheduler.timesteps.tolist()
        assert [step for step, _ in seen[::2]] == pytest.approx(steps)
        assert handle.density == pytest.approx(0.5, rel=0.05)
        assert handle.total_density == pytest.approx(1 - 0.8 * (1 - handle.density))
        assert handle.describe() == (
            f"{handle.density:.1%} of dense attention's FLOPs in 3 of 3 layers and 8 of 10 steps, "
            f"{handle.total_density:.1%} in all"
        )


def test_last_steps_and_blocks_stay_dense(pipe: Any) -> None:
    own = [block.attn1.processor for block in pipe.transformer.blocks]
    dials = {"start_percent": 0, "end_percent": 0.75, "dense_blocks": (1, 1)}
    with enable_frequency_attention(pipe, **SMALL, **dials) as handle:
        assert handle.layer_names == ["transformer.blocks.1.attn1"]
        assert pipe.transformer.blocks[0].attn1.processor is own[0]
        assert pipe.transformer.blocks[2].attn1.processor is own[2]
        seen = watched(pipe.transformer)
        generate(pipe, num_inference_steps=4, guidance_scale=1.0)
        assert [banded for _, banded in seen] == [True, True, True, False]
        share = (1 - (handle.density or 0)) * 0.75 / 3
        assert handle.total_density == pytest.approx(1 - share)
    assert [block.attn1.processor for block in pipe.transformer.blocks] == own


def test_what_is_dense_is_the_models_own_to_the_last_bit(pipe: Any) -> None:
    before = generate(pipe)
    for dials in (
        {"density": 0.5},  # min_tokens is 12,288
        {"density": 1.0, "min_tokens": 1},
        {**SMALL, "dense_blocks": (3, 0)},
        {**SMALL, "dense_blocks": (2, 2)},
        {**SMALL, "start_percent": 0.99},
    ):
        with enable_frequency_attention(pipe, **dials):
            assert torch.equal(generate(pipe), before)
    with enable_frequency_attention(pipe, **SMALL):
        assert not torch.allclose(generate(pipe), before, atol=1e-3)
    assert torch.equal(generate(pipe), before)


def test_both_experts_are_changed_by_one_call() -> None:
    pipe = tiny_wan_pipeline(experts=2)
    before = generate(pipe)
    handle = enable_frequency_attention(pipe, **SMALL)
    assert list(handle.transformers) == ["transformer", "transformer_2"]
    assert len(handle.layer_names) == 6
    first, second = watched(pipe.transformer), watched(pipe.transformer_2)
    generate(pipe, num_inference_steps=10)
    assert min(step for step, _ in first) >= 875 > max(step for step, _ in second)
    steps = [banded for _, banded in (*first, *second)]
    assert steps == [False] * 4 + [True] * 16
    disable_frequency_attention(pipe)
    assert handle.layer_names == []
    assert torch.equal(generate(pipe), before)


def test_nothing_is_changed_where_one_of_two_can_not_be() -> None:
    pipe = tiny_wan_pipeline(experts=2)
    with (
        enable_frequency_attention(pipe.transformer_2, scheduler=pipe.scheduler),
        pytest.raises(ValueError, match="has frequency attention already"),
    ):
        enable_frequency_attention(pipe)
    assert not pipe.transformer._forward_pre_hooks


def test_percentages_of_a_bare_transformer_need_its_scheduler(pipe: Any) -> None:
    with pytest.raises(ValueError, match=r"scheduler is None with start_percent 0\.2 .* pass"):
        enable_frequency_attention(pipe.transformer)
    with enable_frequency_attention(pipe.transformer, start_percent=0, **SMALL) as handle:
        assert handle.transformer is pipe.transformer
        seen = watched(pipe.transformer)
        generate(pipe, guidance_scale=1.0)
        assert all(banded for _, banded in seen)
        assert handle.total_density == handle.density
    with enable_frequency_attention(pipe.transformer, scheduler=pipe.scheduler, **SMALL):
        seen = watched(pipe.transformer)
        generate(pipe, guidance_scale=1.0)
        assert [banded for _, banded in seen] == [False, True, True, True, True]
    with pytest.raises(ValueError, match="scheduler is given beside a pipeline"):
        enable_frequency_attention(pipe, scheduler=pipe.scheduler)
    with pytest.raises(ValueError, match="scheduler is a int, which has no timesteps"):
        enable_frequency_attention(pipe.transformer, scheduler=3)


def test_a_scheduler_that_comes_later_counts(pipe: Any) -> None:
    own = pipe.scheduler
    with enable_frequency_attention(pipe, **SMALL):
        options = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
        pipe.scheduler = UniPCMultistepScheduler.from_config(own.config, flow_shift=3.0, **options)
        seen = watched(pipe.transformer)
        generate(pipe, guidance_scale=1.0)
        assert [banded for _, banded in seen] == [False, True, True, True, True]
    pipe.scheduler = own


def test_a_table_has_guards_of_its_own(pipe: Any) -> None:
    """Dials are added to it where they are given."""
    bands = torch.full((1, 3, 2), Band.HIGH.value)
    config = FreqFormerConfig(tile=(4, 4, 4), window=(1, 1, 1), summary_tokens=4)
    table = RoutingTable(bands, torch.full_like(bands, 1), config)
    with enable_frequency_attention(pipe, table) as handle:
        seen = watched(pipe.transformer)
        generate(pipe, guidance_scale=1.0)
        assert all(banded for _, banded in seen)
        assert handle.density == pytest.approx(
            (16 + 1) * (2 * 16) * (2 * 16 + 4) / 400**2 + 4 / 400
        )
    with enable_frequency_attention(pipe, table, start_percent=0.4, dense_blocks=(0, 1)) as handle:
        seen = watched(pipe.transformer)
        generate(pipe, guidance_scale=1.0)
        assert [banded for _, banded in seen] == [False, False, True, True, True]
        assert len(handle.layer_names) == 2


def test_a_copied_pipeline_follows_its_own_scheduler(pipe: Any) -> None:
    with enable_frequency_attention(pipe, **SMALL):
        other = copy.deepcopy(pipe)
        enabled = generate(pipe)
    pipe.scheduler.set_timesteps(3)
    assert torch.equal(generate(other), enabled)
    assert other.transformer._forward_pre_hooks


def test_dials_out_of_range_are_refused_before_anything_changes(pipe: Any) -> None:
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"density": 0}, r"density is 0; numbers from 0\.001 to 1"),
        ({"density": 20}, "density is 20"),
        ({"start_percent": 20}, r"start_percent is 20; numbers from 0 to 1 .* first fifth"),
        ({"end_percent": None}, "end_percent is None"),
        ({"start_percent": 0.5, "end_percent": 0.5}, "leaves no step between them"),
        ({"dense_blocks": 2}, r"dense_blocks is 2; how many first .* like \(1, 1\)"),
        ({"dense_blocks": (1, -1)}, "dense_blocks is -1"),
        ({"min_tokens": -1}, "min_tokens is -1; whole numbers from 0 up"),
        ({"min_tokens": 30e3}, r"min_tokens is 30000\.0"),
        ({"min_tokens": True}, "min_tokens is True"),
        ({"impl": "fast"}, "impl is 'fast'; choose one of auto"),
        ({"table": FreqFormerConfig()}, "table is a FreqFormerConfig; a RoutingTable is allowed"),
        ({"table": "table/"}, r"table is a str; .* RoutingTable\.load\(folder\)"),
    )
    for wrong, message in cases:
        with pytest.raises(ValueError, match=message):
            enable_frequency_attention(pipe, **wrong)
    bands = torch.full((1, 3, 2), Band.HIGH.value)
    table = RoutingTable(bands, bands * 0, FreqFormerConfig(tile=(4, 4, 4)))
    with pytest.raises(ValueError, match=r"density is 0\.2 beside a table"):
        enable_frequency_attention(pipe, table, density=0.2)
    assert not pipe.transformer._forward_pre_hooks


def test_the_old_name_of_the_first_argument_warns(pipe: Any) -> None:
    with pytest.warns(FutureWarning, match="transformer is now pipe_or_transformer"):
        handle = enable_frequency_attention(transformer=pipe.transformer, start_percent=0)
    handle.remove()


def test_a_scheduler_of_another_kind_of_pipeline_is_named() -> None:
    pipe = tiny_wan_pipeline()
    pipe.scheduler = None
    with pytest.raises(ValueError, match="scheduler is None with start_percent"):
        enable_frequency_attention(pipe)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    enable_frequency_attention(pipe).remove()
