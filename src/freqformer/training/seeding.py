"""Seeds by name: every random number of a run follows from its seed and the number of its step or
clip."""

from __future__ import annotations

import hashlib

import torch

from freqformer._optional import needs


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2**63) that depends on every part; the same on every machine.

    Args:
        parts: what the seed is for, like (run seed, "noise", index).
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def derive_generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded by `derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(*parts))


def seed_everything(*parts: int | str) -> None:
    """Seed the global generators of Python, numpy and torch (every device) by `derive_seed`."""
    with needs("train"):
        from accelerate.utils import set_seed

    # numpy's global generator takes 32 bits.
    set_seed(derive_seed(*parts) % 2**32)
