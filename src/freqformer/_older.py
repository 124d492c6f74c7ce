"""What files of older versions say, in today's words.

A model's config, a routing table or a run's settings may be older than this version. What they hold
is taken, with one FutureWarning for each of them that names today's words.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypeVar

Called = TypeVar("Called", bound=Callable[..., Any])

FIELDS: dict[str, dict[str, str]] = {
    "band_features": {"values": "high_pass_values", "gains": "band_gains", "strict": "own_band"},
    "low_output": {"synthesis": "inverse_dct"},
}
"""Values of `FreqFormerConfig` that have another word today."""
SETTINGS = {
    "num_heads": "num_attention_heads",
    "head_dim": "attention_head_dim",
    "text_dim": "cross_attention_dim",
    "prediction": "prediction_type",
}
"""Settings of the transformer that have another name today."""
IN_THE_RECORD = {
    "attention": "frequency.allocation",
    "routing": "frequency.routing",
    "allocation": "frequency.allocation",
    "prior": "frequency.prior",
    "low_beside": "frequency.low_branch",
}
"""Settings of the transformer that are fields of its `frequency` today."""
ROUTING = {None: "soft", "timed": "timestep", "learned": "hard"}
PRIOR = {None: "noise_level", "paper": "noise_level"}
PREDICTION = {"clip": "sample"}
SUMMARY_TOKENS = 256
"""What older versions took where a record named no `summary_tokens`."""


def current_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a `FreqFormerConfig` with today's words; a FutureWarning names what was older."""
    made, told = _current_fields(values)
    _warn(told)
    return made


def current_settings(settings: Mapping[str, Any], *, warn: bool = True) -> dict[str, Any]:
    """Settings of a `FreqFormerTransformer3DModel` with today's names and words.

    Args:
        settings: of any version, by name; those that are unknown stay.
        warn: whether a FutureWarning names what was older.

    Returns: new settings; of today's version all of them unchanged.
    """
    made = {name: value for name, value in settings.items() if name not in IN_THE_RECORD}
    told = []
    for old, new in SETTINGS.items():
        if old in made:
            told.append(f"{old} is {new}")
            made[new] = made.pop(old)
    if _hashable(made.get("prediction_type")) in PREDICTION:
        told.append("prediction 'clip' is prediction_type 'sample'")
        made["prediction_type"] = PREDICTION[made["prediction_type"]]
    older = {name: settings[name] for name in IN_THE_RECORD if name in settings}
    frequency = made.get("frequency")
    if (told or older) and isinstance(frequency, Mapping | None):
        fields, renamed = _current_fields(frequency or {})
        made["frequency"] = _defaults(older, frequency) | _layer_fields(older) | fields
        bands = older.get("allocation")
        if _nested(bands) and older.get("attention") != "dense":
            made["layer_allocations"] = bands
        told += [f"{name} is {IN_THE_RECORD[name]}" for name in older] + renamed
        told += [
            f"{name} {older[name]!r} is {words[older[name]]!r}"
            for name, words in (("routing", ROUTING), ("prior", PRIOR))
            if isinstance(older.get(name), str) and older[name] in words
        ]
    if warn:
        _warn(told)
    return made


def takes_old_settings(init: Called) -> Called:
    """The constructor of the transformer, which takes its arguments by older names too."""

    @wraps(init)
    def call(self: Any, *given: Any, **named: Any) -> None:
        # A record that is one already says all: with it an older argument is one too many.
        whole = not isinstance(named.get("frequency"), Mapping | None)
        if not (whole and any(name in named for name in IN_THE_RECORD)):
            named = current_settings(named)
        init(self, *given, **named)

    return call  # type: ignore[return-value]


def _current_fields(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    made, told = dict(values), []
    for name, words in FIELDS.items():
        new = words.get(_hashable(made.get(name)))
        if new is not None:
            told.append(f"{name} {made[name]!r} is {new!r}")
            made[name] = new
    return made, told


def _defaults(older: Mapping[str, Any], frequency: Mapping[str, Any] | None) -> dict[str, Any]:
    """What an older version took where the record said nothing."""
    weighs = older.get("routing") in (None, "soft", "timed")
    return {"summary_tokens": 0 if frequency is None and weighs else SUMMARY_TOKENS}


def _layer_fields(older: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the record that were settings of their own; what could not act is left out."""
    if older.get("attention") == "dense":
        return {"allocation": "dense", "routing": "fixed", "low_branch": False, "prior": "none"}
    given = older.get("routing")
    routing = ROUTING.get(_hashable(given), given)
    weighs = routing in ("soft", "timestep")
    bands, beside, prior = (older.get(name) for name in ("allocation", "low_beside", "prior"))
    rule = "high" if weighs else "thirds"
    return {
        "allocation": rule if bands is None or _nested(bands) else bands,
        "routing": routing,
        "low_branch": weighs if beside is None else beside,
        "prior": PRIOR.get(_hashable(prior), prior) if routing == "hard" else "none",
    }


def _nested(bands: Any) -> bool:
    """Whether there are bands for every layer, rather than the same for all."""
    return isinstance(bands, list | tuple) and any(isinstance(one, list | tuple) for one in bands)


def _hashable(value: Any) -> Any:
    """The value as a key of a dict; a file can hold anything."""
    return value if isinstance(value, str | None) else ...


def _warn(told: list[str]) -> None:
    if told:
        warnings.warn(
            f"this was written by an older version of freqformer, and is taken in today's words: "
            f"{', '.join(told)}; save it again to keep them",
            FutureWarning,
            stacklevel=3,
        )
