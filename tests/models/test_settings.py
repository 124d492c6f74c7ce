"""Settings and inputs of a wrong kind, and dense attention on request."""

from __future__ import annotations

import pytest
import torch
from tests.support.layers import weights_of
from tests.support.models import TIMESTEP, make_model, make_video, settings_of

from freqformer import FreqFormerTransformer3DModel

WRONG_KINDS = [
    ({"patch_size": 4}, "patch_size is 4"),
    ({"patch_size": (1, 2.0, 2)}, "patch_size is 2.0"),
    ({"patch_size": "122"}, "patch_size is '122'"),
    ({"num_attention_heads": "3"}, "num_attention_heads is '3'"),
    ({"num_attention_heads": True}, "num_attention_heads is True"),
    ({"num_layers": 1.5}, "num_layers is 1.5"),
    ({"in_channels": None}, "in_channels is None"),
    ({"attention_head_dim": None}, "attention_head_dim None"),
    ({"attention_head_dim": 8.0}, "attention_head_dim 8.0"),
    ({"cross_attention_dim": "16"}, "cross_attention_dim is '16'"),
    ({"cross_attention_dim": 0}, "cross_attention_dim is 0"),
    ({"frequency": [16]}, r"frequency is \[16\]"),
    ({"frequency": "tile"}, "frequency is 'tile'"),
    ({"frequency": {"routing": ["soft"]}}, r"routing is \['soft'\]"),
    ({"prior": 1}, "prior is 1"),
    ({"absolute_positions": 1}, "absolute_positions is 1"),
    ({"prediction_type": None}, "prediction_type is None"),
    ({"low_branch": "yes"}, "low_branch is 'yes'"),
    ({"allocation": 3}, "allocation is 3"),
    ({"allocation": "012"}, "allocation is '012'; choose one of high, thirds, dense: or a tuple"),
    ({"allocation": [0, "1", 2]}, "allocation is"),
]


@pytest.mark.parametrize(("options", "message"), WRONG_KINDS)
def test_settings_of_a_wrong_kind_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        FreqFormerTransformer3DModel(**settings_of(**options))


def test_layouts_and_timesteps_name_their_remedy():
    model, video = make_model(), make_video()
    for call, message in (
        (lambda: model(video.transpose(1, 2), TIMESTEP), r"axes look swapped, movedim\(2, 1\)"),
        (lambda: model(video.movedim(1, 4), TIMESTEP), r"axes look swapped, movedim\(4, 1\)"),
        (lambda: model(video[0], TIMESTEP), r"unsqueeze\(0\)"),
        (lambda: model(video[:, :1], TIMESTEP), "in_channels is 2"),
        (lambda: model(video, 500.0), r"timestep is 500.0; .* torch.full"),
        (
            lambda: model(video, TIMESTEP * 2),
            r"timestep is \[400.0, 1800.0\]; numbers from 0 \(clean\) to 1000",
        ),
        (lambda: model(video, -TIMESTEP), "timestep is"),
        (lambda: model.set_routing_table(model.frequency_config), "table is FreqFormerConfig"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_dense_on_request_is_the_dense_model():
    model, dense = make_model(routing="soft"), make_model(allocation="dense")
    for layer in model.attentions:
        torch.nn.init.constant_(layer.gates.bias, 0.3)
    dense.load_state_dict(
        {name: x for name, x in weights_of(model).items() if name in dense.state_dict()}
    )
    with torch.no_grad():
        before = model(make_video(), TIMESTEP).sample
        model.set_dense(True)
        assert torch.equal(
            model(make_video(), TIMESTEP).sample, dense(make_video(), TIMESTEP).sample
        )
        model.set_dense(False)
        assert torch.equal(model(make_video(), TIMESTEP).sample, before)
