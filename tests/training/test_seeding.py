"""Seeds by name."""

from __future__ import annotations

import random

import numpy as np
import torch

from freqformer.training.seeding import derive_generator, derive_seed, seed_everything


def test_seeds_depend_on_every_part_and_on_nothing_else():
    parts = [(0,), (1,), (0, 0), (0, "noise"), (0, "clip"), (0, "noise", 1), ("0",), ("0", "noise")]
    seeds = [derive_seed(*p) for p in parts]
    assert len(set(seeds)) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)
    # A changed value would change every run that was ever started.
    assert derive_seed(0, "noise", 1) == 2376061928063757211
    assert torch.equal(
        torch.rand(3, generator=derive_generator(1, 2)),
        torch.rand(3, generator=derive_generator(1, 2)),
    )


def test_every_global_generator_is_seeded():
    def draw() -> tuple:
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002

    seed_everything(3, "step", 7)
    first = draw()
    seed_everything(3, "step", 8)
    second = draw()
    seed_everything(3, "step", 7)
    assert draw() == first
    assert all(a != b for a, b in zip(first, second, strict=True))
