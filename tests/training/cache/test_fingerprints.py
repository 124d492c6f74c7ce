"""Every file that can change what an encoder makes of a text tells it from another one."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.tiny_encoders import tiny_tokenizer
from transformers import AutoTokenizer

from freqformer._files import FileError, check_manifest
from freqformer.training.cache.fingerprints import copy_encoder, fingerprint

TEMPLATE = "{{ messages[-1]['content'] }} a"
OTHER = "{{ messages[-1]['content'] }} a ball"
MESSAGES = [{"role": "user", "content": "red"}]


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """A tokenizer with a chat template in a file of its own."""
    made = tiny_tokenizer()
    made.chat_template = TEMPLATE
    made.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def tokens(folder: Path) -> list[int]:
    made = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    return made.apply_chat_template(MESSAGES, tokenize=True, return_dict=False)


def test_a_changed_template_is_another_encoder(tokenizer: Path) -> None:
    before, read = fingerprint([tokenizer]), tokens(tokenizer)
    (tokenizer / "chat_template.jinja").write_text(OTHER, encoding="utf-8")
    assert tokens(tokenizer) != read
    assert fingerprint([tokenizer]) != before


@pytest.mark.parametrize(
    "name",
    [
        *("merges.txt", "vocab.txt", "spiece.model", "qwen.tiktoken", "source.spm", "vocab.bpe"),
        *("tokenizer_config.json", "chat_template.jinja", "additional_chat_templates/tool.jinja"),
        "model.safetensors",
    ],
)
def test_each_of_its_files_counts(tokenizer: Path, name: str) -> None:
    (tokenizer / name).parent.mkdir(exist_ok=True)
    (tokenizer / name).write_bytes(b"{}")
    before = fingerprint([tokenizer])
    (tokenizer / name).write_bytes(b"{} ")
    assert fingerprint([tokenizer]) != before
    (tokenizer / name).unlink()
    assert fingerprint([tokenizer]) != before


@pytest.mark.parametrize(
    "name",
    [
        *("README.md", "LICENSE", ".gitattributes", "pytorch_model.bin", "modeling.py"),
        *("model.fp16.safetensors", "figures/quality.json"),
    ],
)
def test_what_nothing_reads_does_not(tokenizer: Path, name: str) -> None:
    before = fingerprint([tokenizer])
    (tokenizer / name).parent.mkdir(exist_ok=True)
    (tokenizer / name).write_bytes(b"anything")
    assert fingerprint([tokenizer]) == before


def test_a_copy_reads_texts_as_it_does(tokenizer: Path, tmp_path: Path) -> None:
    more = tokenizer / "additional_chat_templates" / "tool.jinja"
    more.parent.mkdir()
    more.write_text(OTHER, encoding="utf-8")
    copy_encoder(tokenizer, tmp_path / "copy", weights=False)
    assert tokens(tmp_path / "copy") == tokens(tokenizer)
    assert fingerprint([tmp_path / "copy"]) == fingerprint([tokenizer])
    (tmp_path / "copy" / "chat_template.jinja").write_text(OTHER, encoding="utf-8")
    with pytest.raises(FileError, match=r"chat_template\.jinja has .* bytes"):
        check_manifest(tmp_path / "copy", remedy="copy it again", error=FileError)
