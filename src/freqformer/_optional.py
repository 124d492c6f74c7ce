"""Packages that only a part of FreqFormer needs, and what to say where one is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

EXTRAS = {
    "model": {"accelerate", "diffusers", "huggingface_hub"},
    "train": {
        "PIL",
        "accelerate",
        "av",
        "diffusers",
        "huggingface_hub",
        "matplotlib",
        "rich",
        "tensorboard",
    },
    "simulate": {"matplotlib", "plotly"},
    "text": {"accelerate", "diffusers", "ftfy", "huggingface_hub", "sentencepiece", "transformers"},
    "lora": {"accelerate", "diffusers", "huggingface_hub", "peft"},
    "cli": {"rich", "typer"},
}
"""The packages that each extra of pyproject.toml brings, by the names that are imported."""


class MissingPackageError(ImportError, ValueError):
    """A package is not installed; the message says how to install it."""


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Around imports of what `extra` brings: names the extra where a package of it is missing.

    Raises:
        MissingPackageError: such a package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS[extra]:
            raise
        text = f"this part of FreqFormer needs {package}, which is not installed"
        raise MissingPackageError(
            f"{text}: pip install 'freqformer[{extra}]'", name=package
        ) from error
