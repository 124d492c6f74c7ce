"""MiniMax-H3: what training makes of captioned videos and asks its transformer is what its own
pipeline does, and what a run leaves is what that pipeline loads."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.modular_pipelines.minimax_h3.before_denoise import patchify_video_latents
from diffusers.modular_pipelines.minimax_h3.modular_pipeline import MiniMaxH3ModularPipeline
from safetensors.torch import load_file
from tests.support.tiny_finetuning import add_lora, lora_config, with_run
from tests.support.tiny_minimax import (
    CAPTIONS,
    FRAMES,
    LATENTS,
    RATE,
    SIDE,
    load_minimax,
    make_minimax,
    minimax_cache,
)
from tests.support.tiny_training import changed
from torch import Tensor

from freqformer.generation.lora import load_loras
from freqformer.integrations.diffusers import enable_frequency_attention
from freqformer.integrations.diffusers.velocity.minimax_h3 import sound_level
from freqformer.media import read_clip, read_sound
from freqformer.models.latents import decode
from freqformer.training.cache.making import make_cache
from freqformer.training.cache.reading import LatentCache
from freqformer.training.finetuning.model import finetuned_model
from freqformer.training.loop import train
from freqformer.training.objective import flow_matching_loss

pytestmark = pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
SHORTEST = 124
"""Frames of the least video that its pipeline makes."""
DENSITY = 0.8
CALL: dict[str, Any] = {"height": SIDE, "width": SIDE, "num_frames": SHORTEST}


@pytest.fixture(scope="module")
def minimax(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `pipe`, `videos` and `cache`; not to be changed."""
    return make_minimax(tmp_path_factory.mktemp("minimax"))


@pytest.fixture(scope="module")
def pipe(minimax: Path) -> Any:
    return load_minimax(minimax / "pipe")


def given(cache: LatentCache, number: int) -> dict[str, Tensor]:
    """What the model is told of a clip, of a batch of one."""
    held = cache.clip(number, torch.Generator().manual_seed(number))
    text = cache.text(cache.index.clips[number].text)
    told = {"encoder_hidden_states": text, **held.conditions}
    return {name: one[None] for name, one in told.items()}


def spied(pipe: Any, prompt: str, steps: int) -> list[tuple[dict[str, Any], Tensor]]:
    """The arguments of the pipeline's own calls of its transformer, and the video's answer."""
    calls: list[tuple[dict[str, Any], Tensor]] = []

    def note(_module: Any, _given: Any, named: dict[str, Any], made: Any) -> None:
        kept = {name: x.clone() for name, x in named.items() if isinstance(x, Tensor)}
        calls.append((kept, made[0].clone()))

    hook = pipe.transformer.register_forward_hook(note, with_kwargs=True)
    generator = torch.Generator().manual_seed(3)
    pipe(prompt=prompt, num_inference_steps=steps, generator=generator, output="latents", **CALL)
    hook.remove()
    return calls


def test_the_transformer_is_asked_as_by_its_pipeline(
    minimax: Path, pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = LatentCache(minimax / "cache")
    model = finetuned_model(lora_config(minimax, minimax / "unused", density=1.0))
    seen: list[dict[str, Any]] = []
    for (own, answer), number in zip(spied(pipe, CAPTIONS[0], 4), range(3), strict=True):
        # Latents as the pipeline unpacks them: the inverse of what it packs.
        shape = (1, 24, 37, LATENTS, LATENTS)
        places = patchify_video_latents(torch.arange(24.0 * 37 * LATENTS**2).view(shape), (1, 2, 2))
        latents = torch.empty(shape).flatten()
        latents[places.flatten().long()] = own["hidden_states"].flatten()
        rows = own["audio_hidden_states"]
        with monkeypatch.context() as patched:
            patched.setattr(
                model.transformer,
                "forward",
                lambda forward=model.transformer.forward, **named: (
                    seen.append(named) or forward(**named)
                ),
            )
            (velocity,) = model(
                latents.view(shape),
                1000 * (1 - own["timestep"].min()).view(1),
                cache.text(cache.index.clips[0].text)[None],
                sound=rows,
                sound_noise=rows,
            )
        found = seen[number]
        assert found.keys() - {"return_dict"} == own.keys()
        for name in ("position_ids", "token_tags", "video_indices", "audio_indices"):
            assert torch.equal(found[name], own[name])
        assert torch.equal(found["text_indices"], own["text_indices"])
        assert torch.equal(found["hidden_states"], own["hidden_states"])
        # A cache keeps text in bfloat16.
        text = own["encoder_hidden_states"]
        assert torch.equal(found["encoder_hidden_states"], text.bfloat16().float())
        by_row, own_by_row = (x["timestep"][x["timestep_indices"]] for x in (found, own))
        torch.testing.assert_close(by_row, own_by_row, rtol=0, atol=2e-7)
        torch.testing.assert_close(found["audio_hidden_states"], rows, rtol=1e-6, atol=1e-6)
        packed = patchify_video_latents(velocity, (1, 2, 2))
        torch.testing.assert_close(-packed, answer[0], rtol=0.02, atol=0.02)
    assert len(seen) == 3


def test_the_sound_s_level_is_that_of_the_same_step(pipe: Any) -> None:
    for steps in (5, 50):
        for sampler in (pipe.scheduler, pipe.audio_scheduler):
            sampler.set_timesteps(steps)
        video, sound = pipe.scheduler.sigmas, pipe.audio_scheduler.sigmas
        assert len(video) == len(sound) == steps
        torch.testing.assert_close(sound_level(video, (12.0, 3.0)), sound, rtol=1e-5, atol=1e-7)


def test_latents_and_sound_are_those_of_the_pipeline(minimax: Path, pipe: Any) -> None:
    """By the formulas of its encoders of references, whose pixels are bytes."""
    cache = LatentCache(minimax / "cache")
    assert cache.index.latent_size(0) == (7, LATENTS, LATENTS)
    number = next(k for k, clip in enumerate(cache.index.clips) if clip.file == "1.mp4")
    path = minimax / "videos" / "1.mp4"
    clip = {"start": 0.0, "num_frames": FRAMES, "fps": 24.0, "height": SIDE, "width": SIDE}
    pixels = read_clip(path, **clip).permute(3, 0, 1, 2)[None]
    mean, std = (
        torch.tensor(x).view(1, -1, 1, 1, 1)
        for x in (MiniMaxH3ModularPipeline.pixel_mean, MiniMaxH3ModularPipeline.pixel_std)
        for x in [x.fget(None)]  # type: ignore[attr-defined]
    )
    coded = pipe.vae.encode((pixels.float() / 255 - mean) / std).latent_dist
    shift, scale = (
        torch.tensor(x).view(1, -1, 1, 1, 1)
        for x in (pipe.vae.config.latents_mean, pipe.vae.config.latents_std)
    )
    held = load_file(minimax / "cache" / "latents-000-00000.safetensors")
    place = f"{cache.index.clips[number].place:06d}"
    wanted = (coded.mean - shift) / scale
    torch.testing.assert_close(held[f"{place}.mean"].float()[None], wanted, rtol=2e-3, atol=2e-3)
    deviation = held[f"{place}.logvar"].float().mul(0.5).exp()
    torch.testing.assert_close(deviation[None], coded.std / scale, rtol=1e-2, atol=2e-3)
    latents = torch.randn(1, 24, 7, LATENTS, LATENTS, generator=torch.Generator().manual_seed(0))
    shown = pipe.vae.decode(latents * scale + shift, return_dict=False)[0] * std + mean
    torch.testing.assert_close(decode(latents, pipe.vae), 2 * shown - 1, rtol=1e-4, atol=1e-4)

    count = round(FRAMES / 24 * 40)
    sound = read_sound(path, start=0.0, samples=count * RATE // 40, rate=RATE)
    assert float(sound.abs().max()) > 0.3
    rows = pipe.audio_vae.encode(sound[:, None], return_dict=False)[0].mode().transpose(1, 2)
    shift, scale = (
        torch.tensor(pipe.audio_vae.config[f"latents_{name}"]) for name in ("mean", "std")
    )
    expected = ((rows - shift) / scale).reshape(-1, 32)
    assert expected.shape == (2 * count, 32)
    found = cache.clip(number, torch.Generator()).conditions["sound"]
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3)


def test_a_perfect_answer_has_no_loss_and_is_where_the_sampler_goes(
    minimax: Path, pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = LatentCache(minimax / "cache")
    model = finetuned_model(lora_config(minimax, minimax / "unused", density=1.0))
    clip = cache.latents(0, torch.Generator().manual_seed(0))[None]
    noise = torch.randn(clip.shape, generator=torch.Generator().manual_seed(1))
    answer = patchify_video_latents(clip - noise, (1, 2, 2))
    monkeypatch.setattr(model.transformer, "forward", lambda **_named: (answer[None], None))
    told = given(cache, 0)
    embeds = told.pop("encoder_hidden_states")
    level = torch.tensor([0.3])
    loss = flow_matching_loss(model, clip, level, noise, prompt_embeds=embeds, conditions=told)
    assert float(loss) < 1e-12
    pipe.scheduler.set_timesteps(sigmas=[0.3, 0.0])
    at = patchify_video_latents(0.7 * clip + 0.3 * noise, (1, 2, 2))
    end = pipe.scheduler.step(answer, pipe.scheduler.timesteps[0], at, return_dict=False)[0]
    torch.testing.assert_close(end, patchify_video_latents(clip, (1, 2, 2)), rtol=1e-5, atol=1e-5)


def test_samples_of_a_batch_are_calls_of_their_own(minimax: Path) -> None:
    """Texts of other lengths, padded to one."""
    cache = LatentCache(minimax / "cache")
    model = finetuned_model(lora_config(minimax, minimax / "unused", density=1.0))
    both = [given(cache, 0), given(cache, 1)]
    lengths = [told["encoder_hidden_states"].shape[1] for told in both]
    assert lengths[0] != lengths[1]
    longest = max(lengths)
    clips = torch.randn(2, 24, 7, LATENTS, LATENTS, generator=torch.Generator().manual_seed(0))
    times = torch.tensor([300.0, 800.0])
    alone = [model(clips[k : k + 1], times[k : k + 1], **told)[0] for k, told in enumerate(both)]
    together = {name: torch.cat([told[name] for told in both]) for name in ("sound", "sound_noise")}
    padded = [
        torch.nn.functional.pad(x, (0, 0, 0, longest - x.shape[1]), value=9.0)
        for x in (told["encoder_hidden_states"] for told in both)
    ]
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    (made,) = model(clips, times, torch.cat(padded), mask, **together)
    assert torch.equal(made, torch.cat(alone))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_learns_a_clip(minimax: Path, precision: Any) -> None:
    cache = LatentCache(minimax / "cache")
    config = lora_config(minimax, minimax / "unused", density=DENSITY, rank=16)
    model = finetuned_model(with_run(config, precision=precision))
    told = given(cache, 0)
    embeds = told.pop("encoder_hidden_states")
    clip = cache.latents(0, torch.Generator().manual_seed(0))[None]
    noise = torch.randn(clip.shape, generator=torch.Generator().manual_seed(1))
    weights = [x for x in model.parameters() if x.requires_grad]
    optimizer = torch.optim.Adam(weights, lr=0.03)
    losses = []
    for _ in range(8):
        level = torch.tensor([0.6])
        loss = flow_matching_loss(model, clip, level, noise, prompt_embeds=embeds, conditions=told)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.97 * losses[0]
    names = {name for name, x in model.named_parameters() if x.requires_grad}
    assert len(names) == 2 * 4 * 2  # layers, projections, two matrices
    assert not any("refiner" in name for name in names)
    assert model.transformer.get_parameter("proj_in.weight").dtype == torch.float32


FRESH = """
import sys, torch
from diffusers import AutoencoderKLMiniMaxH3
from diffusers.modular_pipelines.minimax_h3 import modular_blocks_minimax_h3 as blocks
pipe = blocks.MiniMaxH3CoreDenoiseStep().init_pipeline(sys.argv[1])
pipe.load_components()
pipe.vae = AutoencoderKLMiniMaxH3.from_pretrained(sys.argv[1], subfolder="vae")
size = {"height": 48, "width": 48, "num_frames": 124, "num_inference_steps": 3}
text = torch.load(sys.argv[4])
def made():
    return pipe(**text, **size, generator=torch.manual_seed(0), output="latents")
pipe.load_lora_weights(sys.argv[2])
lora = made()
pipe.unload_lora_weights()
kind = type(pipe.transformer)
pipe.update_components(transformer=kind.from_pretrained(sys.argv[3]))
torch.save([lora, made()], sys.argv[4])
"""


def generated(pipe: Any) -> Tensor:
    generator = torch.manual_seed(0)
    return pipe(
        prompt="a cat", num_inference_steps=3, generator=generator, output="latents", **CALL
    )


def test_a_fresh_process_of_diffusers_loads_what_runs_leave(
    minimax: Path, pipe: Any, tmp_path: Path
) -> None:
    before = generated(pipe)
    lora = train(lora_config(minimax, tmp_path / "lora", density=DENSITY))
    full = lora_config(minimax, tmp_path / "full", weights="full", density=DENSITY)
    whole = train(changed(full, "optimizer", learning_rate=1e-3))
    made = tmp_path / "made.pt"
    text = pipe(prompt="a cat", num_inference_steps=2, **CALL)
    names = ("prompt_embeds", "text_token_tags")
    torch.save({name: text.get(name) for name in names}, made)
    arguments = [sys.executable, "-c", FRESH, minimax / "pipe", lora, whole, made]
    subprocess.run(arguments, check=True, capture_output=True)
    by_lora, by_whole = torch.load(made)
    own = load_minimax(minimax / "pipe")
    add_lora(own.transformer, tmp_path / "lora")
    torch.testing.assert_close(by_lora, generated(own), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(by_lora, before, atol=1e-4)
    assert not torch.allclose(by_whole, before, atol=1e-4)
    averaged = load_file(tmp_path / "full" / "checkpoints" / "step-00000003" / "ema.safetensors")
    own.transformer.load_state_dict(
        {name.removeprefix("transformer."): x for name, x in averaged.items()}
    )
    torch.testing.assert_close(by_whole, generated(own), rtol=1e-4, atol=1e-5)
    load_loras(pipe, [str(lora)])
    try:
        with enable_frequency_attention(pipe, density=DENSITY, min_tokens=1, start_percent=0) as on:
            sparse = generated(pipe)
            assert "of dense attention's FLOPs" in on.describe()
    finally:
        pipe.unload_lora_weights()
    assert bool(sparse.isfinite().all())
    assert torch.equal(generated(pipe), before)


def test_validation_measures_and_shows(minimax: Path, tmp_path: Path) -> None:
    config = changed(
        lora_config(minimax, tmp_path / "run", density=DENSITY),
        "validation",
        held_out=1,
        levels=(0.5,),
        prompts=("a cat",),
        num_inference_steps=2,
        every_steps=3,
    )
    train(config)
    (made,) = (tmp_path / "run" / "validation" / "step-00000003").glob("*.mp4")
    assert made.stat().st_size > 0


def test_what_can_not_be_trained_is_refused(minimax: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"fps is 8, .* 24 frames .* give --fps 24"):
        make_cache(minimax_cache(minimax, output=str(tmp_path / "slow"), fps=8.0))
    with pytest.raises(ValueError, match=r"frames is 23; 1 or 17 \* k \+ 5 .* like 22 or 39"):
        make_cache(minimax_cache(minimax, output=str(tmp_path / "odd"), frames=(23,)))
    mute = minimax_cache(minimax, output=str(tmp_path / "mute"), vae=str(minimax / "pipe" / "vae"))
    make_cache(mute)
    config = lora_config(minimax, tmp_path / "run")
    config = replace(config, data=replace(config.data, cache=str(tmp_path / "mute")))
    with pytest.raises(ValueError, match=r"another VAE of sound than that of .* --vae"):
        train(config)
    own_model = replace(config, pipeline=type(config.pipeline)())
    with pytest.raises(ValueError, match="made in the way of a MiniMaxH3ModularPipeline"):
        train(changed(own_model, "data", cache=str(minimax / "cache")))
    model = finetuned_model(lora_config(minimax, tmp_path / "run"))
    with pytest.raises(ValueError, match=r"sound and sound_noise are missing, .* folder"):
        model(torch.zeros(1, 24, 7, LATENTS, LATENTS), torch.ones(1), torch.zeros(1, 3, 16))
    index = json.loads((minimax / "cache" / "index.json").read_text())
    assert index["chunks"] == [17, 5, 3]
