"""What holds of frequency attention in every family of diffusers' transformers, checked on small
random models.

A check takes the model and `call(model, timestep=(500.0,), size=SIZE)`, which runs it on inputs
that are the same for all samples and every time.
"""

from __future__ import annotations

import copy
import pickle
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from tests.support.tiny_transformers import processors_of
from torch.utils.checkpoint import checkpoint

from freqformer.calibration import CalibrationSettings
from freqformer.calibration.pipelines.plugged import PluggedSubject
from freqformer.config import Band, FreqFormerConfig
from freqformer.grid import Grid
from freqformer.integrations.diffusers import (
    FrequencyProcessor,
    disable_frequency_attention,
    enable_frequency_attention,
)
from freqformer.integrations.diffusers.families import FAMILIES
from freqformer.routing import RoutingTable
from freqformer.routing.origin import origin_of

LOW, MID, HIGH, DENSE = map(int, Band)
HEADS = 2
CONFIG = FreqFormerConfig(
    tile=(2, 4, 4), compression=8, mid_tiles=2, window=(1, 1, 2), summary_tokens=4
)
EVERY = FreqFormerConfig(tile=(2, 4, 4), compression=8, mid_tiles=None, summary_tokens=0)
"""MID heads see every tile and nothing else: dense attention by another way."""
SIZE = (5, 6, 9)
"""Of the token grid: (frames, height, width)."""
NUM_TOKENS = 5 * 6 * 9
Call = Callable[..., torch.Tensor]


def layers_of(model: Any) -> list[Any]:
    return [layer for _, layer in FAMILIES[type(model).__name__].layers(model)]


def make_table(
    bands: Sequence[Sequence[Sequence[int]]], config: FreqFormerConfig = CONFIG
) -> RoutingTable:
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
    processors = processors_of(model)
    handle = enable_frequency_attention(model, uniform(model, [LOW, HIGH]))
    assert set(model.state_dict()) == state
    changed = [
        name
        for name, processor in processors_of(model).items()
        if isinstance(processor, FrequencyProcessor)
    ]
    assert len(changed) == len(layers_of(model))
    assert differs(call(model), before)
    handle.remove()
    handle.remove()
    assert processors_of(model) == processors
    assert not model._forward_pre_hooks
    assert torch.equal(call(model), before)


def the_grid_of_the_call_reaches_every_layer(model: Any, call: Call) -> None:
    seen = []

    def look(layer: Any, *_: Any) -> None:
        seen.append(layer.processor.current.call.video.grid)

    with enable_frequency_attention(model, uniform(model, [LOW, HIGH])):
        hooks = [layer.register_forward_pre_hook(look) for layer in layers_of(model)]
        call(model)
    assert seen == [Grid(*SIZE)] * len(layers_of(model))
    for hook in hooks:
        hook.remove()


def bands_follow_layer_and_timestep_of_every_sample(model: Any, call: Call) -> None:
    """With little noise all heads are dense; with much those of one layer are LOW, and every
    layer's turn changes more."""
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
    with enable_frequency_attention(
        model, RoutingTable(torch.full((2, layers, HEADS), MID), lengths, CONFIG)
    ):
        both = call(model, (100.0, 900.0))
        alone = [call(model, (timestep,))[0] for timestep in (100.0, 900.0)]
    torch.testing.assert_close(both[0], alone[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both[1], alone[1], rtol=1e-4, atol=1e-5)


def dense_calls_run_the_models_own_attention(model: Any, call: Call) -> None:
    """A bucket of DENSE heads costs what the model itself costs: its own processor, no banded
    launch."""
    layers = len(layers_of(model))
    table = make_table([[[LOW, HIGH]] * layers, [[DENSE] * HEADS] * layers])
    before, mixed = call(model, (900.0,)), call(model, (900.0, 100.0, 800.0))
    banded: list[int] = []
    with enable_frequency_attention(model, table):
        for layer in layers_of(model):
            _count_banded(layer.processor, banded)
        assert torch.equal(call(model, (900.0,)), before)
        assert banded == []
        low_noise = call(model, (100.0,))
        assert banded == [1] * layers
        after = call(model, (900.0, 100.0, 800.0))
        assert banded == [1] * layers * 2
    torch.testing.assert_close(after[[0, 2]], mixed[[0, 2]], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(after[1:2], low_noise, rtol=1e-4, atol=1e-5)
    assert differs(after[1], mixed[1])


def _count_banded(processor: FrequencyProcessor, sizes: list[int]) -> None:
    own = processor.banded

    def counted(attn: Any, share: Any, *given: Any) -> Any:
        sizes.append(len(share.bands.bands))
        return own(attn, share, *given)

    processor.banded = counted  # type: ignore[method-assign]


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


def swapped(model: Any) -> RoutingTable:
    """Heads change places between two buckets of timesteps."""
    layers = len(layers_of(model))
    return make_table([[[HIGH, LOW]] * layers, [[LOW, HIGH]] * layers])


def _grads(model: Any) -> list[torch.Tensor]:
    """What took no part has none, or zeros where activations are computed again."""
    return [torch.zeros_like(x) if x.grad is None else x.grad.clone() for x in model.parameters()]


def checkpointed_layers_are_computed_again_in_their_own_call(model: Any, call: Call) -> None:
    """Two forward passes at other timesteps, then one backward: inside the block, after it, and
    under another table."""
    found = []
    cases = ((None, False), (False, False), (False, True), (True, True))
    for reentrant, late in cases:
        if reentrant is not None:
            model.enable_gradient_checkpointing(partial(checkpoint, use_reentrant=reentrant))
        own = model._gradient_checkpointing_func
        model.zero_grad()
        with enable_frequency_attention(model, swapped(model)):
            loss = call(model, (900.0,)).square().mean() + call(model, (100.0,)).square().mean()
            if not late:
                loss.backward()
        if late:
            with enable_frequency_attention(model, uniform(model, [MID, MID])):
                loss.backward()
        assert not any(
            isinstance(layer.processor, FrequencyProcessor) for layer in layers_of(model)
        )
        assert model._gradient_checkpointing_func is own
        found.append(_grads(model))
    assert any(bool(grad.any()) for grad in found[0])
    for other in found[1:]:
        for grad, wanted in zip(other, found[0], strict=True):
            torch.testing.assert_close(grad, wanted, rtol=1e-4, atol=1e-6)
    model.disable_gradient_checkpointing()


def layers_outside_a_call_are_refused(model: Any, call: Call) -> None:
    """As where other tools recompute activations: a wrong timestep would go unseen."""
    first = layers_of(model)[0]
    forward = first.forward
    first.forward = lambda *args, **kwargs: checkpoint(
        forward, *args, use_reentrant=False, **kwargs
    )
    with enable_frequency_attention(model, swapped(model)):
        loss = call(model).square().mean()
        with pytest.raises(
            ValueError,
            match=r"outside a forward pass of its transformer.* enable_gradient_checkpointing\(\)",
        ):
            loss.backward()
    first.forward = forward
    model.zero_grad()


def failed_calls_leave_nothing_behind(model: Any, call: Call) -> None:
    with enable_frequency_attention(model, swapped(model)):
        for wrong in ((1200.0,), (-1.0,), (float("nan"),)):
            with pytest.raises(
                ValueError,
                match=r"timestep is .*; one number or one a sample, from 0 \(clean\) to 1000",
            ):
                call(model, wrong)
        last = layers_of(model)[-1]
        hook = last.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            call(model)
        hook.remove()
        assert last.processor.current.call is None


def copies_and_pickles_are_enabled_and_independent(model: Any, call: Call) -> None:
    plain = call(model)
    handle = enable_frequency_attention(model, swapped(model))
    enabled, names = call(model), handle.layer_names
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    handle.remove()
    assert handle.layer_names == []
    for other in copies:
        assert len(names) == sum(
            isinstance(layer.processor, FrequencyProcessor) for layer in layers_of(other)
        )
        assert torch.equal(call(other), enabled)
        assert torch.equal(call(model), plain)
        disable_frequency_attention(other)
        disable_frequency_attention(other)
        assert torch.equal(call(other), plain)
        assert not other._forward_pre_hooks
        assert not other._forward_hooks
        with enable_frequency_attention(other, swapped(other)):
            assert torch.equal(call(other), enabled)


def saving_writes_the_model_alone(model: Any, call: Call) -> None:
    before = call(model)
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        model.save_pretrained(first)
        with enable_frequency_attention(model, swapped(model)):
            model.save_pretrained(second)
        files = sorted(path.name for path in Path(first).iterdir())
        assert files == sorted(path.name for path in Path(second).iterdir())
        assert all(
            (Path(first) / name).read_bytes() == (Path(second) / name).read_bytes()
            for name in files
        )
        loaded = type(model).from_pretrained(second).eval()
    assert not any(isinstance(layer.processor, FrequencyProcessor) for layer in layers_of(loaded))
    torch.testing.assert_close(call(loaded), before, rtol=1e-4, atol=1e-5)


def offloaded_weights_come_when_they_are_needed(model: Any, call: Call) -> None:
    with enable_frequency_attention(model, swapped(model)), torch.no_grad():
        before = call(model)
        cpu_offload(model, execution_device=torch.device("cpu"))
        torch.testing.assert_close(call(model), before, rtol=1e-4, atol=1e-5)


def options_of_the_layers_own_processor_reach_it(model: Any, call: Call) -> None:
    own = layers_of(model)[0].processor
    if not hasattr(own, "_attention_backend"):
        assert not hasattr(type(own), "_parallel_config")
        return
    with enable_frequency_attention(model, swapped(model)):
        model.set_attention_backend("_native_math")
        assert own._attention_backend == "_native_math"
    model.reset_attention_backend()
    assert own._attention_backend is None


def a_table_of_another_model_is_refused(model: Any, call: Call) -> None:
    """Of the same layers and heads, but with other weights."""
    other = copy.deepcopy(model)
    for layer in layers_of(other):
        for parameter in layer.parameters():
            parameter.data = torch.randn_like(parameter)
    table = replace(swapped(model), origin=origin_of(layers_of(other)))
    with pytest.raises(ValueError, match="table was made from another model"):
        enable_frequency_attention(model, table)
    assert not any(isinstance(layer.processor, FrequencyProcessor) for layer in layers_of(model))
    with enable_frequency_attention(other, table):
        assert differs(call(other), call(model))


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
        with pytest.raises(
            ValueError, match=f"was given a {type(own).__name__} after frequency attention"
        ):
            call(model)
    layers[0].set_processor(object())
    with pytest.raises(ValueError, match=f"has a object; .*{type(own).__name__}.* is allowed"):
        enable_frequency_attention(model, uniform(model, [LOW, HIGH]))
    layers[0].set_processor(own)
    assert not model._forward_pre_hooks


def calibration_measures_every_head_and_changes_nothing(model: Any, call: Call) -> None:
    """Also where the output projection is the block's."""
    subject = PluggedSubject(model)
    energies = subject.energies(CalibrationSettings(densities=(0.5,)).candidates)
    with torch.no_grad():
        before = call(model, (900.0, 100.0))
        with subject.measuring(energies):
            after = call(model, (900.0, 100.0))
    assert torch.equal(after, before)
    assert sorted(energies.by_level) == pytest.approx([0.1, 0.9])
    assert energies.grid == Grid(*SIZE)
    for measured in energies.by_level.values():
        assert measured.shape[:2] == (len(layers_of(model)), HEADS)
        assert bool((measured > 0).all())


CHECKS = (
    dense_layers_keep_their_processor_to_the_last_bit,
    dense_calls_run_the_models_own_attention,
    checkpointed_layers_are_computed_again_in_their_own_call,
    layers_outside_a_call_are_refused,
    failed_calls_leave_nothing_behind,
    copies_and_pickles_are_enabled_and_independent,
    saving_writes_the_model_alone,
    offloaded_weights_come_when_they_are_needed,
    options_of_the_layers_own_processor_reach_it,
    heads_that_see_every_tile_are_dense_up_to_rounding,
    bands_differ_from_dense_and_are_taken_back_without_a_trace,
    the_grid_of_the_call_reaches_every_layer,
    bands_follow_layer_and_timestep_of_every_sample,
    a_table_of_another_model_is_refused,
    lists_that_differ_between_buckets,
    short_videos_run_the_models_own_attention,
    gradients_come_through,
    what_does_not_fit_is_refused,
    calibration_measures_every_head_and_changes_nothing,
)
every_check = pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
