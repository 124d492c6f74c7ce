"""Checkpoint folders: round trip, damage, and disks that are full."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from tests.support.damage import flip_bits
from tests.support.file_limit import file_limit

from freqformer._files import MANIFEST_NAME
from freqformer.training.checkpoint import (
    CheckpointError,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)

GROUPS = ("model", "ema", "optimizer")


def save(folder: Path, step: int, *, size: int = 64, keep: int = 2) -> Path:
    groups = {
        name: {"a.weight": torch.full((size,), float(step)), "b": torch.tensor(i)}
        for i, name in enumerate(GROUPS)
    }
    return save_checkpoint(
        folder, step, groups, {"step": step, "nested": {"list": [1, "x", None]}}, keep=keep
    )


def assert_loads(folder: Path, step: int) -> None:
    newest = newest_checkpoint(folder)
    assert newest == folder / f"step-{step:08d}"
    groups, state = load_checkpoint(newest)
    assert state == {"step": step, "nested": {"list": [1, "x", None]}}
    assert tuple(groups) == GROUPS
    for i, name in enumerate(GROUPS):
        assert set(groups[name]) == {"a.weight", "b"}
        assert float(groups[name]["a.weight"].mean()) == step
        assert int(groups[name]["b"]) == i


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8]
)
def test_tensors_come_back_bit_for_bit(tmp_path, dtype):
    tensors = {
        "x": torch.randn(3, 5).mul(100).to(dtype),
        "scalar": torch.tensor(3).to(dtype),
        "strided": torch.ones(4, 6)[:, ::2],
    }
    path = save_checkpoint(tmp_path, 1, {"model": tensors, "empty": {}}, {})
    groups, state = load_checkpoint(path)
    assert state == {}
    assert groups["empty"] == {}
    for name, tensor in tensors.items():
        assert groups["model"][name].dtype == tensor.dtype
        assert torch.equal(groups["model"][name], tensor)
    assert {file.suffix for file in path.iterdir()} == {".safetensors", ".json"}


def test_only_the_newest_stay(tmp_path):
    for step in (5, 10, 100):
        save(tmp_path, step, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000100"]
    assert_loads(tmp_path, 100)


def test_steps_beyond_eight_digits_are_still_ordered(tmp_path):
    save(tmp_path, 99_999_999)
    save(tmp_path, 100_000_000)
    assert_loads(tmp_path, 100_000_000)


def test_a_run_that_went_back_drops_what_came_later(tmp_path):
    """Else its own checkpoints, being older in steps, would be the ones removed."""
    save(tmp_path, 10)
    (save(tmp_path, 20) / "ema.safetensors").unlink()
    assert_loads(tmp_path, 10)
    save(tmp_path, 15, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000015"]


def test_a_step_is_saved_again_over_its_damaged_self(tmp_path):
    (save(tmp_path, 10) / "ema.safetensors").unlink()
    save(tmp_path, 10)
    assert_loads(tmp_path, 10)


def test_no_checkpoint_yet(tmp_path):
    assert newest_checkpoint(tmp_path / "none") is None
    (tmp_path / "step-x").mkdir()
    (tmp_path / "step-00000001").touch()
    assert newest_checkpoint(tmp_path) is None


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def garble(path: Path) -> None:
    path.write_bytes(os.urandom(path.stat().st_size))


def old(path: Path) -> Path:
    """As versions without checksums wrote a checkpoint."""
    (path / MANIFEST_NAME).unlink()
    return path


def write_old(text: str):
    def change(path: Path) -> None:
        old(path.parent)
        path.write_text(text)

    return change


def rewrite(**values):
    def change(path: Path) -> None:
        old(path.parent)
        record = {**json.loads(path.read_text()), **values}
        path.write_text(
            json.dumps({key: value for key, value in record.items() if value is not None})
        )

    return change


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("model.safetensors", cut, r"model\.safetensors has \d+ bytes and \d+ bytes were written"),
        ("ema.safetensors", empty, r"ema\.safetensors has 0 bytes"),
        ("optimizer.safetensors", Path.unlink, r"optimizer\.safetensors is missing"),
        ("state.json", Path.unlink, r"is no checkpoint: state\.json is missing"),
        ("state.json", cut, r"state\.json has \d+ bytes and \d+ bytes were written"),
        ("state.json", write_old("{"), r"state\.json can't be read"),
        ("state.json", write_old(""), r"state\.json can't be read"),
        ("state.json", garble, r"state\.json is damaged"),
        ("state.json", rewrite(format=3), r"has format 3; 1 and 2 are allowed"),
        ("state.json", rewrite(format=2), r"has format 2 and no shards of ranks"),
        ("state.json", rewrite(groups=None), r"lacks its groups or state"),
        ("state.json", rewrite(state=[]), r"lacks its groups or state"),
        ("state.json", write_old("[]"), r"state\.json holds list; an object is allowed"),
        ("state.json", write_old('{"a":' * 10**5), r"state\.json can't be read \(nested"),
        (
            "state.json",
            rewrite(step=10**30),
            r"state\.json can't be read \(an integer beyond 64 bits\)",
        ),
        ("model.safetensors", garble, r"model\.safetensors is damaged"),
        (
            "state.json",
            rewrite(groups={"../../secret": 3}),
            r"names groups \['\.\./\.\./secret'\] outside its folder",
        ),
        (
            "state.json",
            rewrite(groups={"/etc/secret": 3}),
            r"names groups \['/etc/secret'\] outside its folder",
        ),
        (MANIFEST_NAME, empty, r"manifest\.json can't be read"),
        (
            "state.json",
            rewrite(groups={"model": 3}),
            r"model\.safetensors has \d+ bytes and 3 bytes were written",
        ),
    ],
)
def test_damage_is_named_and_the_one_before_is_taken(tmp_path, caplog, name, damage, message):
    save(tmp_path, 10)
    path = save(tmp_path, 20)
    damage(path / name)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)
    assert_loads(tmp_path, 10)
    assert "step-00000020" in caplog.text
    shutil.rmtree(tmp_path / "step-00000010")
    with pytest.raises(CheckpointError, match=rf"holds no whole checkpoint: .*{message}"):
        newest_checkpoint(tmp_path)


def test_checkpoints_without_checksums_load_and_are_replaced(tmp_path, caplog):
    for step in (10, 20):
        old(save(tmp_path, step))
    assert_loads(tmp_path, 20)
    garble(tmp_path / "step-00000020" / "model.safetensors")
    assert_loads(tmp_path, 10)
    assert "model.safetensors can't be read: " in caplog.text
    save(tmp_path, 15)
    save(tmp_path, 16)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000015", "step-00000016"]


@pytest.mark.parametrize("count", [40, pytest.param(500, marks=pytest.mark.slow)])
def test_every_flipped_bit_is_named_and_the_one_before_is_taken(tmp_path, caplog, count):
    """F107, F113."""
    save(tmp_path, 10)
    path = save(tmp_path, 20)
    for file, _ in flip_bits(path, count):
        caplog.clear()
        assert_loads(tmp_path, 10)
        assert str(file) in caplog.text or file.name == MANIFEST_NAME
        assert str(path) in caplog.text
    assert_loads(tmp_path, 20)


def test_where_all_are_damaged_each_is_named(tmp_path):
    for step in (10, 20):
        cut(save(tmp_path, step) / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"no whole checkpoint: .*step-00000020.*; .*step-00000010"
    ):
        newest_checkpoint(tmp_path)


def test_a_second_run_removes_nothing(tmp_path):
    """F101: a run that began at step 100 finds that another has gone on from there."""
    for step in (100, 9000, 10_000):
        save(tmp_path, step)
    with pytest.raises(
        CheckpointError,
        match=r"step-0000\d+ is later than step 200 of this run, so another run writes",
    ):
        save(tmp_path, 200)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00009000", "step-00010000"]


def test_what_a_user_put_into_a_checkpoint_is_kept(tmp_path, caplog):
    (save(tmp_path, 1) / "notes.txt").write_text("mine")
    save(tmp_path, 2, keep=1)
    assert (tmp_path / "step-00000001" / "notes.txt").read_text() == "mine"
    assert (
        "step-00000001 holds what this package did not write there as its own checkpoint "
        "(notes.txt)" in caplog.text
    )


def test_checkpoints_on_another_disk(tmp_path):
    """F102: a folder of checkpoints, or one of them, that is a link."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    save(tmp_path / "run", 1)
    (tmp_path / "disk" / "step-00000001").rename(tmp_path / "moved")
    (tmp_path / "disk" / "step-00000001").symlink_to(tmp_path / "moved")
    assert_loads(tmp_path / "run", 1)
    save(tmp_path / "run", 1)
    save(tmp_path / "run", 2, keep=1)
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["step-00000002"]
    assert_loads(tmp_path / "run", 2)


def test_names_of_groups_are_plain(tmp_path):
    with pytest.raises(ValueError, match=r"groups holds '\.\./x'"):
        save_checkpoint(tmp_path / "run", 1, {"../x": {"a": torch.ones(1)}}, {})
    assert list(tmp_path.rglob("*.safetensors")) == []


def test_missing_folder(tmp_path):
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        load_checkpoint(tmp_path / "step-00000001")


@pytest.mark.parametrize("free_kib", [0, 4, 20, 60, 100, 140, 180])
def test_full_disk(small_disk, free_kib):
    """Three files of 64 KiB and one small one; each is once the one that finds the disk full."""
    save(small_disk, 10, size=16_000)
    free = os.statvfs(small_disk)
    with (small_disk / "filler").open("wb") as file:
        file.write(bytes(max(free.f_bavail * free.f_bsize - free_kib * 1024, 0)))
    with pytest.raises(
        CheckpointError,
        match=r"step-00000020 can't be written: .*[Nn]o space left on device.*free space",
    ):
        save(small_disk, 20, size=16_000)
    assert sorted(path.name for path in small_disk.iterdir()) == ["filler", "step-00000010"]
    assert_loads(small_disk, 10)
    (small_disk / "filler").unlink()
    save(small_disk, 20, size=16_000)
    assert_loads(small_disk, 20)


def test_a_file_that_may_not_grow(tmp_path):
    save(tmp_path, 10)
    with (
        file_limit(32 * 1024),
        pytest.raises(CheckpointError, match=r"step-00000020 can't be written: .*too large"),
    ):
        save(tmp_path, 20, size=16_000)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000010"]
    assert_loads(tmp_path, 10)


def test_a_place_where_no_folder_can_be(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="can't be written"):
        save(tmp_path / "file" / "run", 1)
