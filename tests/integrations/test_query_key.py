"""Queries and keys come to the operation raw, and it normalises and turns them as models do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from tests.integrations.test_ltx2 import VARIANTS
from tests.integrations.test_ltx2 import call as ltx2_call
from tests.integrations.test_ltx2 import make_model as make_ltx2
from tests.support.enabled_models import EVERY, MID, layers_of, uniform
from tests.support.tiny_transformers import WAN, wan_inputs
from torch import Tensor

from freqformer.integrations.diffusers import enable_frequency_attention, processor
from freqformer.ops.parameters import AttentionParameters

SIZE = (5, 6, 9)
Run = Callable[[Any], Tensor]


def wan() -> Any:
    torch.manual_seed(0)
    model = WanTransformer3DModel(**WAN).eval()
    for layer in layers_of(model):
        # Weights of one would hide a norm that forgets them.
        torch.nn.init.normal_(layer.norm_q.weight, 1.0, 0.3)
        torch.nn.init.normal_(layer.norm_k.weight, 1.0, 0.3)
    return model


def run_wan(model: Any) -> Tensor:
    return model(**wan_inputs([500.0], SIZE)).sample


def told(model: Any, run: Run) -> tuple[AttentionParameters, Tensor, int]:
    """What the operation was told last, the output, and how often a norm's module was called."""
    seen: list[AttentionParameters] = []
    calls: list[object] = []
    attend = processor.attend_around

    def spy(*given: Any, parameters: AttentionParameters, **named: Any) -> Tensor:
        seen.append(parameters)
        return attend(*given, parameters=parameters, **named)

    kinds = {type(layer.norm_q) for layer in layers_of(model)}
    (kind,) = kinds
    forward = kind.forward
    norms = {id(norm) for layer in layers_of(model) for norm in (layer.norm_q, layer.norm_k)}

    def counted(self: Any, *given: Any) -> Tensor:
        if id(self) in norms:
            calls.append(self)
        return forward(self, *given)

    table = uniform(model, [MID, MID], EVERY)
    with (
        mock.patch.object(processor, "attend_around", spy),
        mock.patch.object(kind, "forward", counted),
        enable_frequency_attention(model, table),
    ):
        out = run(model)
    return seen[-1], out, len(calls)


def test_no_norm_is_run_before_the_operation() -> None:
    model = wan()
    parameters, out, calls = told(model, run_wan)
    assert calls == 0
    assert parameters.norm_across_heads
    assert parameters.query_norm is not None
    assert parameters.query_norm.shape == (2, 24)
    assert parameters.rotation is not None
    assert parameters.rotation.pairs == "interleaved"
    torch.testing.assert_close(out, run_wan(model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("variant", "pairs"), [("2.0", "interleaved"), ("2.3", "halved")])
def test_pairs_of_ltx2(variant: str, pairs: str) -> None:
    torch.manual_seed(0)
    parameters, _, calls = told(make_ltx2(VARIANTS[variant]), ltx2_call)
    assert calls == 0
    assert parameters.rotation is not None
    assert parameters.rotation.pairs == pairs
    assert parameters.rotation.cos.shape[2] == 2  # every head has its own angles


def hooked(model: Any) -> None:
    for layer in layers_of(model):
        layer.norm_q.register_forward_hook(lambda _module, _given, out: 2 * out)


def replaced_forward(model: Any) -> None:
    """As accelerate does for an offload."""
    for layer in layers_of(model):
        norm = layer.norm_k
        own = norm.forward
        norm.forward = lambda x, own=own: own(x) / 2


def other_eps(model: Any) -> None:
    for layer in layers_of(model):
        layer.norm_k.eps = 0.5


@pytest.mark.parametrize("change", [hooked, replaced_forward, other_eps])
def test_norms_that_are_more_than_their_weights_are_called(change: Callable[[Any], None]) -> None:
    model = wan()
    plain = run_wan(model)
    change(model)
    wanted = run_wan(model)
    assert not torch.allclose(plain, wanted, rtol=1e-3)
    parameters, out, calls = told(model, run_wan)
    assert calls > 0
    assert parameters.query_norm is None
    torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-5)


def test_a_layer_norm_is_called() -> None:
    """CogVideoX has one; its rotary embedding is the operation's all the same."""
    torch.manual_seed(0)
    model = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=16,
        text_embed_dim=16,
        num_layers=2,
        sample_width=18,
        sample_height=12,
        sample_frames=17,
        max_text_seq_length=7,
        use_rotary_positional_embeddings=True,
    ).eval()
    angle = torch.randn(5 * 6 * 9, 8).repeat_interleave(2, -1)

    def run(model: Any) -> Tensor:
        draw = torch.Generator().manual_seed(1)
        return model(
            hidden_states=torch.randn(1, 5, 4, 12, 18, generator=draw),
            encoder_hidden_states=torch.randn(1, 7, 16, generator=draw),
            timestep=torch.tensor([500.0]),
            image_rotary_emb=(angle.cos(), angle.sin()),
        ).sample

    parameters, out, calls = told(model, run)
    assert calls > 0
    assert parameters.query_norm is None
    assert parameters.rotation is not None
    torch.testing.assert_close(out, run(model), rtol=1e-4, atol=1e-5)


def test_bands_that_only_a_trained_layer_knows_are_refused() -> None:
    model = wan()
    table = uniform(model, [MID, MID], replace(EVERY, band_features="own_band"))
    with (
        enable_frequency_attention(model, table),
        pytest.raises(ValueError, match="'own_band', which only a trained layer knows"),
    ):
        run_wan(model)
