"""Random bit flips over the files of a folder."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path


def flip_bits(folder: Path, count: int, *, seed: int = 0) -> Iterator[tuple[Path, int]]:
    """Flip one bit at a time, put right again before the next: yields its file and its place in
    bits.

    Every file has its turn, whatever its size, and its first bytes as often as the rest: headers
    are there.
    """
    chance = random.Random(seed)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    for turn in range(count):
        path = files[turn % len(files)]
        whole = path.read_bytes()
        reach = len(whole) if chance.random() < 0.5 else min(len(whole), 256)
        place = chance.randrange(8 * reach)
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            yield path, place
        finally:
            path.write_bytes(whole)
