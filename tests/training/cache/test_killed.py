"""Kills, signals and full disks while caching: nothing is lost, and the bytes are the same."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.killed_caches import make
from tests.support.tiny_cache import cache_config

from freqformer._interrupt import Interrupted
from freqformer.training.cache import making
from freqformer.training.cache.filling import Filler
from freqformer.training.cache.making import make_cache

ROOT = Path(__file__).parents[3]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def killed(folder: Path, kills: int) -> list[dict]:
    """What became of every kill."""
    command = [sys.executable, "-m", "tests.support.killed_caches", str(folder), str(kills)]
    ran = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=500
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]


@pytest.mark.parametrize("kills", [pytest.param(20, marks=pytest.mark.slow), 6])
def test_a_killed_cache_has_the_same_bytes(copied: Path, kills: int) -> None:
    told = killed(copied, kills)
    assert len(told) == kills
    assert any(not one["ended"] for one in told)
    straight = contents(copied / "straight")
    assert contents(copied / "killed") == straight
    assert sum(name.startswith("latents") for name in straight) == 5


def test_a_signal_keeps_the_shard_under_way(copied: Path, monkeypatch) -> None:
    fill = Filler.fill_latents
    done = []

    def signalled(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        fill(*arguments)
        done.append(1)

    monkeypatch.setattr(Filler, "fill_latents", signalled)
    config = cache_config(copied, output=str(copied / "other"), shard_mib=0.001)
    with pytest.raises(Interrupted, match="keeps what is done, the same command goes on"):
        make_cache(config)
    assert len(done) == 1
    assert len(list((copied / "other").glob("latents-*.safetensors"))) == 1
    monkeypatch.undo()
    make_cache(config)
    assert len(list((copied / "other").glob("latents-*.safetensors"))) == 5


def test_a_full_disk_keeps_what_is_done(copied: Path, small_disk: Path, monkeypatch) -> None:
    # Encoders take most of this disk.
    fill = Filler.fill_latents
    filler = small_disk / "filler"

    def crowded(*arguments):
        if list((small_disk / "cache").glob("latents-*")):
            free = shutil.disk_usage(small_disk).free
            filler.write_bytes(bytes(max(free - 4096, 0)))
        fill(*arguments)

    monkeypatch.setattr(Filler, "fill_latents", crowded)
    config = cache_config(copied, output=str(small_disk / "cache"), shard_mib=0.001)
    with pytest.raises(
        ValueError, match=r"latents-\S+ can't be written: .*No space left.*free space"
    ):
        make_cache(config)
    kept = contents(small_disk / "cache")
    assert sum(name.startswith("latents") for name in kept) == 1
    assert "index.json" not in kept
    monkeypatch.undo()
    filler.unlink()
    monkeypatch.setattr(making, "copy_encoder", lambda *arguments, **options: None)
    make_cache(config)
    after = contents(small_disk / "cache")
    assert all(after[name] == content for name, content in kept.items())
    assert sum(name.startswith("latents") for name in after) == 5


def test_two_at_once_are_told_of_one_another(copied: Path, monkeypatch) -> None:
    fill = Filler.fill_latents
    seen = []

    def second(*arguments):
        if not seen:
            seen.append(1)
            with pytest.raises(ValueError, match="in use by process"):
                make_cache(config)
        fill(*arguments)

    monkeypatch.setattr(Filler, "fill_latents", second)
    config = cache_config(copied, output=str(copied / "other"))
    make_cache(config)
    assert seen


def test_two_processes_make_the_same_bytes(copied: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tests.support.killed_caches import make;"
        " make(Path(sys.argv[1]), sys.argv[2])"
    )
    script = copied / "make.py"
    script.write_text(program)
    launched = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
        *("--standalone", str(script), str(copied), "two"),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    make(copied, "one")
    ran = subprocess.run(
        launched, capture_output=True, text=True, check=False, env=environment, timeout=300
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert contents(copied / "two") == contents(copied / "one")
