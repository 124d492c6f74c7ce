"""The flow-matching objective, noise levels and the learning rate."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from freqformer.training.objective import (
    flow_matching_loss,
    learning_rate_factor,
    resolution_shift,
    sample_timesteps,
    shift_timestep,
)


class Recorder(nn.Module):
    """Keeps its inputs and answers with a fixed velocity."""

    def __init__(self, velocity):
        super().__init__()
        self.velocity = velocity

    def forward(self, hidden_states, timestep, return_dict=True):
        assert not return_dict
        self.inputs = hidden_states, timestep
        return (self.velocity,)


def example(seed=0, shape=(3, 2, 4, 5, 6), dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    clip, noise = (torch.randn(shape, generator=generator, dtype=dtype) for _ in range(2))
    return clip, torch.rand(shape[0], generator=generator, dtype=dtype), noise


def test_loss_is_the_error_of_the_velocity_on_the_straight_path():
    clip, timestep, noise = example()
    velocity = torch.randn(clip.shape, dtype=torch.float64)
    model = Recorder(velocity)
    loss = flow_matching_loss(model, clip, timestep, noise)
    for i, t in enumerate(timestep.tolist()):
        torch.testing.assert_close(
            model.inputs[0][i], (1 - t) * clip[i] + t * noise[i], rtol=1e-12, atol=1e-12
        )
    torch.testing.assert_close(model.inputs[1], 1000 * timestep, rtol=1e-12, atol=0)
    assert float(loss) == pytest.approx(
        float((velocity - (noise - clip)).square().mean()), rel=1e-12
    )


def test_the_true_velocity_has_no_loss_and_leads_to_the_clip():
    clip, timestep, noise = example(1)
    model = Recorder(noise - clip)
    assert float(flow_matching_loss(model, clip, timestep, noise)) == 0
    t = timestep.view(-1, 1, 1, 1, 1)
    torch.testing.assert_close(model.inputs[0] - t * model.velocity, clip, rtol=1e-12, atol=1e-12)


def test_half_precision_velocity_is_compared_in_float32():
    clip, timestep, noise = example(dtype=torch.float32)
    loss = flow_matching_loss(
        Recorder(torch.zeros_like(clip, dtype=torch.bfloat16)), clip, timestep, noise
    )
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(float((noise - clip).square().mean()), rel=1e-6)


def test_shapes_that_do_not_match_are_refused():
    clip, timestep, noise = example()
    with pytest.raises(ValueError, match="one timestep per clip"):
        flow_matching_loss(Recorder(clip), clip, timestep[:2], noise)
    with pytest.raises(ValueError, match="noise like the clip"):
        flow_matching_loss(Recorder(clip), clip, timestep, noise[:, :1])
    with pytest.raises(ValueError, match="model gave"):
        flow_matching_loss(Recorder(clip[:, :1]), clip, timestep, noise)


@pytest.mark.parametrize("stratified", [True, False])
@pytest.mark.parametrize(
    ("mean", "std", "shift"), [(0.0, 1.0, 1.0), (-0.5, 1.5, 3.0), (0.3, 0.5, 7.0)]
)
def test_timesteps_are_logit_normal_then_shifted(stratified, mean, std, shift):
    generator = torch.Generator().manual_seed(5)
    draws = [
        sample_timesteps(10, shift, generator, mean=mean, std=std, stratified=stratified)
        for _ in range(2000)
    ]
    t = torch.cat(draws).double().sort().values
    assert float(t[0]) > 0
    assert float(t[-1]) < 1
    unshifted = t / (shift - (shift - 1) * t)
    uniform = torch.special.ndtr((unshifted.logit() - mean) / std)
    # Kolmogorov-Smirnov: 1.95 / sqrt(n) is passed in 99.9% of true cases, and the seed is fixed.
    expected = (torch.arange(len(t)) + 0.5) / len(t)
    assert float((uniform - expected).abs().max()) < 1.95 / math.sqrt(len(t))


@given(st.integers(1, 64), st.integers(0, 2**31), st.floats(0.1, 20))
def test_stratified_timesteps_fall_one_into_each_part(batch, seed, shift):
    t = sample_timesteps(batch, shift, torch.Generator().manual_seed(seed)).double()
    part = torch.special.ndtr((t / (shift - (shift - 1) * t)).logit()) * batch
    nearest = part.sort().values - 0.5 - torch.arange(batch)
    assert float(nearest.abs().max()) <= 0.5 + 1e-3


def test_any_place_of_a_stratified_batch_has_the_whole_distribution():
    generator = torch.Generator().manual_seed(0)
    first = torch.stack([sample_timesteps(4, generator=generator)[0] for _ in range(400)])
    counts = (torch.special.ndtr(first.double().logit()) * 4).long().bincount(minlength=4)
    assert int(counts.min()) > 60


def test_timesteps_repeat_with_their_generator():
    a, b, c = (sample_timesteps(8, 2.0, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert a.dtype == torch.float32
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@given(st.floats(0.05, 50), st.lists(st.floats(0, 1), min_size=2, max_size=8, unique=True))
def test_shift_keeps_the_ends_and_the_order(shift, times):
    t = torch.tensor(sorted(times), dtype=torch.float64)
    shifted = shift_timestep(t, shift)
    assert bool((shifted.diff() >= 0).all())
    torch.testing.assert_close(
        shift_timestep(torch.tensor([0.0, 1.0]), shift), torch.tensor([0.0, 1.0])
    )
    # Shifting back is shifting by the inverse.
    torch.testing.assert_close(shift_timestep(shifted, 1 / shift), t, rtol=1e-9, atol=1e-12)


def test_resolution_shift_follows_the_square_root():
    assert resolution_shift(75_600) == pytest.approx(5)
    assert resolution_shift(4 * 75_600) == pytest.approx(10)
    assert resolution_shift(1) == 1
    for bad in (0, math.nan):
        with pytest.raises(ValueError, match="num_tokens"):
            resolution_shift(bad)


def test_learning_rate_warms_up_and_falls_along_a_cosine():
    warm = [learning_rate_factor(step, 0.0, 4) for step in range(6)]
    assert warm == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    fall = [learning_rate_factor(10, progress, 0) for progress in (0, 0.25, 0.5, 1)]
    assert fall == pytest.approx([1, (1 + math.sqrt(0.5)) / 2, 0.5, 0])
    assert learning_rate_factor(10, 1.5, 0) == pytest.approx(0)
