"""Small models of diffusers whose tokens two ranks share, against one process: the largest error of
each case goes to FOLDER/errors-RANK.json. A script of `tests.support.ranks`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers import (
    ContextParallelConfig,
    LTX2VideoTransformer3DModel,
    LTXVideoTransformer3DModel,
    MiniMaxH3Transformer3DModel,
    WanTransformer3DModel,
)
from tests.support.enabled_models import CONFIG, DENSE, HIGH, LOW, MID, layers_of, make_table
from tests.support.ranks import join
from tests.support.recorded_calls import RecordedCalls
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.distributed.fsdp import fully_shard

from freqformer.distributed import exchange
from freqformer.distributed.collective import GRAPHS_HOLD_EXCHANGES
from freqformer.grid import Grid
from freqformer.integrations.diffusers import (
    disable_frequency_attention,
    enable_frequency_attention,
)
from freqformer.integrations.diffusers.query_key import Queries
from freqformer.integrations.diffusers.ulysses import attend_across, attend_around, ulysses_of
from freqformer.ops.parameters import AttentionParameters, KnownBands

LAYERS, HEADS = 3, 4
SIZE = (5, 6, 9)
TIMESTEPS = torch.tensor([900.0, 100.0])
"""Of two samples, whose buckets have other bands."""
ROWS = [[HIGH, LOW, MID, DENSE], [LOW, LOW, HIGH, MID], [DENSE] * HEADS]
OTHER = [[LOW, LOW, LOW, HIGH], [MID, HIGH, HIGH, MID], [DENSE] * HEADS]


def wan() -> Any:
    torch.manual_seed(0)
    return WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=HEADS, attention_head_dim=24, in_channels=4,
        out_channels=4, text_dim=16, freq_dim=32, ffn_dim=64, num_layers=LAYERS,
        rope_max_seq_len=32,
    )  # fmt: skip


def ltx() -> Any:
    torch.manual_seed(0)
    return LTXVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=HEADS, attention_head_dim=24,
        cross_attention_dim=HEADS * 24, num_layers=LAYERS, caption_channels=16,
    )  # fmt: skip


def call_wan(model: Any, timesteps: Tensor = TIMESTEPS) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    frames, height, width = SIZE
    return model(
        hidden_states=torch.randn(2, 4, frames, 2 * height, 2 * width, generator=draw),
        timestep=timesteps,
        encoder_hidden_states=torch.randn(2, 8, 16, generator=draw),
        return_dict=False,  # a record is refused by diffusers where ranks share
    )[0]


def call_ltx(model: Any) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    frames, height, width = SIZE
    return model(
        hidden_states=torch.randn(2, frames * height * width, 4, generator=draw),
        encoder_hidden_states=torch.randn(2, 8, 16, generator=draw),
        timestep=TIMESTEPS,
        encoder_attention_mask=None,
        num_frames=frames,
        height=height,
        width=width,
        return_dict=False,
    )[0]


def minimax_h3() -> Any:
    torch.manual_seed(0)
    return MiniMaxH3Transformer3DModel(
        num_attention_heads=HEADS, attention_head_dim=32, hidden_size=24, num_layers=LAYERS,
        num_refiner_layers=1, ffn_dim=32, in_channels=4, audio_in_channels=4, text_dim=16,
        freq_dim=32, time_embed_hidden_dim=32, time_embed_dim=16, rope_freq_dim=4,
    )  # fmt: skip


def call_minimax_h3(model: Any) -> Tensor:
    """[text | audio | video], 14 exact tokens before the video."""
    draw = torch.Generator().manual_seed(1)
    text = torch.arange(8.0)[:, None] * torch.tensor([1.0, 0, 0])
    sound = 8 + torch.rand(6, 3, generator=draw)
    video = torch.cartesian_prod(*(torch.arange(float(side)) for side in SIZE))
    video[:, 0] += 8
    places = torch.cat([text, sound, video])
    tags = torch.tensor([1] * len(text) + [2] * len(sound) + [0] * len(video))
    return model(
        hidden_states=torch.randn(1, len(video), 16, generator=draw),
        audio_hidden_states=torch.randn(1, len(sound), 4, generator=draw),
        encoder_hidden_states=torch.randn(1, len(text), 16, generator=draw),
        timestep=torch.tensor([0.9]),
        timestep_indices=torch.zeros(len(places), dtype=torch.long),
        token_tags=tags,
        position_ids=places,
        video_indices=(tags == 0).nonzero()[:, 0],
        audio_indices=(tags == 2).nonzero()[:, 0],
        text_indices=(tags == 1).nonzero()[:, 0],
        return_dict=False,
    )[0]


def ltx2(**variant: Any) -> Any:
    torch.manual_seed(0)
    return LTX2VideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=HEADS, attention_head_dim=16,
        cross_attention_dim=HEADS * 16, audio_in_channels=4, audio_out_channels=4,
        audio_num_attention_heads=HEADS, audio_attention_head_dim=8,
        audio_cross_attention_dim=HEADS * 8, num_layers=LAYERS, caption_channels=16,
        rope_double_precision=False, **variant,
    )  # fmt: skip


def call_ltx2(model: Any, mask: Tensor | None = None) -> Tensor:
    """Of video and sound, one after the other: audio of an odd length, which no rank shares."""
    draw = torch.Generator().manual_seed(1)
    frames, height, width = SIZE
    outputs = model(
        hidden_states=torch.randn(2, frames * height * width, 4, generator=draw),
        audio_hidden_states=torch.randn(2, 7, 4, generator=draw),
        encoder_hidden_states=torch.randn(2, 8, 16, generator=draw),
        audio_encoder_hidden_states=torch.randn(2, 8, 16, generator=draw),
        timestep=TIMESTEPS,
        encoder_attention_mask=mask,
        audio_encoder_attention_mask=mask,
        num_frames=frames,
        height=height,
        width=width,
        audio_num_frames=7,
        return_dict=False,
    )
    return torch.cat(outputs, 1)


def share(model: Any, **settings: Any) -> None:
    model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2, **settings))


def enable(model: Any) -> None:
    enable_frequency_attention(model, make_table([OTHER, ROWS], CONFIG))


def shard(model: Any) -> None:
    """Weights over the ranks too, by FSDP2."""
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)


TOKENS = math.prod(SIZE)
EXACT = {"MiniMax-H3": 14}
"""Tokens beside the video's, of which ranks have a share too."""
FAMILIES = {
    "Wan": (wan, call_wan),
    "LTX": (ltx, call_ltx),
    "LTX-2": (ltx2, partial(call_ltx2, mask=torch.ones(2, 8))),
    "LTX-2.3": (partial(ltx2, rope_type="split", gated_attn=True, perturbed_attn=True), call_ltx2),
    "MiniMax-H3": (minimax_h3, call_minimax_h3),
}
FAILING = ("LTX-2", "LTX-2.3")
"""That can't run on two ranks by diffusers alone."""
ORDERS: dict[str, tuple[Callable[[Any], None], ...]] = {
    "parallelism first": (share, enable),
    "frequency attention first": (enable, share),
}


def note_tokens(seen: list[int], _: Any, args: tuple, named: dict[str, Any]) -> None:
    first, *_ = (*args, *named.values())
    seen.append(first.shape[1])


def errors_of(name: str) -> dict[str, float]:
    make, call = FAMILIES[name]
    alone = make().eval()
    dense = call(alone)
    enable(alone)
    expected = call(alone).detach()
    errors = {"no error where bands matter": float(torch.allclose(dense, expected, atol=1e-3))}
    for order, steps in ORDERS.items():
        model = make().eval()
        for step in steps:
            step(model)
        seen: list[int] = []
        noted = partial(note_tokens, seen)
        layers_of(model)[0].register_forward_pre_hook(noted, with_kwargs=True)
        errors[order] = error(call(model), expected)
        errors[f"{order}, tokens of a rank"] = float(2 * seen[0] != TOKENS + EXACT.get(name, 0))
        disable_frequency_attention(model)
        if name not in FAILING:
            errors[f"{order}, taken back"] = error(call(model), dense)
    return errors


def uneven_error() -> float:
    """Of attention over 135 tokens, 68 and 67: gloo can't gather what diffusers cuts so."""
    model = wan()
    share(model, ulysses_anything=True)
    context = ulysses_of(model._parallel_config)
    assert context is not None
    draw = torch.Generator().manual_seed(1)
    qkv = [torch.randn(2, 135, HEADS, 16, generator=draw) for _ in range(3)]
    bands = torch.tensor([[HIGH, LOW, MID, DENSE], [LOW, LOW, MID, HIGH]])
    known = KnownBands(bands, (LOW, MID, HIGH, DENSE))
    named: Any = {"grid": Grid(5, 3, 9), "allocation": known, "config": CONFIG}
    query, key, value = (x.tensor_split(2, 1)[context.rank] for x in qkv)
    queries = Queries(query, key, AttentionParameters())
    own = attend_across(queries, lambda: value, context, lambda out, _: out, **named)
    whole = attend_around(tuple(qkv), **named).flatten(2)
    return error(own, whole.tensor_split(2, 1)[context.rank])


def gradient_error() -> float:
    """Of a loss that both ranks take, summed over them."""
    made = []
    for shared in (False, True):
        model = wan().train()
        if shared:
            share(model)
        enable(model)
        (call_wan(model).square().sum()).backward()
        made.append(model)
    worst = 0.0
    for own, other in zip(made[1].blocks.parameters(), made[0].blocks.parameters(), strict=True):
        if other.grad is not None:
            grad = torch.zeros_like(other) if own.grad is None else own.grad
            torch.distributed.all_reduce(grad)
            worst = max(worst, error(grad, other.grad))
    return worst


def sharded_error() -> float:
    alone, model = wan().eval(), wan().eval()
    enable(alone)
    share(model)
    shard(model)
    enable(model)
    with torch.no_grad():
        return error(call_wan(model), call_wan(alone))


def compiled_errors() -> dict[str, float]:
    """Of attention that is compiled, at timesteps with other bands, and how many graphs there are
    beside one. Blocks can't be compiled whole: diffusers' hook on the first can't be traced."""
    alone, model = wan().eval(), wan().eval()
    enable(alone)
    share(model)
    enable(model)
    counter = CompileCounterWithBackend("aot_eager")
    *banded, _dense = layers_of(model)
    for layer in banded:
        layer.compile(backend=counter, fullgraph=GRAPHS_HOLD_EXCHANGES)
    worst = 0.0
    with torch.no_grad():
        for timesteps in (TIMESTEPS, TIMESTEPS.flip(0), TIMESTEPS.clamp_max(150)):
            worst = max(worst, error(call_wan(model, timesteps), call_wan(alone, timesteps)))
    more = counter.frame_count - 1 if GRAPHS_HOLD_EXCHANGES else 0
    return {"compiled": worst, "other graphs": more}


def preset_error() -> float:
    """Of the preset, whose heads choose their tiles on the rank that computes them."""
    alone, model = wan().eval(), wan().eval()
    share(model)
    dials: dict[str, Any] = {"start_percent": 0, "end_percent": 1, "min_tokens": 1}
    handles = [enable_frequency_attention(x, density=0.7, **dials) for x in (alone, model)]
    with torch.no_grad():
        found = error(call_wan(model), call_wan(alone))
    assert all((handle.density or 1.0) < 0.9 for handle in handles)
    return found


def calls_of(name: str) -> str:
    """What the first layer projects, and all exchange, in order."""
    make, call = FAMILIES[name]
    model = make().eval()
    share(model)
    enable(model)
    with torch.no_grad(), RecordedCalls(layers_of(model)[0]) as recorded:
        call(model)
    return " ".join(recorded.calls)


def failures_alone() -> dict[str, str]:
    """What models fail with by diffusers alone, each on both ranks."""
    calls: dict[str, Callable[[], Tensor]] = {}
    for name in FAILING:
        make, call = FAMILIES[name]
        calls[name] = partial(call, shared(make))
    masked: dict[str, Any] = {"mask": torch.tensor([[1.0] * 8, [1.0] * 5 + [0.0] * 3])}
    calls["LTX-2, masked"] = partial(call_ltx2, shared(ltx2, enable), **masked)
    return {name: failure_of(call) for name, call in calls.items()}


def shared(make: Callable[[], Any], *steps: Callable[[Any], None]) -> Any:
    model = make().eval()
    for step in (*steps, share):
        step(model)
    return model


def failure_of(call: Callable[[], Tensor]) -> str:
    try:
        call()
    except RuntimeError as failed:
        return str(failed)
    return ""


def refusal() -> str:
    model = wan().eval()
    model.enable_parallelism(config=ContextParallelConfig(ring_degree=2))
    enable(model)
    try:
        call_wan(model)
    except ValueError as refused:
        return str(refused)
    return ""


def error(found: Tensor, expected: Tensor) -> float:
    return float(((found - expected).abs().max() / expected.abs().max()).detach())


if __name__ == "__main__":
    folder, rank, _ = join()
    # diffusers divides by the number of GPUs, of which there are none.
    torch.accelerator.device_count = lambda: 1
    exchange.SPLIT_TOKENS = 100  # outputs come back in two messages, but those of 68 tokens in one
    errors: dict[str, Any] = {name: errors_of(name) for name in FAMILIES}
    errors["Wan"] |= {"gradients": gradient_error(), "sharded weights": sharded_error()}
    errors["Wan"] |= {"uneven": uneven_error(), "preset": preset_error()}
    errors["Wan"] |= compiled_errors()
    errors["ring"] = refusal()
    errors["alone"] = failures_alone()
    errors["calls"] = {name: calls_of(name) for name in FAMILIES}
    (folder / f"errors-{rank}.json").write_text(json.dumps(errors), encoding="utf-8")
