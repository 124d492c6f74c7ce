"""What holds of frequency attention in every family of diffusers' transformers, checked on small random models.

A check takes the model and `call(model, timestep=(500.0,), size=SIZE)`, which runs it on inputs that are the same for all
samples and every time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from freqformer.config import Band, FreqFormerConfig
from freqformer.grid import Grid
from freqformer.integrations.diffusers import FrequencyProcessor, enable_frequency_attention
from freqformer.integrations.diffusers.enable import FAMILIES
from freqformer.routing import RoutingTable

LOW, MID, HIGH, DENSE = map(int, Band)
HEADS = 2
CONFIG = FreqFormerConfig(tile=(2, 4, 4), compression=8, mid_tiles=2, window=(1, 1, 2), summary_tokens=4)
EVERY = FreqFormerConfig(tile=(2, 4, 4), compression=8, mid_tiles=None, summary_tokens=0)
"""MID heads see every tile and nothing else: dense attention by another way."""
SIZE = (5, 6, 9)
"""Of the token grid: (frames, height, width)."""
NUM_TOKENS = 5 * 6 * 9
Call = Callable[..., torch.Tensor]


def layers_of(model: Any) -> list[Any]:
    return [layer for _, layer in FAMILIES[type(model).__name__].layers(model)]


def make_table(bands: Sequence[Sequence[Sequence[int]]], config: FreqFormerConfig = CONFIG) -> RoutingTable:
    tensor = torch.tensor(bands)
    return RoutingTable(tensor, torch.full_like(tensor, config.mid_tiles or 0), config)


def uniform(model: Any, bands: Sequence[int], config: FreqFormerConfig = CONFIG) -> RoutingTable:
    return make_table([[bands] * len(layers_of(model))], config)


def differs(after: torch.Tensor, before: torch.Tensor) -> bool:
    """By more than rounding."""
    return float(((after - before).norm() / before.norm()).detach()) > 1e-3


def dense_layers_keep_their_processor_to_the_last_bit(model: Any, call: Call) -> None:
    before, processors = call(model), [layer.processor for layer in layers_of(model)]
    with enable_frequency_attention(model, uniform(model, [DENSE] * HEADS)):
        assert [layer.processor for layer in layers_of(model)] == processors
        assert torch.equal(call(model), before)


def heads_that_see_every_tile_are_dense_up_to_rounding(model: Any, call: Call) -> None:
    before = call(model, (500.0, 20.0))
    with enable_frequency_attention(model, uniform(model, [MID, DENSE], EVERY)):
        after = call(model, (500.0, 20.0))
    assert not torch.equal(after, before)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


def bands_differ_from_dense_and_are_taken_back_without_a_trace(model: Any, call: Call) -> None:
    before, state = call(model), set(model.state_dict())
    processors = model.attn_processors
    handle = enable_frequency_attention(model, uniform(model, [LOW, HIGH]))
    assert set(model.state_dict()) == state
    changed = [name for name, processor in model.attn_processors.items() if isinstance(processor, FrequencyProcessor)]
    assert len(changed) == len(layers_of(model))
    assert differs(call(model), before)
    handle.remove()
    handle.remove()
    assert model.attn_processors == processors
    assert not model._forward_pre_hooks
    assert torch.equal(call(model), before)


def the_grid_of_the_call_reaches_every_layer(model: Any, call: Call) -> None:
    with enable_frequency_attention(model, uniform(model, [LOW, HIGH])):
        call(model)
        assert [layer.processor.grid() for layer in layers_of(model)] == [Grid(*SIZE)] * len(layers_of(model))


def bands_follow_layer_and_timestep_of_every_sample(model: Any, call: Call) -> None:
    """With little noise all heads are dense; with much those of one layer are LOW, and every layer's turn changes more."""
    before = call(model, (100.0, 900.0))
    quiet, changed = [[MID, MID]] * len(layers_of(model)), []
    for place in range(len(quiet)):
        noisy = [*quiet[:place], [LOW, LOW], *quiet[place + 1 :]]
        with enable_frequency_attention(model, make_table([quiet, noisy], EVERY)):
            after, swapped = call(model, (100.0, 900.0)), call(model, (900.0, 100.0))
        torch.testing.assert_close(after[0], before[0], rtol=1e-4, atol=1e-5)
        assert differs(after[1], before[1])
        torch.testing.assert_close(swapped[0], after[1], rtol=1e-4, atol=1e-5)
        assert all(differs(after[1], other) for other in changed)
        changed.append(after[1])


def lists_that_differ_between_buckets(model: Any, call: Call) -> None:
    layers = len(layers_of(model))
    lengths = torch.tensor([0, 1])[:, None, None].expand(2, layers, HEADS).clone()
    with enable_frequency_attention(model, RoutingTable(torch.full((2, layers, HEADS), MID), lengths, CONFIG)):
        both = call(model, (100.0, 900.0))
        alone = [call(model, (timestep,))[0] for timestep in (100.0, 900.0)]
    torch.testing.assert_close(both[0], alone[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both[1], alone[1], rtol=1e-4, atol=1e-5)


def short_videos_run_the_models_own_attention(model: Any, call: Call) -> None:
    longer = (SIZE[0] + 1, *SIZE[1:])
    before = call(model)
    with enable_frequency_attention(model, uniform(model, [LOW, HIGH]), min_tokens=NUM_TOKENS + 1):
        assert torch.equal(call(model), before)
        after = call(model, size=longer)
    assert differs(after, call(model, size=longer))


def gradients_come_through(model: Any, call: Call) -> None:
    with enable_frequency_attention(model, uniform(model, [MID, HIGH])):
        call(model).square().mean().backward()
    grads = [layer.to_q.weight.grad for layer in layers_of(model)]
    assert all(grad is not None and bool(grad.any()) for grad in grads)
    model.zero_grad()


def what_does_not_fit_is_refused(model: Any, call: Call) -> None:
    layers = layers_of(model)
    with pytest.raises(ValueError, match=f"table has 1 layers; {len(layers)} are allowed"):
        enable_frequency_attention(model, make_table([[[LOW, HIGH]]]))
    with pytest.raises(ValueError, match="layers of 3 heads; layer 0 of 2 heads"):
        enable_frequency_attention(model, uniform(model, [LOW, HIGH, HIGH]))
    own = layers[0].processor
    with enable_frequency_attention(model, uniform(model, [LOW, HIGH])):
        with pytest.raises(ValueError, match=r"has frequency attention already: call remove\(\)"):
            enable_frequency_attention(model, uniform(model, [LOW, HIGH]))
        layers[0].set_processor(own)
        with pytest.raises(ValueError, match=f"was given a {type(own).__name__} after frequency attention"):
            call(model)
    layers[0].set_processor(object())
    with pytest.raises(ValueError, match=f"has a object; {type(own).__name__} is allowed"):
        enable_frequency_attention(model, uniform(model, [LOW, HIGH]))
    layers[0].set_processor(own)
    assert not model._forward_pre_hooks


CHECKS = (
    dense_layers_keep_their_processor_to_the_last_bit,
    heads_that_see_every_tile_are_dense_up_to_rounding,
    bands_differ_from_dense_and_are_taken_back_without_a_trace,
    the_grid_of_the_call_reaches_every_layer,
    bands_follow_layer_and_timestep_of_every_sample,
    lists_that_differ_between_buckets,
    short_videos_run_the_models_own_attention,
    gradients_come_through,
    what_does_not_fit_is_refused,
)
every_check = pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
