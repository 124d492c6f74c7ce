"""Prompts and guidance: through the pipeline's text encoder, or by embeddings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from tests.support.models import make_model
from tests.support.tiny_encoders import save_encoders, tiny_encoder, tiny_tokenizer

from freqformer import FreqFormerPipeline
from freqformer.models.text import TextFolders, TextModel

SIZE = {"num_frames": 3, "height": 4, "width": 4, "num_inference_steps": 2}


def make_pipeline(kind: str | None = "t5", **options: Any) -> FreqFormerPipeline:
    model = make_model(**{"cross_attention_dim": 16, **options}).eval()
    parts = {}
    if kind is not None:
        parts = {"text_encoder": tiny_encoder(kind).eval(), "tokenizer": tiny_tokenizer()}
    pipeline = FreqFormerPipeline(model, FlowMatchEulerDiscreteScheduler(), **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generate(pipeline: FreqFormerPipeline, **asked: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return pipeline(**SIZE, generator=generator, output_type="latent", **asked).frames


def test_guidance_is_the_line_through_both_predictions() -> None:
    pipeline = make_pipeline()
    model = TextModel(pipeline.tokenizer, pipeline.text_encoder)
    embeds, mask = model.encode_batch(["", "a red ball"], 64)
    torch.manual_seed(0)
    latents = torch.randn(1, 2, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(2)
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            away, towards = (
                pipeline.transformer(
                    latents, timestep.expand(1), embeds[k : k + 1], mask[k : k + 1]
                )
                for k in (0, 1)
            )
            velocity = away.sample + 2.5 * (towards.sample - away.sample)
            latents = scheduler.step(velocity, timestep, latents).prev_sample
    made = generate(pipeline, prompt="a red ball", guidance_scale=2.5)
    torch.testing.assert_close(made, latents)


def test_prompts_are_as_their_embeddings() -> None:
    pipeline = make_pipeline()
    model = TextModel(pipeline.tokenizer, pipeline.text_encoder)
    embeds, mask = model.encode_batch(["a red ball flies", "a ball"], 64)
    away, away_mask = model.encode_batch(["blue"], 64)
    words = generate(
        pipeline, prompt=["a red ball flies", "a ball"], negative_prompt="blue", guidance_scale=3
    )
    given = generate(
        make_pipeline(None),
        batch_size=2,
        prompt_embeds=embeds,
        prompt_attention_mask=mask,
        negative_prompt_embeds=away,
        negative_prompt_attention_mask=away_mask,
        guidance_scale=3,
    )
    torch.testing.assert_close(words, given)
    assert words.shape[0] == 2
    default = generate(pipeline, prompt="a ball", batch_size=2)
    assert torch.equal(default, generate(pipeline, prompt="a ball", batch_size=2, guidance_scale=4))
    plain = generate(pipeline, prompt="a ball", guidance_scale=1)
    assert not torch.allclose(default[:1], plain)
    # Beyond its first token the prompt is cut off.
    short = {"max_sequence_length": 1, "guidance_scale": 1}
    assert torch.equal(
        generate(pipeline, prompt="red ball", **short), generate(pipeline, prompt="red a", **short)
    )


def test_a_pipeline_is_saved_with_its_text_encoder(tmp_path: Path) -> None:
    pipeline = make_pipeline()
    pipeline.save_pretrained(tmp_path / "saved")
    loaded = FreqFormerPipeline.from_pretrained(tmp_path / "saved")
    loaded.set_progress_bar_config(disable=True)
    asked = {"prompt": "a red ball"}
    assert torch.equal(generate(loaded, **asked), generate(pipeline, **asked))
    half = FreqFormerPipeline.from_pretrained(tmp_path / "saved", dtype=torch.bfloat16)
    assert half.text_encoder.dtype == torch.bfloat16
    weights = tmp_path / "saved" / "text_encoder" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"model.safetensors is damaged"):
        FreqFormerPipeline.from_pretrained(tmp_path / "saved")


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("text_encoder", ["transformers", "Trainer"]),
        ("text_encoder", ["trap", "T5EncoderModel"]),
        ("tokenizer", ["transformers", "pipeline"]),
        ("tokenizer", ["trap", "T5Tokenizer"]),
        ("tokenizer", "T5Tokenizer"),
    ],
)
def test_a_folder_names_known_classes_alone(part: str, value: Any, tmp_path: Path) -> None:
    make_pipeline().save_pretrained(tmp_path / "saved")
    path = tmp_path / "saved" / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {part: value}))
    for manifest in (tmp_path / "saved").rglob("freqformer-manifest.json"):
        manifest.unlink()
    with pytest.raises(ValueError, match=f"{part} is .*is allowed"):
        FreqFormerPipeline.from_pretrained(tmp_path / "saved")


def test_an_encoder_with_missing_weights_is_refused(tmp_path: Path) -> None:
    make_pipeline().save_pretrained(tmp_path / "saved")
    for manifest in (tmp_path / "saved").rglob("freqformer-manifest.json"):
        manifest.unlink()
    path = tmp_path / "saved" / "text_encoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_layers": 2}))
    with pytest.raises(ValueError, match="weights of another model"):
        FreqFormerPipeline.from_pretrained(tmp_path / "saved")
    shutil.rmtree(tmp_path / "saved" / "tokenizer")
    with pytest.raises(ValueError, match=r"can't be loaded"):
        FreqFormerPipeline.from_pretrained(tmp_path / "saved")


def test_what_is_refused() -> None:
    pipeline = make_pipeline()
    embeds = torch.zeros(1, 3, 16)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"prompt": 3}, "prompt is 3; text, or a list of it, is allowed"),
        ({"prompt": []}, r"prompt is \[\]; text"),
        ({"prompt": ["a", "ball"], "batch_size": 3}, "batch_size is 3 and prompt has 2 texts"),
        ({"prompt": "a", "prompt_embeds": embeds}, "both given; one of them is allowed"),
        ({"prompt": "a", "negative_prompt": None}, "negative_prompt is None; text is allowed"),
        ({"prompt": "a", "guidance_scale": -1}, "guidance_scale is -1; numbers from 0"),
        ({"prompt": "a", "max_sequence_length": 0}, "max_sequence_length is 0"),
        ({"prompt": "a", "negative_prompt_embeds": "no"}, "negative_prompt_embeds is a str"),
        ({}, "prompt is None and the model was trained with text"),
        (
            {
                "prompt": ["a"] * 3,
                "negative_prompt_embeds": torch.zeros(2, 3, 16),
            },
            "embeddings of 2 texts are given for 3 videos",
        ),
    ]
    for asked, message in cases:
        with pytest.raises(ValueError, match=message):
            generate(pipeline, **asked)
    with pytest.raises(ValueError, match="the pipeline has no text_encoder; give it one"):
        generate(make_pipeline(None), prompt="a")
    with pytest.raises(ValueError, match="the model was trained without text; None is"):
        generate(make_pipeline(None, cross_attention_dim=None), prompt="a")
    with pytest.raises(ValueError, match="16 channels and the transformer cross_attention_dim=8"):
        make_pipeline(cross_attention_dim=8)
    model = make_model(cross_attention_dim=16)
    scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(ValueError, match="tokenizer is None; text_encoder and tokenizer belong"):
        FreqFormerPipeline(model, scheduler, text_encoder=tiny_encoder())
    with pytest.raises(ValueError, match="text_encoder is a Linear; CLIPTextModel"):
        FreqFormerPipeline(
            model, scheduler, text_encoder=torch.nn.Linear(1, 1), tokenizer=tiny_tokenizer()
        )


def test_a_folder_of_separate_parts_serves_too(tmp_path: Path) -> None:
    save_encoders(tmp_path)
    model = TextModel.load(TextFolders.find(tmp_path))
    pipeline = FreqFormerPipeline(
        make_model(cross_attention_dim=16),
        FlowMatchEulerDiscreteScheduler(),
        text_encoder=model.encoder,
        tokenizer=model.tokenizer,
    )
    pipeline.set_progress_bar_config(disable=True)
    assert generate(pipeline, prompt="a ball").isfinite().all()
