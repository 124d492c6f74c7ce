"""A routing table knows the model that it was made from."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from freqformer import FreqFormerConfig, FreqFormerTransformer3DModel
from freqformer.routing import RoutingTable
from freqformer.routing.origin import origin_of

CONFIG = FreqFormerConfig(tile=(1, 2, 2), mid_tiles=2)


def make_model(seed: int, layers: int = 2) -> FreqFormerTransformer3DModel:
    torch.manual_seed(seed)
    sizes = {
        "patch_size": (1, 2, 2),
        "num_layers": layers,
        "num_attention_heads": 3,
        "attention_head_dim": 8,
    }
    return FreqFormerTransformer3DModel(**sizes, frequency=FreqFormerConfig.dense())


def make_table(model: FreqFormerTransformer3DModel) -> RoutingTable:
    layers = model.attentions
    logits = torch.randn(5, len(layers), 3, 3)
    return RoutingTable.freeze(torch.rand(5), logits, CONFIG, num_buckets=2, layers=layers)


@pytest.mark.parametrize("layers", [1, 2])
def test_another_model_of_the_same_shape_refuses_it(tmp_path, layers):
    """F93."""
    model, other = make_model(0, layers), make_model(1, layers)
    make_table(model).save(tmp_path)
    table = RoutingTable.load(tmp_path)
    model.set_routing_table(table)
    with pytest.raises(
        ValueError, match=r"made from another model: its weights agree by -?0\.\d\d .*origin=None"
    ):
        other.set_routing_table(table)
    assert other.attentions[0].table_bands is None
    other.set_routing_table(replace(table, origin=None))


def test_the_same_model_takes_it_in_every_dress(tmp_path):
    model = make_model(0)
    table = make_table(model)
    model.save_pretrained(tmp_path)
    FreqFormerTransformer3DModel.from_pretrained(tmp_path, dtype=torch.bfloat16).set_routing_table(
        table
    )
    tuned = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter += 0.2 * parameter.std().nan_to_num() * torch.randn_like(parameter)
    tuned.set_routing_table(table)


def test_what_can_not_be_compared_passes():
    model = make_model(0)
    table = make_table(model)
    assert origin_of([nn.Linear(3, 3)]) is None
    assert origin_of([]) is None
    table.check_layers(make_model(1).to("meta").attentions)
    broken = make_model(1)
    broken.attentions[0].to_out.weight.data.fill_(torch.nan)
    table.check_layers(broken.attentions)
