"""The transformer: any size, both attentions, text, routing, checkpointing, saving."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.support.layers import weights_of
from tests.support.models import FREQUENCY, SIZE, TIMESTEP, make_model, make_video, settings_of

from freqformer import FreqFormerTransformer3DModel, Grid
from freqformer.grid import tile_layout
from freqformer.models.embeddings import patchify
from freqformer.routing import RoutingTable, routing_loss


def make_text() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(2, 7, 10, generator=generator), torch.tensor([[1] * 7, [1] * 3 + [0] * 4])


@pytest.mark.parametrize("options", [{}, {"allocation": "dense"}])
@pytest.mark.parametrize("shape", [(5, 8, 12), (1, 2, 2), (1, 6, 10), (7, 2, 26)])
def test_any_size_that_the_patch_divides(options, shape):
    model = make_model(**options)
    video = make_video(*shape)
    model(video, TIMESTEP).sample.square().mean().backward()
    assert model(video, TIMESTEP).sample.shape == video.shape
    assert model(video, TIMESTEP, return_dict=False)[0].shape == video.shape
    assert all(
        parameter.grad is not None
        for name, parameter in model.named_parameters()
        if "router" not in name
    )


def test_a_new_model_predicts_zero_and_its_blocks_change_nothing():
    model = FreqFormerTransformer3DModel(**settings_of(), cross_attention_dim=10)
    with torch.no_grad():
        assert model(make_video(), TIMESTEP, *make_text()).sample.abs().max() == 0
        model.proj_out.weight.copy_(torch.randn_like(model.proj_out.weight))
        deep = model(make_video(), TIMESTEP, *make_text()).sample
        del model.transformer_blocks[1:]
        assert torch.equal(model(make_video(), TIMESTEP, *make_text()).sample, deep)


def test_all_dense_heads_are_the_dense_model():
    banded = make_model(routing="fixed", allocation=[3, 3, 3])
    dense = make_model(allocation="dense")
    missing, unexpected = dense.load_state_dict(weights_of(banded), strict=False)
    assert missing == []
    assert all("summary" in name for name in unexpected)
    with torch.no_grad():
        expected = dense(make_video(), TIMESTEP).sample
        torch.testing.assert_close(
            banded(make_video(), TIMESTEP).sample, expected, rtol=1e-4, atol=1e-5
        )


def test_the_dense_model_has_the_same_parameters_but_router_and_summaries():
    names = set(make_model(cross_attention_dim=10).state_dict())
    extra = {name for name in names if "router" in name or "summary" in name}
    assert extra
    assert set(make_model(allocation="dense", cross_attention_dim=10).state_dict()) == names - extra


def test_an_axis_of_the_video_is_not_mistaken_for_another():
    """Output patches are where input patches were: only one token's input moves, and its own output
    moves most."""
    model = make_model()
    video, changed = make_video(), make_video()
    changed[:, :, 3, 2:4, 8:10] += 5
    with torch.no_grad():
        moved = model(changed, TIMESTEP).sample - model(video, TIMESTEP).sample
    strength = patchify(moved, (1, 2, 2)).norm(dim=-1)
    assert strength.argmax(-1).tolist() == [3 * 24 + 1 * 6 + 4] * 2


@pytest.mark.parametrize("mode", ["off", "all", "sampled"])
def test_checkpointing_changes_no_bit(mode):
    model, video = make_model(cross_attention_dim=10), make_video()
    model.set_router_training(mode)
    results = []
    for checkpointing in (False, True):
        model.zero_grad()
        (
            model.enable_gradient_checkpointing
            if checkpointing
            else model.disable_gradient_checkpointing
        )()
        torch.manual_seed(3)
        sample = model(video, TIMESTEP, *make_text()).sample
        costs = model.routing_costs(model.grid_for(video.shape))
        loss = sample.square().mean() + routing_loss(model.routing_logits, costs, budget=0.1)
        loss.backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        results.append((sample, loss, torch.rand(1), copy.deepcopy(gradients)))
    for plain, checkpointed in zip(results[0][:3], results[1][:3], strict=True):
        assert torch.equal(plain, checkpointed)
    assert all(
        torch.equal(gradient, results[1][3][name]) for name, gradient in results[0][3].items()
    )


def test_routing_is_reported_per_layer():
    model = make_model()
    assert model.routing_logits == model.allocations == [None, None]
    model(make_video(), TIMESTEP)
    assert [logits.shape for logits in model.routing_logits] == [(2, 3, 3)] * 2
    assert [torch.equal(bands, logits.argmax(-1)) for bands, logits in _routing(model)] == [
        True,
        True,
    ]
    fixed = make_model(routing="fixed", layer_allocations=[[0, 1, 2], [3, 2, 1]])
    fixed(make_video(), TIMESTEP)
    assert fixed.routing_logits == [None, None]
    assert [bands.tolist() for bands in fixed.allocations] == [[[0, 1, 2]] * 2, [[3, 2, 1]] * 2]


def _routing(model):
    return list(zip(model.allocations, model.routing_logits, strict=True))


def test_a_frozen_table_repeats_what_the_routers_chose():
    model, video = make_model(), make_video()
    with torch.no_grad():
        expected = model(video, TIMESTEP).sample
        observed = torch.stack(model.routing_logits, 1)
        table = RoutingTable.freeze(
            TIMESTEP / 1000, observed, model.frequency_config, num_buckets=4
        )
        model.set_routing_table(table)
        assert torch.equal(model(video, TIMESTEP).sample, expected)
        assert model.routing_logits == [None, None]
        model.set_routing_table(None)
        model(video, TIMESTEP)
        assert None not in model.routing_logits
    with pytest.raises(ValueError, match="table has 2 layers; the model has 3"):
        make_model(num_layers=3).set_routing_table(table)


def test_a_table_with_another_tile_moves_the_tile_order_too():
    free = make_model(frequency={**FREQUENCY, "tile": None})
    pinned = make_model()
    pinned.load_state_dict(free.state_dict())
    bands = torch.tensor([[[0, 1, 2], [2, 1, 0]]])
    outputs = []
    for model in (free, pinned):
        model.set_routing_table(
            RoutingTable(bands, torch.full_like(bands, 2), pinned.frequency_config)
        )
        with torch.no_grad():
            outputs.append(model(make_video(), TIMESTEP).sample)
    assert tile_layout(Grid(5, 4, 6)).tile != (2, 2, 3)
    assert torch.equal(*outputs)


def test_a_dense_model_takes_a_table_and_goes_back():
    model, video = make_model(allocation="dense"), make_video()
    dense = torch.full((1, 2, 3), 3)
    with torch.no_grad():
        expected = model(video, TIMESTEP).sample
        for bands, same in ((dense, True), (torch.tensor([[[0, 1, 2], [2, 1, 3]]]), False)):
            model.set_routing_table(
                RoutingTable(bands, torch.full_like(bands, 2), model.frequency_config)
            )
            sample = model(video, TIMESTEP).sample
            assert torch.allclose(sample, expected, rtol=1e-4, atol=1e-5) == same
            assert torch.equal(torch.stack(model.allocations, 1), bands.expand(2, -1, -1))
        model.set_routing_table(None)
        assert torch.equal(model(video, TIMESTEP).sample, expected)


def test_a_flop_budget_makes_heads_cheaper():
    model, video = make_model(), make_video()
    costs = torch.tensor(model.routing_costs(model.grid_for(video.shape)))
    with torch.no_grad():
        model(video, TIMESTEP)
        free = costs[torch.stack(model.allocations)].sum()
        model.set_flop_budget(float(costs[:3].min() / costs[3]) * 1.01)
        model(video, TIMESTEP)
    assert costs[torch.stack(model.allocations)].sum() < free


def test_every_layer_takes_the_chosen_computation():
    model = make_model()
    with torch.no_grad():
        expected = model(make_video(), TIMESTEP).sample
        model.set_impl("reference")
        chosen = model(make_video(), TIMESTEP).sample
    assert [layer.impl for layer in model.attentions] == ["reference"] * 2
    assert not torch.equal(chosen, expected)
    torch.testing.assert_close(chosen, expected, rtol=1e-4, atol=1e-5)


def test_masked_text_is_not_seen():
    model, video = make_model(cross_attention_dim=10), make_video()
    text, mask = make_text()
    with torch.no_grad():
        expected = model(video, TIMESTEP, text, mask).sample
        other = text.clone()
        other[1, 3:] = 50.0
        assert torch.equal(model(video, TIMESTEP, other, mask.bool()).sample, expected)
        cut = model(video[1:], TIMESTEP[1:], text[1:, :3]).sample
        torch.testing.assert_close(expected[1:], cut, rtol=1e-4, atol=1e-5)
        assert (model(video, TIMESTEP, other).sample - expected)[1].abs().max() > 1e-3


def test_a_sample_without_any_text_reads_nothing():
    model, video = make_model(cross_attention_dim=10), make_video()
    text, mask = make_text()
    mask[1] = 0
    sample = model(video, TIMESTEP, text, mask).sample
    with torch.no_grad():
        without = model(video, TIMESTEP, torch.randn_like(text), mask).sample
    assert torch.equal(sample[1], without[1])
    sample.square().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("options", [{}, {"allocation": "dense"}])
def test_half_precision_is_near_full_precision(options, tmp_path):
    model, video = make_model(**options), make_video()
    model.save_pretrained(tmp_path)
    half = FreqFormerTransformer3DModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    # Routers keep float32: rounding must not move a choice.
    assert all(p.dtype == torch.float32 for name, p in half.named_parameters() if "router" in name)
    with torch.no_grad():
        full = model(video, TIMESTEP).sample
        with torch.autocast("cpu", torch.bfloat16):
            mixed = model(video, TIMESTEP).sample
        for sample in (mixed, half(video.bfloat16(), TIMESTEP).sample):
            assert sample.dtype == torch.bfloat16
            assert (sample - full).norm() < 0.1 * full.norm()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"allocation": "dense", "cross_attention_dim": 10},
        {"routing": "fixed", "layer_allocations": [[0, 1, 2], [3, 2, 1]]},
        {"frequency": {**FREQUENCY, "band_features": "band_gains"}, "prior": "none"},
    ],
)
def test_saving_keeps_every_bit(options, tmp_path):
    model = make_model(**options)
    model.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    loaded = FreqFormerTransformer3DModel.from_pretrained(tmp_path)
    text = make_text() if options.get("cross_attention_dim") else ()
    with torch.no_grad():
        assert torch.equal(
            loaded(make_video(), TIMESTEP, *text).sample,
            model(make_video(), TIMESTEP, *text).sample,
        )
    assert loaded.frequency_config == model.frequency_config


def test_a_copy_after_a_call_works():
    model = make_model()
    sample = model(make_video(), TIMESTEP).sample
    assert torch.equal(copy.deepcopy(model)(make_video(), TIMESTEP).sample, sample)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_layers": 0}, "num_layers is 0"),
        ({"in_channels": 0}, "in_channels is 0"),
        ({"cross_attention_dim": -1}, "cross_attention_dim is -1"),
        ({"patch_size": (1, 2)}, "patch_size is"),
        ({"patch_size": (1, 0, 2)}, "patch_size is 0"),
        ({"attention_head_dim": 4}, "attention_head_dim 4"),
        ({"attention_head_dim": 9}, "attention_head_dim 9"),
        ({"frequency": {"windows": 3}}, "unknown fields"),
        ({"frequency": {"compression": float("nan")}}, "compression is nan"),
        ({"frequency": {"routing": "sparse"}}, "routing is 'sparse'"),
        ({"allocation": [0, 1]}, r"allocation is \[0, 1\]; 3 bands"),
        ({"layer_allocations": [[0, 1, 2]]}, "layer_allocations is .*; 2 lists of one band"),
        ({"layer_allocations": [[0, 1, 2], 1]}, "layer_allocations holds 1"),
        (
            {"layer_allocations": [[0, 1, 2]] * 2, "allocation": "dense"},
            "layer_allocations is given and frequency's allocation is 'dense'",
        ),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FreqFormerTransformer3DModel(**settings_of(**options))


def test_wrong_inputs_are_refused():
    model, reader = make_model(), make_model(cross_attention_dim=10)
    video, (text, mask) = make_video(), make_text()
    for call, message in (
        (
            lambda: model(video[:, :, :, 1:], TIMESTEP),
            r"is \(5, 7, 12\); multiples of patch_size \(1, 2, 2\)",
        ),
        (lambda: model(video[:, :, :0], TIMESTEP), "multiples of patch_size"),
        (lambda: model(video[0], TIMESTEP), "hidden_states has shape"),
        (lambda: model(video[:, :1], TIMESTEP), "hidden_states has shape"),
        (lambda: model(video, TIMESTEP[:1]), "timestep"),
        (lambda: model(video, torch.tensor(5.0)), "timestep"),
        (lambda: model(video.double(), TIMESTEP), "dtype torch.float64"),
        (lambda: model(video, TIMESTEP, text), "cross_attention_dim None"),
        (lambda: model(video, TIMESTEP, None, mask), "encoder_attention_mask is"),
        (lambda: reader(video, TIMESTEP), "encoder_hidden_states is None"),
        (lambda: reader(video, TIMESTEP, text[:1]), "encoder_hidden_states has shape"),
        (lambda: reader(video, TIMESTEP, text[..., 1:]), "encoder_hidden_states has shape"),
        (lambda: reader(video, TIMESTEP, text, mask[:, 1:]), "encoder_attention_mask is"),
        (
            lambda: reader(video, TIMESTEP, text, mask.float()),
            "encoder_attention_mask is torch.float32",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert model.grid_for((2, 2, 5, 8, 12)) == Grid(5, 4, 6)


def test_a_size_has_one_grid_object():
    """Compiled blocks know it by identity: another one would compile them anew at every step."""
    model = make_model()
    assert model.grid_for((2, 2, 5, 8, 12)) is make_model().grid_for((1, 2, 5, 8, 12))


@pytest.mark.parametrize("options", [{}, {"allocation": "dense"}])
def test_training_fits_one_clip(options):
    """The whole model learns: the velocity of a fixed noisy clip, to a small part of where it
    started."""
    torch.manual_seed(0)
    model = FreqFormerTransformer3DModel(**settings_of(**options))
    model.set_router_training("off" if options else "sampled")
    noisy, target = torch.randn(2, 2, 2, 5, 8, 12)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    losses = []
    for _ in range(25):
        loss = (model(noisy, TIMESTEP).sample - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("options", [{}, {"allocation": "dense"}])
def test_absolute_positions_tell_equal_patches_apart(options):
    video = torch.ones(2, 2, 4, 8, 12)
    outputs = []
    for absolute in (False, True, "space"):
        model = make_model(**options, absolute_positions=absolute)
        del model.transformer_blocks[:-1]
        with torch.no_grad():
            # Closed gates leave the embedding of the tokens alone.
            model.transformer_blocks[0].scale_shift_table.zero_()
            model.time_modulation.linear.weight.zero_()
            model.time_modulation.linear.bias.zero_()
            outputs.append(patchify(model(video, TIMESTEP).sample, (1, 2, 2)))
    assert torch.equal(outputs[0], outputs[0][:, :1].expand_as(outputs[0]))
    assert torch.pdist(outputs[1][0]).min() > 1e-4
    frames = outputs[2].unflatten(1, (4, -1))
    assert torch.equal(frames, frames[:, :1].expand_as(frames))
    assert torch.pdist(frames[0, 0]).min() > 1e-4
    with pytest.raises(ValueError, match="absolute_positions is 'time'"):
        make_model(**options, absolute_positions="time")


def test_a_predicted_clip_gives_its_velocity():
    video, timestep = make_video(), torch.tensor([20.0, 900.0])
    with torch.no_grad():
        clip = make_model()(video, timestep).sample
        velocity = make_model(prediction_type="sample")(video, timestep).sample
    # At noise level 0.02 the divisor is held at 0.05.
    torch.testing.assert_close(velocity[0], (video[0] - clip[0]) / 0.05)
    torch.testing.assert_close(velocity[1], (video[1] - clip[1]) / 0.9)
    new = FreqFormerTransformer3DModel(**SIZE, frequency=FREQUENCY, prediction_type="sample")
    torch.testing.assert_close(new(video, timestep).sample[1], video[1] / 0.9)
    with pytest.raises(ValueError, match="prediction_type is 'noise'"):
        make_model(prediction_type="noise")
