"""Manifests and seals find every flipped bit, and say where."""

from __future__ import annotations

import json

import pytest
from tests.support.damage import flip_bits

from freqformer._files import (
    MANIFEST_NAME,
    FileError,
    check_manifest,
    check_seal,
    sealed,
    write_manifest,
)


@pytest.fixture
def folder(tmp_path):
    target = tmp_path / "model"
    (target / "inner").mkdir(parents=True)
    (target / "a.json").write_text('{"x": 1}')
    (target / "inner" / "b.safetensors").write_bytes(bytes(range(100)))
    (target / "card.md").write_text("card")
    write_manifest(target, "model")
    return target


def check(folder) -> bool:
    return check_manifest(folder, remedy="save it again")


def test_a_folder_without_manifest_is_not_held_to_one(tmp_path):
    assert check(tmp_path) is False


@pytest.mark.parametrize("inner", [False, True])
def test_every_flip_is_found_and_named(folder, caplog, inner):
    if inner:
        write_manifest(folder / "inner", "part")
        write_manifest(folder, "model")
        assert "inner" not in (folder / MANIFEST_NAME).read_text()
    assert check(folder) is True
    for path, _ in flip_bits(folder, 200):
        caplog.clear()
        if path.suffix == ".md":
            assert check(folder) is True
            assert f"{path} is damaged" in caplog.text
            continue
        with pytest.raises(FileError) as caught:
            check(folder)
        assert str(path) in str(caught.value) or path.name == MANIFEST_NAME
    assert check(folder) is True


def test_what_is_missing_or_longer_is_named_with_all_others(folder):
    (folder / "a.json").unlink()
    (folder / "inner" / "b.safetensors").write_bytes(b"")
    with pytest.raises(
        FileError,
        match=(
            r"a\.json is missing; .*b\.safetensors has 0 bytes and 100 bytes were written: "
            r"save it"
        ),
    ):
        check(folder)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "", "c:\\x", "a//b"])
def test_names_outside_the_folder_are_refused(folder, name):
    record = {
        "format": "freqformer-manifest-1",
        "kind": "model",
        "files": {name: {"bytes": 1, "sha256": ""}},
    }
    (folder / MANIFEST_NAME).write_text(json.dumps(sealed(record)))
    with pytest.raises(FileError, match="outside its folder"):
        check(folder)


def test_a_seal_holds_a_record_together(tmp_path):
    record = sealed({"a": (1, 2.5), "b": {"c": None}})
    read = json.loads(json.dumps(record))
    check_seal(read, tmp_path, remedy="")
    assert sealed(read) == read
    for changed in (
        {**read, "a": [1, 2]},
        {**read, "d": 0},
        {**read, "seal": ""},
        {"a": [1, 2.5], "b": {"c": None}},
    ):
        with pytest.raises(FileError, match="is damaged"):
            check_seal(changed, tmp_path, remedy="")
