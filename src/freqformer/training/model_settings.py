"""The constructor arguments of a run's model: compared with others, and what no run can train."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from freqformer._older import current_settings
from freqformer._validate import shown
from freqformer.config import FreqFormerConfig


def without_notes(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings less what diffusers notes in a model's `config` for itself, such as
    `_use_default_values`, whose order is another in every process.

    Args:
        settings: a model's `config`, or constructor arguments.
    """
    return {name: value for name, value in settings.items() if not str(name).startswith("_")}


def whole_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a model to compare with others: in today's words, as JSON holds them, and with
    all fields of `frequency`.

    Args:
        settings: of any version, maybe damaged: a `frequency` that is no record stays as it is.
    """
    made = current_settings(without_notes(settings), warn=False)
    if isinstance(made.get("frequency"), Mapping):
        with suppress(ValueError):
            made["frequency"] = FreqFormerConfig.from_dict(dict(made["frequency"])).to_dict()
    return json.loads(json.dumps(made))


def refuse_text(arguments: Mapping[str, Any]) -> None:
    """Raise ValueError for constructor arguments of a model that takes text, which no clip has."""
    if arguments.get("cross_attention_dim") is not None:
        raise ValueError(
            f"model has cross_attention_dim={shown(arguments['cross_attention_dim'])}; None is"
            " allowed: these clips have no text, so what reads text would never learn. Leave"
            " cross_attention_dim out, or train on a cache with captions (freqformer cache)"
        )
