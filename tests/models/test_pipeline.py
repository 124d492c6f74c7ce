"""Generation: pixels and latents of diffusers' video VAEs, seeds, saving, files."""

from __future__ import annotations

import copy
import pickle
from itertools import pairwise

import av
import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import AutoencoderKLHunyuanVideo
from diffusers.models.autoencoders.autoencoder_kl_ltx import AutoencoderKLLTXVideo
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)

from freqformer import FreqFormerPipeline, FreqFormerTransformer3DModel
from freqformer.models.latents import compression_ratios, decode, latent_size

FREQUENCY = {"tile": [2, 2, 3], "window": [1, 1, 1], "mid_tiles": 2, "summary_tokens": 4}
VIDEO = {"num_frames": 5, "height": 8, "width": 12, "num_inference_steps": 3}


def make_pipeline(vae=None, shift: float = 2.0, **options) -> FreqFormerPipeline:
    torch.manual_seed(0)
    size = {
        "in_channels": 3,
        "patch_size": (1, 2, 2),
        "num_layers": 1,
        "num_attention_heads": 3,
        "attention_head_dim": 8,
    }
    model = FreqFormerTransformer3DModel(**{**size, "frequency": FREQUENCY, **options})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    pipeline = FreqFormerPipeline(model, FlowMatchEulerDiscreteScheduler(shift=shift), vae)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_vae(name: str):
    """A tiny VAE with random weights."""
    torch.manual_seed(0)
    if name == "wan":
        statistics = {
            "latents_mean": [0.1 * k for k in range(4)],
            "latents_std": [1 + 0.5 * k for k in range(4)],
        }
        return AutoencoderKLWan(
            base_dim=3, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, **statistics
        )
    if name == "ltx":
        vae = AutoencoderKLLTXVideo(
            latent_channels=4,
            block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            layers_per_block=(1, 1, 1, 1, 1),
            decoder_layers_per_block=(1, 1, 1, 1, 1),
            spatio_temporal_scaling=(True, True, False, False),
            decoder_spatio_temporal_scaling=(True, True, False, False),
            patch_size=1,
            scaling_factor=0.7,
            timestep_conditioning=True,
        )
        vae.latents_mean.copy_(torch.randn(4))
        vae.latents_std.copy_(torch.rand(4) + 0.5)
        return vae
    if name == "hunyuan":
        blocks = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4}
        return AutoencoderKLHunyuanVideo(latent_channels=4, **blocks)
    kinds = {
        "down_block_types": ("CogVideoXDownBlock3D",) * 4,
        "up_block_types": ("CogVideoXUpBlock3D",) * 4,
    }
    blocks = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4}
    return AutoencoderKLCogVideoX(latent_channels=4, **kinds, **blocks)


VAES = {"wan": (4, 8), "ltx": (4, 4), "hunyuan": (4, 8), "cogvideox": (4, 8)}


def expected_latents(name: str, vae, latents: torch.Tensor) -> torch.Tensor:
    """What each VAE's own pipeline hands to its decoder."""

    def column(values) -> torch.Tensor:
        return torch.as_tensor(values).view(1, -1, 1, 1, 1)

    if name == "wan":
        return latents / (1 / column(vae.config.latents_std)) + column(vae.config.latents_mean)
    if name == "ltx":
        return latents * column(vae.latents_std) / vae.config.scaling_factor + column(
            vae.latents_mean
        )
    return latents / vae.config.scaling_factor


def test_one_seed_gives_one_video():
    pipeline = make_pipeline()
    first = pipeline(**VIDEO, generator=seeded(), output_type="uint8").frames
    assert first.shape == (1, 5, 8, 12, 3)
    assert first.dtype == torch.uint8
    assert first.float().std() > 10
    assert torch.equal(pipeline(**VIDEO, generator=seeded(), output_type="uint8").frames, first)
    assert not torch.equal(
        pipeline(**VIDEO, generator=seeded(1), output_type="uint8").frames, first
    )


def test_saving_and_loading_keeps_the_video_bit_for_bit(tmp_path):
    pipeline = make_pipeline(shift=3.0)
    pipeline.save_pretrained(tmp_path)
    loaded = FreqFormerPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.vae is None
    frames = [
        p(**VIDEO, generator=seeded(), output_type="latent").frames for p in (pipeline, loaded)
    ]
    assert torch.equal(*frames)
    assert not list(tmp_path.rglob("*.bin"))


def test_it_integrates_the_velocity_with_eulers_steps():
    pipeline = make_pipeline(shift=2.0)
    latents = torch.randn(1, 3, 5, 8, 12, generator=seeded())
    frames = pipeline(**VIDEO, generator=seeded(), output_type="latent").frames
    first = pipeline.scheduler.timesteps[0].item() / 1000
    assert first == pytest.approx(1.0)
    levels = [*(t.item() / 1000 for t in pipeline.scheduler.timesteps), 0.0]
    with torch.no_grad():
        for level, following in pairwise(levels):
            velocity = pipeline.transformer(latents, torch.tensor([level * 1000])).sample
            latents = latents + (following - level) * velocity
    torch.testing.assert_close(frames, latents, rtol=1e-4, atol=1e-4)


def test_every_output_type_is_the_same_video():
    pipeline = make_pipeline()
    latent, pt, array, images, whole = (
        pipeline(**VIDEO, generator=seeded(), output_type=kind).frames
        for kind in ("latent", "pt", "np", "pil", "uint8")
    )
    unit = (latent / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(pt, unit.transpose(1, 2))
    np.testing.assert_allclose(array, unit.permute(0, 2, 3, 4, 1).numpy(), rtol=1e-5, atol=1e-6)
    assert (whole.float() / 255 - torch.from_numpy(array)).abs().max() <= 0.51 / 255
    assert len(images[0]) == 5
    assert (np.asarray(images[0][4]).astype(int) - whole[0, 4].int().numpy()).max() <= 1


def test_a_batch_has_one_seed_per_sample():
    pipeline = make_pipeline()
    both = pipeline(
        **VIDEO, batch_size=2, generator=[seeded(), seeded(5)], output_type="latent"
    ).frames
    alone = pipeline(**VIDEO, generator=seeded(5), output_type="latent").frames
    torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-4)


def test_text_reaches_the_model():
    pipeline = make_pipeline(cross_attention_dim=6)
    text, mask = torch.randn(1, 4, 6), torch.tensor([[True, True, False, False]])
    first = pipeline(
        **VIDEO,
        generator=seeded(),
        prompt_embeds=text,
        prompt_attention_mask=mask,
        output_type="latent",
    ).frames
    other = text.clone()
    other[:, 2:] += 9
    assert torch.equal(
        pipeline(
            **VIDEO,
            generator=seeded(),
            prompt_embeds=other,
            prompt_attention_mask=mask,
            output_type="latent",
        ).frames,
        first,
    )
    changed = pipeline(
        **VIDEO, generator=seeded(), prompt_embeds=other, output_type="latent"
    ).frames
    assert (changed - first).abs().max() > 1e-3
    with pytest.raises(ValueError, match="prompt is None and the model was trained with text"):
        pipeline(**VIDEO)


def test_half_precision_generates_the_same_video_nearly(tmp_path):
    pipeline = make_pipeline()
    pipeline.save_pretrained(tmp_path)
    half = FreqFormerPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
    half.set_progress_bar_config(disable=True)
    full = pipeline(**VIDEO, generator=seeded(), output_type="latent").frames
    out = half(**VIDEO, generator=seeded(), output_type="latent").frames
    assert (out - full).norm() < 0.1 * full.norm()


@pytest.mark.parametrize("name", VAES)
def test_latents_are_decoded_as_the_vaes_own_pipeline_does(name, monkeypatch):
    vae = make_vae(name)
    time, space = VAES[name]
    assert compression_ratios(vae) == (time, space)
    pipeline = make_pipeline(vae, in_channels=4, patch_size=(1, 1, 1))
    size = {
        "num_frames": 2 * time + 1,
        "height": 2 * space,
        "width": 3 * space,
        "num_inference_steps": 1,
    }
    latents = pipeline(**size, generator=seeded(), output_type="latent").frames
    assert latents.shape == (1, 4, 3, 2, 3)
    frames = pipeline(**size, generator=seeded(), output_type="pt").frames
    assert frames.shape == (1, size["num_frames"], 3, size["height"], size["width"])
    with torch.no_grad():
        torch.testing.assert_close(
            frames, (decode(latents, vae) / 2 + 0.5).clamp(0, 1).transpose(1, 2)
        )
    seen = {}
    monkeypatch.setattr(vae, "decode", lambda z, **options: seen.update(options, z=z) or (z,))
    decode(latents, vae)
    torch.testing.assert_close(seen["z"], expected_latents(name, vae, latents))
    assert ("temb" in seen) == (name == "ltx")


def test_a_pipeline_with_a_vae_is_saved_whole(tmp_path):
    pipeline = make_pipeline(make_vae("ltx"), in_channels=4, patch_size=(1, 1, 1))
    pipeline.save_pretrained(tmp_path)
    loaded = FreqFormerPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    size = {
        "num_frames": 5,
        "height": 8,
        "width": 8,
        "num_inference_steps": 1,
        "output_type": "uint8",
    }
    assert torch.equal(
        loaded(**size, generator=seeded()).frames, pipeline(**size, generator=seeded()).frames
    )


def test_files_are_written(tmp_path):
    pipeline = make_pipeline()
    output = pipeline(**VIDEO, batch_size=2, generator=seeded(), output_type="uint8")
    output.save(tmp_path / "clip.mp4", fps=4)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "clip-0.mp4",
        "clip-0.png",
        "clip-1.mp4",
        "clip-1.png",
    ]
    with av.open(tmp_path / "clip-1.mp4") as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert np.stack(frames).shape == (5, 8, 12, 3)
    with pytest.raises(ValueError, match="output_type='uint8'"):
        pipeline(**VIDEO, output_type="pil").save(tmp_path / "clip.mp4")


def test_the_progress_bar_counts_the_steps(capsys):
    pipeline = make_pipeline()
    pipeline.set_progress_bar_config(disable=False)
    pipeline(**VIDEO)
    assert "3/3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height": 9}, "multiples of patch_size"),
        ({"num_frames": 0}, "num_frames is 0; an integer >= 1"),
        ({"num_frames": "5"}, "num_frames is '5'; an integer"),
        ({"height": 8.0}, r"height is 8\.0; an integer"),
        ({"width": None}, "width is None; an integer"),
        ({"num_inference_steps": 2.5}, r"num_inference_steps is 2\.5"),
        ({"batch_size": True}, "batch_size is True"),
        (
            {"generator": 2**70},
            r"generator is 1180591620717411303424; .* torch\.Generator\(\)\.manual_seed\(seed\)",
        ),
        ({"generator": [7]}, r"generator is \[7\]; a torch\.Generator, a list"),
        ({"prompt_embeds": ("a cat",)}, "prompt_embeds is a tuple; a tensor or None"),
        (
            {"prompt_attention_mask": torch.ones(1, 2)},
            "prompt_attention_mask is given and prompt_embeds is None",
        ),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"output_type": "gif"}, "output_type is 'gif'"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_pipeline()(**{**VIDEO, **options})


def test_what_cannot_generate_videos_is_refused():
    model = make_pipeline().transformer
    for options in ({"num_train_timesteps": 500}, {"use_dynamic_shifting": True}):
        with pytest.raises(ValueError, match="scheduler has"):
            FreqFormerPipeline(model, FlowMatchEulerDiscreteScheduler(**options))
    image_vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    with pytest.raises(ValueError, match="AutoencoderKL without temporal_compression_ratio"):
        FreqFormerPipeline(model, FlowMatchEulerDiscreteScheduler(), image_vae)
    for size in ((6, 8, 8), (5, 10, 8), (5, 8, 0)):
        with pytest.raises(ValueError, match=r"num_frames = 4 \* k \+ 1 and multiples of 4"):
            latent_size(size, make_vae("ltx"))


def test_copies_pickles_and_folders_of_a_pipeline_repeat_its_video(tmp_path):
    pipeline = make_pipeline()
    wanted = pipeline(**VIDEO, generator=seeded(), output_type="latent").frames
    pipeline.save_pretrained(tmp_path)
    for other in (
        copy.deepcopy(pipeline),
        pickle.loads(pickle.dumps(pipeline)),
        FreqFormerPipeline.from_pretrained(tmp_path, device_map="balanced"),
    ):
        other.set_progress_bar_config(disable=True)
        assert torch.equal(other(**VIDEO, generator=seeded(), output_type="latent").frames, wanted)


@pytest.mark.parametrize("buffers", [False, True])
def test_latents_are_decoded_by_an_offloaded_vae(buffers):
    vae = make_vae("ltx")
    pipeline = make_pipeline(vae, in_channels=4, patch_size=(1, 1, 1))
    size = {
        "num_frames": 5,
        "height": 8,
        "width": 8,
        "num_inference_steps": 1,
        "output_type": "uint8",
    }
    wanted = pipeline(**size, generator=seeded()).frames
    cpu_offload(vae, execution_device=torch.device("cpu"), offload_buffers=buffers)
    assert torch.equal(pipeline(**size, generator=seeded()).frames, wanted)
