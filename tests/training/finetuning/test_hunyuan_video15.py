"""HunyuanVideo 1.5: training asks the transformer as its own pipeline does, learns, and leaves what
the pipeline's transformer loads."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_hunyuan_video15 import (
    HunyuanVideo15Transformer3DModel,
)
from diffusers.pipelines.hunyuan_video1_5.pipeline_hunyuan_video1_5 import HunyuanVideo15Pipeline
from safetensors.torch import load_file
from tests.support.tiny_finetuning import add_lora, lora_config, make_pipeline_and_cache
from tests.support.tiny_training import changed
from torch import Tensor

from freqformer.generation.lora import load_loras
from freqformer.models.latents import encode
from freqformer.training.cache.reading import LatentCache
from freqformer.training.cache.texts import find_captioning
from freqformer.training.finetuning.model import finetuned_model
from freqformer.training.loop import train
from freqformer.training.objective import flow_matching_loss

SIZE = (32, 48)
QUOTED = 'a cat under "storm"'
"""With text that is to be written."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With `pipe`, `videos` and `cache`; not to be changed."""
    return make_pipeline_and_cache(tmp_path_factory.mktemp("hunyuan"), "hunyuan-1.5", size=SIZE)


def loaded(folder: Path) -> Any:
    pipe = HunyuanVideo15Pipeline.from_pretrained(folder / "pipe")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generated(pipe: Any, prompt: str = "a cat") -> Tensor:
    return pipe(
        prompt,
        height=SIZE[0],
        width=SIZE[1],
        num_frames=17,
        num_inference_steps=2,
        output_type="latent",
        generator=torch.manual_seed(0),
    ).frames


@pytest.mark.parametrize("prompt", ["a cat", QUOTED])
def test_the_transformer_is_asked_as_by_its_pipeline(folder: Path, prompt: str) -> None:
    pipe = loaded(folder)
    calls: list[tuple[dict[str, Any], Tensor]] = []
    pipe.transformer.register_forward_hook(
        lambda _module, _given, named, made: calls.append((named, made[0])), with_kwargs=True
    )
    generated(pipe, prompt)
    own, answer = calls[1]
    text = find_captioning(folder / "pipe").load(torch.float32, torch.device("cpu"))
    told = text.embed(prompt, 512)
    model = finetuned_model(lora_config(folder, folder / "unused", density=1.0))
    seen: list[dict[str, Any]] = []
    model.transformer.register_forward_pre_hook(
        lambda _module, _given, named: seen.append(named), with_kwargs=True
    )
    others = {name: x[None] for name, x in told.others.items()}
    channels = model.config["in_channels"]
    latents = own["hidden_states"][:, :channels]
    (velocity,) = model(latents, own["timestep"], told.tokens[None], **others)
    (found,) = seen
    assert found.keys() | {"attention_kwargs"} == own.keys()
    same = ("hidden_states", "timestep", "image_embeds")
    glyphs = ("encoder_hidden_states_2", "encoder_attention_mask_2")
    for name in (*same, *glyphs):
        assert torch.equal(found[name], own[name])
    kept = own["encoder_attention_mask"][0].bool()
    assert int(kept.sum()) == found["encoder_attention_mask"].sum()
    assert torch.equal(found["encoder_hidden_states"][0], own["encoder_hidden_states"][0, kept])
    assert bool(found["encoder_attention_mask_2"].any()) == (prompt == QUOTED)
    # Padding that no token sees changes sums by rounding.
    torch.testing.assert_close(velocity, answer, rtol=1e-4, atol=1e-5)


def test_a_changed_template_is_another_text_encoder(folder: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(folder, tmp_path / "copied"))
    template = copied / "pipe" / "tokenizer" / "chat_template.jinja"
    template.write_text(template.read_text(encoding="utf-8") + " a", encoding="utf-8")
    with pytest.raises(ValueError, match=r"another text encoder than that of .* --text-encoder"):
        finetuned_model(lora_config(copied, tmp_path / "unused"))


def test_latents_are_scaled_as_the_pipeline_undoes(folder: Path) -> None:
    pipe = loaded(folder)
    cache = LatentCache(folder / "cache")
    tensors = load_file(folder / "cache" / "latents-000-00000.safetensors")
    shown = torch.zeros(1, 3, 17, *SIZE)
    mean = pipe.vae.encode(shown).latent_dist.mean * pipe.vae.config.scaling_factor
    assert tensors["000000.mean"].shape == mean.shape[1:]
    torch.testing.assert_close(encode(shown, pipe.vae).mean, mean)
    assert cache.index.channels == mean.shape[1]


def test_it_learns_a_clip_and_a_perfect_answer_has_no_loss(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = LatentCache(folder / "cache")
    model = finetuned_model(lora_config(folder, folder / "unused", density=0.9, rank=16))
    clip = cache.latents(0, torch.Generator().manual_seed(0))[None]
    noise = torch.randn(clip.shape, generator=torch.Generator().manual_seed(1))
    caption = cache.caption(cache.index.clips[0].text)
    told: dict[str, Any] = {
        "prompt_embeds": caption.tokens[None],
        "conditions": {name: x[None] for name, x in caption.others.items()},
    }
    level = torch.tensor([0.6])
    weights = [x for x in model.parameters() if x.requires_grad]
    optimizer = torch.optim.Adam(weights, lr=0.03)
    losses = []
    for _ in range(8):
        loss = flow_matching_loss(model, clip, level, noise, **told)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.97 * losses[0]
    monkeypatch.setattr(model.transformer, "forward", lambda **_named: (noise - clip,))
    assert float(flow_matching_loss(model, clip, level, noise, **told)) == 0


FRESH = """
import sys, torch
from diffusers import HunyuanVideo15Pipeline, HunyuanVideo15Transformer3DModel
pipe = HunyuanVideo15Pipeline.from_pretrained(sys.argv[1])
def made():
    return pipe("a cat", height=32, width=48, num_frames=17, num_inference_steps=2,
                output_type="latent", generator=torch.manual_seed(0)).frames
pipe.transformer.load_lora_adapter(
    sys.argv[2], weight_name="pytorch_lora_weights.safetensors")
lora = made()
pipe.transformer = HunyuanVideo15Transformer3DModel.from_pretrained(sys.argv[3])
torch.save([lora, made()], sys.argv[4])
"""


def test_a_fresh_process_of_diffusers_loads_what_runs_leave(folder: Path, tmp_path: Path) -> None:
    before = generated(loaded(folder))
    lora = train(lora_config(folder, tmp_path / "lora", density=0.9))
    full = lora_config(folder, tmp_path / "full", weights="full", density=0.9)
    whole = train(changed(full, "optimizer", learning_rate=1e-3))
    made = tmp_path / "made.pt"
    arguments = [sys.executable, "-c", FRESH, folder / "pipe", lora, whole, made]
    subprocess.run(arguments, check=True, capture_output=True)
    by_lora, by_whole = torch.load(made)
    pipe = loaded(folder)
    load_loras(pipe, [str(lora)])
    torch.testing.assert_close(generated(pipe), by_lora, rtol=1e-4, atol=1e-5)
    pipe = loaded(folder)
    add_lora(pipe.transformer, tmp_path / "lora")
    torch.testing.assert_close(by_lora, generated(pipe), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(by_lora, before, atol=1e-4)
    pipe.transformer = HunyuanVideo15Transformer3DModel.from_pretrained(whole)
    torch.testing.assert_close(by_whole, generated(pipe), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(by_whole, before, atol=1e-4)


def test_what_can_not_be_trained_is_refused(folder: Path) -> None:
    model: Any = finetuned_model(lora_config(folder, folder / "unused", density=1.0))
    channels, text = model.config["in_channels"], model.config["cross_attention_dim"]
    with pytest.raises(ValueError, match=r"glyph_embeds and glyph_mask are missing, .* folder"):
        model(torch.zeros(1, channels, 3, 8, 12), torch.ones(1), torch.zeros(1, 3, text))
    for name, value, message in (
        ("task_type", "i2v", "task_type is 'i2v', .* text-to-video"),
        ("use_meanflow", True, "two noise levels"),
    ):
        held = model.transformer.config
        model.transformer.register_to_config(**{name: value})
        with pytest.raises(ValueError, match=message):
            model.check_trainable_from_cache()
        model.transformer.register_to_config(**{name: held[name]})
