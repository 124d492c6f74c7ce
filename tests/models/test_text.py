"""Text encoders of transformers: every kind, lengths, folders, and what is refused."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from tests.support.tiny_encoders import ENCODER_CHANNELS, save_encoders, tiny_encoder

from freqformer.models.text import ENCODERS, TextFolders, TextModel, padded


@pytest.mark.parametrize("kind", ["t5", "umt5", "clip", "qwen2"])
def test_embeddings_are_the_encoders_own(kind: str, tmp_path: Path) -> None:
    save_encoders(tmp_path, text=kind)
    model = TextModel.load(TextFolders.find(tmp_path))
    assert type(model.encoder).__name__ == ENCODERS[model.encoder.config.model_type]
    assert model.channels == ENCODER_CHANNELS
    ids = [3, 4, 6] if kind == "qwen2" else [3, 4, 6, 1]
    with torch.no_grad():
        expected = tiny_encoder(kind).eval()(torch.tensor([ids])).last_hidden_state[0]
    torch.testing.assert_close(model.encode(" a  red\nball", 64), expected)
    assert model.encode("", 64).shape == (1, ENCODER_CHANNELS)
    cut = 5 if kind != "clip" else 6
    assert len(model.encode("a red ball flies left slowly right", cut)) == cut


def test_a_text_is_never_longer_than_the_encoder_has_places(tmp_path: Path) -> None:
    save_encoders(tmp_path, text="clip")
    model = TextModel.load(TextFolders.find(tmp_path))
    assert len(model.encode("a red ball flies left slowly right", 512)) == 6


def test_a_batch_is_padded_with_zeros_and_a_mask(tmp_path: Path) -> None:
    save_encoders(tmp_path)
    model = TextModel.load(TextFolders.find(tmp_path))
    embeds, mask = model.encode_batch(["a red ball", ""], 64)
    assert mask.tolist() == [[True] * 4, [True, False, False, False]]
    torch.testing.assert_close(embeds[1, :1], model.encode("", 64))
    assert not embeds[1, 1:].any()
    longer, mask = padded([embeds[0]], 6)
    assert longer.shape == (1, 6, ENCODER_CHANNELS)
    assert mask.sum() == 4


def test_an_encoder_may_share_a_folder_with_its_tokenizer(tmp_path: Path) -> None:
    save_encoders(tmp_path)
    together = shutil.copytree(tmp_path / "text_encoder", tmp_path / "together")
    for file in (tmp_path / "tokenizer").iterdir():
        shutil.copy(file, together)
    assert TextFolders.find(together) == TextFolders(together, together)
    beside = TextFolders.find(tmp_path / "text_encoder")
    assert beside == TextFolders.find(tmp_path)


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist; give a pipeline's folder"):
        TextFolders.find(tmp_path / "nothing")
    with pytest.raises(ValueError, match="holds no text encoder"):
        TextFolders.find(tmp_path)
    save_encoders(tmp_path)
    config = tmp_path / "text_encoder" / "config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps(values | {"model_type": "bert"}))
    with pytest.raises(ValueError, match=r"model_type='bert'; t5, umt5, clip.* are allowed"):
        TextModel.load(TextFolders.find(tmp_path))
    config.write_text(json.dumps(values | {"num_layers": 2}))
    with pytest.raises(ValueError, match="weights of another model"):
        TextModel.load(TextFolders.find(tmp_path))
    config.write_text(json.dumps(values))
    weights = tmp_path / "text_encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(ValueError, match="can't be loaded"):
        TextModel.load(TextFolders.find(tmp_path))
    shutil.rmtree(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match="its tokenizer is nowhere"):
        TextFolders.find(tmp_path)


def test_the_extra_is_named_where_transformers_is_missing(tmp_path: Path, monkeypatch) -> None:
    save_encoders(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"pip install 'freqformer\[text\]'"):
        TextModel.load(TextFolders.find(tmp_path))
