"""Batches of samples, with and without text."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest
import torch
from tests.support.tiny_training import MODEL, changed, losses, tiny_config

from freqformer.models.transformer import FreqFormerTransformer3DModel
from freqformer.training.loader import ClipLoader, ClipSource
from freqformer.training.objective import batch_loss
from freqformer.training.samples import TrainingBatch, TrainingSample

CLIP = torch.zeros(4, 2, 8, 8)


class Captioned(ClipSource):
    """Latents of 4 channels with a text of `index` visible tokens of 3."""

    def load(self, index: int) -> TrainingSample:
        generator = torch.Generator().manual_seed(index)
        return TrainingSample(
            torch.rand(CLIP.shape, generator=generator),
            prompt_embeds=torch.randn(3, 6, generator=generator),
            prompt_attention_mask=torch.arange(3) <= index,
        )

    def report(self, sample: TrainingSample) -> None:
        pass

    def fingerprint(self) -> str:
        return "captioned"


def test_a_batch_holds_what_its_samples_hold() -> None:
    with ClipLoader(Captioned(), count(), seed=0) as loader:
        batch = loader.take(2)
    samples = [Captioned().load(index) for index in range(2)]
    assert batch.prompt_embeds is not None
    assert batch.prompt_attention_mask is not None
    for place, sample in enumerate(samples):
        assert torch.equal(batch.clip[place], sample.clip)
        assert torch.equal(batch.prompt_embeds[place], sample.prompt_embeds)
        assert torch.equal(batch.prompt_attention_mask[place], sample.prompt_attention_mask)
    assert batch.noise.shape == batch.clip.shape
    plain = TrainingBatch.of([TrainingSample(CLIP)], [CLIP])
    assert plain.prompt_embeds is None
    assert plain.prompt_attention_mask is None
    moved = batch.to(torch.device("meta"))
    for name in ("clip", "noise", "prompt_embeds", "prompt_attention_mask"):
        assert getattr(moved, name).device.type == "meta"
    assert plain.to(torch.device("meta")).prompt_embeds is None


def test_channels_are_those_of_the_clips() -> None:
    assert Captioned().channels == 4


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (TrainingSample(CLIP), "prompt_embeds is there in 1 of 2 samples of a batch; all or none"),
        (
            TrainingSample(CLIP, prompt_embeds=torch.zeros(5, 6)),
            r"prompt_embeds has the shapes \[\(3, 6\), \(5, 6\)\] in one batch; .* pad the texts",
        ),
    ],
)
def test_samples_that_differ_in_their_text_are_refused(second, message) -> None:
    first = TrainingSample(CLIP, prompt_embeds=torch.zeros(3, 6))
    with pytest.raises(ValueError, match=message):
        TrainingBatch.of([first, second], [CLIP, CLIP])


def test_the_model_reads_the_text_of_a_batch() -> None:
    torch.manual_seed(0)
    model = FreqFormerTransformer3DModel(
        in_channels=4,
        num_layers=1,
        num_attention_heads=1,
        attention_head_dim=6,
        cross_attention_dim=6,
        patch_size=[1, 4, 4],
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    with ClipLoader(Captioned(), count(), seed=0) as loader:
        batch = loader.take(2)
    timestep = torch.tensor([0.3, 0.6])
    given = model(
        (1 - timestep.view(-1, 1, 1, 1, 1)) * batch.clip
        + timestep.view(-1, 1, 1, 1, 1) * batch.noise,
        timestep * 1000,
        encoder_hidden_states=batch.prompt_embeds,
        encoder_attention_mask=batch.prompt_attention_mask,
    ).sample
    expected = (given - (batch.noise - batch.clip)).square().mean()
    torch.testing.assert_close(batch_loss(model, batch, timestep), expected)
    unmasked = TrainingBatch(batch.clip, batch.noise, batch.prompt_embeds)
    assert batch_loss(model, unmasked, timestep) != batch_loss(model, batch, timestep)


def test_text_for_a_model_that_takes_none_is_refused(tmp_path: Path) -> None:
    config = changed(tiny_config(tmp_path), "data", num_frames=2, height=8, width=8)
    model = FreqFormerTransformer3DModel(**{**MODEL, "in_channels": 4})
    with pytest.raises(ValueError, match=r"encoder_hidden_states is .* cross_attention_dim None"):
        losses(config, model=model, clips=Captioned())
