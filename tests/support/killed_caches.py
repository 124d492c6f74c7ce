"""Caches whose making is killed, each in a fork: `python -m tests.support.killed_caches FOLDER
KILLS`. The folder holds `videos` and `encoders`."""

from __future__ import annotations

import os
import random
import select
import signal
import sys
from functools import partial
from pathlib import Path

import torch
from tests.support.killed_runs import CHANGES, kill_self, start, tell, wait
from tests.support.tiny_cache import cache_config

from freqformer.training.cache.making import make_cache


def make(folder: Path, output: str) -> None:
    # A shard for every clip.
    make_cache(cache_config(folder, output=str(folder / output), shard_mib=0.001))


def killed_at_operation(folder: Path, last: int) -> None:
    """Kill itself before a file operation."""
    done = 0

    def count(event: str, _: object) -> None:
        nonlocal done
        if event in CHANGES:
            done += 1
            if done == last:
                kill_self()

    sys.addaudithook(count)
    make(folder, "killed")


def main(folder: Path, kills: int) -> None:
    assert wait(start(lambda: make(folder, "straight"))) == 0
    chance = random.Random(0)
    for turn in range(kills):
        if turn % 2 == 0:
            # Early at first: a fast machine may be done before a kill by the clock.
            last = chance.randint(1, 400 if turn else 20)
            child = start(partial(killed_at_operation, folder, last))
        else:
            child = start(lambda: make(folder, "killed"))
            select.select([], [], [], chance.uniform(0, 0.6))
            os.kill(child, signal.SIGKILL)
        ended = wait(child) == 0
        shards = len(list((folder / "killed").glob("*.safetensors")))
        tell("kills", ended=ended, shards=shards)
    assert wait(start(lambda: make(folder, "killed"))) == 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]))
