"""torch.compile of the repeated blocks of diffusers' transformers with frequency attention, as a
program: `python -m tests.support.compiled_pipelines`.

It prints, for each of them, how many graphs there are over four layers, eight steps and three
prompts, and the largest difference from what was not compiled, over the largest entry.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.transformers.transformer_ltx import LTXVideoTransformer3DModel
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from tests.support import tiny_transformers
from tests.support.tiny_pipelines import generate, tiny_wan_pipeline, tiny_wan_transformer
from torch._dynamo.testing import CompileCounterWithBackend

from freqformer.config import Band, FreqFormerConfig
from freqformer.integrations.diffusers import enable_frequency_attention
from freqformer.routing import RoutingTable
from freqformer.training_free.schedule import DENSITY_SCHEDULES

LOW, MID, HIGH, DENSE = map(int, Band)
DENSITY = {"wan": 0.52, "hunyuan_video15": 0.55, "ltx": 0.667}
"""At which all layers keep two of the four tiles."""
BETWEEN = 0.45
"""At which layers of Wan differ by a tile."""
SIZE = (5, 8, 10)
STEPS = 8


def wan_pipeline() -> Any:
    pipe = tiny_wan_pipeline()
    pipe.transformer = tiny_wan_transformer(layers=4)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    return pipe


def wan() -> None:
    """A whole pipeline, with guidance in two calls."""
    cases = [(schedule, DENSITY["wan"]) for schedule in DENSITY_SCHEDULES]
    for schedule, density in (*cases, ("constant", BETWEEN)):
        pipe = wan_pipeline()
        dials: dict[str, Any] = {
            "density": density,
            "min_tokens": 1,
            "density_schedule": schedule,
        }
        with enable_frequency_attention(pipe, **dials):
            counted(
                f"wan {schedule} {density}",
                pipe.transformer,
                lambda seed, pipe=pipe: generate(
                    pipe, seed=seed, num_inference_steps=STEPS, output_type="latent"
                ),
            )


def calibrated_table() -> RoutingTable:
    """As calibration makes them: heads of every layer and bucket are one of four kinds, or
    dense."""
    kinds = (
        ([MID, MID], 1),
        ([MID, MID], 2),
        ([LOW, MID], 3),
        ([DENSE, DENSE], 0),
        ([HIGH, LOW], 3),
    )
    buckets = 20
    # Every layer has another order, so that each kind is met in each of them.
    chosen = [
        [kinds[(place + layer) % len(kinds)] for layer in range(4)] for place in range(buckets)
    ]
    bands = torch.tensor([[heads for heads, _ in row] for row in chosen])
    tiles = torch.tensor([[[count] * 2 for _, count in row] for row in chosen])
    return RoutingTable(bands, tiles, FreqFormerConfig(tile=(4, 4, 4), summary_tokens=4))


def calibrated() -> None:
    """The same with a table in which layers and steps differ."""
    pipe = wan_pipeline()

    def run(seed: int) -> torch.Tensor:
        return generate(pipe, seed=seed, num_inference_steps=STEPS, output_type="latent")

    with enable_frequency_attention(pipe, calibrated_table()):
        counted("calibrated", pipe.transformer, run)


def trained() -> None:
    """Gradients of all weights by the same table, at eight timesteps."""
    torch.manual_seed(0)
    model: Any = tiny_wan_transformer(layers=4).train()
    draw = torch.Generator().manual_seed(0)
    video = torch.randn(1, model.config.in_channels, *SIZE, generator=draw)
    prompt = torch.randn(1, 6, model.config.text_dim, generator=draw)

    def run(seed: int) -> torch.Tensor:
        found = []
        for step in range(STEPS):
            model.zero_grad()
            timestep = torch.tensor([990.0 - 120 * step])
            model(video + seed, timestep, prompt).sample.square().mean().backward()
            found += [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        return torch.cat(found)

    with enable_frequency_attention(model, calibrated_table()):
        counted("trained", model, run)


def steps_of(
    model: Any, density: float, given: Callable[[int], dict[str, Any]]
) -> Callable[[int], torch.Tensor]:
    """Calls at all of a sampler's timesteps."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(STEPS)
    enable_frequency_attention(
        model,
        density=density,
        min_tokens=1,
        scheduler=scheduler,
        density_schedule="constant",
    )

    def run(seed: int) -> torch.Tensor:
        inputs = given(seed)
        outputs = [model(timestep=step[None], **inputs).sample for step in scheduler.timesteps]
        return torch.stack(outputs)

    return run


def hunyuan_video15() -> None:
    """Video and text, of which a mask hides a part."""
    model = tiny_transformers.hunyuan_video15()
    model._repeated_blocks = ["HunyuanVideo15TransformerBlock"]

    def given(seed: int) -> dict[str, Any]:
        draw = torch.Generator().manual_seed(seed)
        return {
            "hidden_states": torch.randn(1, 4, *SIZE, generator=draw),
            "encoder_hidden_states": torch.randn(1, 6, 16, generator=draw),
            "encoder_hidden_states_2": torch.randn(1, 4, 8, generator=draw),
            "image_embeds": torch.zeros(1, 3, 12),
            "encoder_attention_mask": (torch.arange(6)[None] < 4).long(),
            "encoder_attention_mask_2": (torch.arange(4)[None] < 2).long(),
        }

    counted("hunyuan_video15", model, steps_of(model, DENSITY["hunyuan_video15"], given))


def ltx() -> None:
    """Video behind keyframes, whose grid is found by coordinates."""
    torch.manual_seed(0)
    model = LTXVideoTransformer3DModel(**tiny_transformers.LTX | {"num_layers": 4}).eval()
    _, height, width = SIZE
    places = torch.cartesian_prod(*(torch.arange(side) for side in SIZE)).float()
    coordinates = torch.cat([places[2 * height * width : 3 * height * width], places]).T[None]

    def given(seed: int) -> dict[str, Any]:
        draw = torch.Generator().manual_seed(seed)
        return {
            "hidden_states": torch.randn(1, coordinates.shape[2], 4, generator=draw),
            "encoder_hidden_states": torch.randn(1, 7, 16, generator=draw),
            "encoder_attention_mask": torch.ones(1, 7),
            "video_coords": coordinates,
        }

    counted("ltx", model, steps_of(model, DENSITY["ltx"], given))


def counted(name: str, model: Any, run: Callable[[int], torch.Tensor]) -> None:
    """Compare and count."""
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    with torch.set_grad_enabled(model.training):
        wanted = run(0)
        model.compile_repeated_blocks(backend=counter, fullgraph=True)
        difference = float((run(0) - wanted).abs().max() / wanted.abs().max())
        run(1)
        run(2)
    print(name, counter.frame_count, "graphs", "same" if difference < 1e-4 else difference)


if __name__ == "__main__":
    wan()
    calibrated()
    trained()
    hunyuan_video15()
    ltx()
