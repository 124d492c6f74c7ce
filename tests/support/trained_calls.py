"""Attention calls of a model that has been trained: queries, keys, values and output gradients as
they really are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from tests.support.cases import LEARNED, Case, Inputs
from torch import Tensor

from freqformer import FreqFormerTransformer3DModel
from freqformer.attention import frequency_attention
from freqformer.config import FreqFormerConfig
from freqformer.training.objective import flow_matching_loss, sample_timesteps
from freqformer.training.synthetic import SyntheticClips

HEADS, LAYERS, PATCH = 3, 2, 4


def trained_calls(
    config: FreqFormerConfig,
    video: tuple[int, int, int],
    *,
    head_dim: int,
    steps: int,
    device: str = "cpu",
) -> list[tuple[Case, Inputs]]:
    """The call of every layer in one more step after `steps` steps on synthetic clips; nothing is
    scaled.

    Args:
        config: of the attention; one head is LOW, one MID and one HIGH.
        video: frames, height and width of the clips.
    """
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "num_layers": LAYERS,
        "num_attention_heads": HEADS,
        "attention_head_dim": head_dim,
        "patch_size": (1, PATCH, PATCH),
    }
    record = replace(config, allocation="thirds", routing="fixed", low_branch=False)
    model: Any = FreqFormerTransformer3DModel(**sizes, frequency=record)
    model.train().to(device)
    source = SyntheticClips(0, num_frames=video[0], height=video[1], width=video[2])
    clips = torch.stack([source.load(index).clip for index in range(4)]).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    calls: list[tuple[Case, Inputs]] = []

    def loss_of(step: int) -> Tensor:
        draw = torch.Generator().manual_seed(step)
        clip = clips[step % len(clips)][None]
        noise = torch.randn(clip.shape, generator=draw).to(device)
        return flow_matching_loss(
            model, clip, sample_timesteps(1, generator=draw).to(device), noise
        )

    for step in range(steps):
        loss_of(step).backward()
        optimizer.step()
        optimizer.zero_grad()
    with mock.patch("freqformer.attention.layer.frequency_attention", _recording(calls)):
        loss_of(steps).backward()
    # Layers went backwards last.
    return calls[::-1]


def _recording(calls: list[tuple[Case, Inputs]]) -> Any:
    """`frequency_attention`, which leaves its case and its inputs in `calls` when its gradient
    comes."""

    def attend(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
        out = frequency_attention(query, key, value, **given)
        allocation = tuple(tuple(bands) for bands in given["allocation"].tolist())
        case = Case(
            given["grid"],
            given["config"],
            allocation,
            query.shape[3],
            token_order=given["token_order"],
            learned=LEARNED,
        )

        def keep(grad_out: Tensor) -> None:
            inputs = Inputs(query, key, value, grad_out, None, given["parameters"])
            calls.append((case, inputs.map(lambda x: x.detach().clone())))

        out.register_hook(keep)
        return out

    return attend
