"""The fixed set of calls whose results are kept, in the words of the commit that made them.

`words.py` translates them to today's. Every case draws its inputs from its own name, so a case can
be added without a change to the others.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

RAGGED = (5, 5, 7)
"""27 tiles of (2, 2, 3), those at three of the six sides cut."""
SMALL = (3, 3, 4)
"""8 tiles of it: few enough for kernels in the interpreter."""
CONFIG: dict[str, Any] = {
    "tile": (2, 2, 3),
    "compression": 6,
    "mid_cutoff": 0.5,
    "band_features": "full",
    "mid_pattern": "topk",
    "mid_tiles": 4,
    "radial_radius": 2,
    "window": (3, 3, 3),
    "summary_tokens": 8,
    "low_output": "interpolate",
    "deterministic": True,
}
"""Every field, so that no default matters."""
BANDS = {"low": (0, 0, 0, 0), "mid": (1, 1, 1, 1), "high": (2, 2, 2, 2), "dense": (3, 3, 3, 3)}
MIXED = (0, 1, 2, 3)
ORDERS = ("raster", "tile")
EVERYTHING = ("norms", "rotary", "summaries", "offsets")
HEADS, HEAD_DIM, BATCH = 4, 16, 2


@dataclass(frozen=True)
class OperationCase:
    """One call of `frequency_attention`."""

    name: str
    allocation: tuple[Any, ...] = MIXED
    """The band of every head, or of every head of every sample."""
    config: dict[str, Any] = field(default_factory=dict)
    """What differs from CONFIG."""
    grid: tuple[int, int, int] = RAGGED
    token_order: str = "raster"
    learned: tuple[str, ...] = EVERYTHING
    """Of norms, rotary, rotary gradients, summaries, offsets, offsets by sample and gains."""
    text: int = 0
    masked: bool = False
    selection: int = 0
    """Tiles that MID heads are given by hand; 0 lets the call choose."""
    gates: tuple[str, ...] = ()
    """Of by_token and by_sample: a LOW branch of every head, added by these gates."""


@dataclass(frozen=True)
class LayerCase:
    """One call of a `FreqAttention` layer."""

    name: str
    layer: dict[str, Any] = field(default_factory=dict)
    """Arguments of the layer in addition to its sizes and config."""
    config: dict[str, Any] = field(default_factory=dict)
    grid: tuple[int, int, int] = RAGGED
    token_order: str = "raster"
    router_training: str = "off"
    flop_budget: float | None = None
    table: tuple[tuple[int, ...], ...] = ()
    """Bands of a routing table by timestep bucket; empty for none."""


def _operations() -> list[OperationCase]:
    made = _bands_and_orders()
    made += _shapes_and_text()
    made += _meanings_of_bands()
    made += _low_branches()
    return made


def _bands_and_orders() -> list[OperationCase]:
    made = []
    for order in ORDERS:
        for band, allocation in BANDS.items():
            made.append(OperationCase(f"{band}, {order}", allocation, token_order=order))
        made.append(OperationCase(f"mixed, {order}", token_order=order))
        made.append(OperationCase(f"nothing learned, {order}", token_order=order, learned=()))
        made.append(OperationCase(f"by sample, {order}", (MIXED, (2, 2, 1, 0)), token_order=order))
    made.append(OperationCase("offsets by sample", learned=(*EVERYTHING, "offsets by sample")))
    made.append(OperationCase("gradient of rotary", learned=("norms", "rotary gradients")))
    return made


def _shapes_and_text() -> list[OperationCase]:
    made = [
        OperationCase("one frame", grid=(1, 9, 11), token_order="tile"),
        OperationCase("own tile", config={"tile": None}, grid=(7, 6, 8)),
        OperationCase("less than a tile", grid=(2, 2, 3)),
        OperationCase("long and thin", grid=(23, 2, 3), token_order="tile"),
        OperationCase("no summaries", config={"summary_tokens": 0}),
        OperationCase("summaries of low only", learned=("norms",)),
        OperationCase("a summary for every tile", config={"summary_tokens": 64}),
        OperationCase("text, no summaries", config={"summary_tokens": 0}, text=3),
    ]
    for order in ORDERS:
        made.append(OperationCase(f"text, {order}", text=5, token_order=order))
        made.append(
            OperationCase(f"text with mask, {order}", text=5, masked=True, token_order=order)
        )
    for band, allocation in BANDS.items():
        made.append(OperationCase(f"text, {band}", allocation, text=5, masked=True))
    return made


def _meanings_of_bands() -> list[OperationCase]:
    made = []
    for order in ORDERS:
        for features in ("values", "gains", "strict"):
            learned = (*EVERYTHING, "gains") if features == "gains" else EVERYTHING
            made.append(
                OperationCase(
                    f"{features}, {order}",
                    config={"band_features": features},
                    token_order=order,
                    learned=learned,
                )
            )
        for pattern in ("axial", "radial"):
            made.append(
                OperationCase(
                    f"{pattern}, {order}",
                    (1, 1, 2, 0),
                    config={"mid_pattern": pattern},
                    token_order=order,
                )
            )
        made.append(
            OperationCase(
                f"inverse DCT, {order}",
                (0, 0, 1, 2),
                config={"low_output": "synthesis"},
                token_order=order,
            )
        )
        made.append(OperationCase(f"given tiles, {order}", selection=3, token_order=order))
    made += [
        OperationCase("every tile", config={"mid_tiles": None}),
        OperationCase("gains with text", config={"band_features": "gains"}, text=5),
        OperationCase("values with text", config={"band_features": "values"}, text=5),
        OperationCase("flat window", config={"window": (1, 3, 3)}),
        OperationCase("wide window", config={"window": (3, 1, 5)}),
        OperationCase("no compression", config={"compression": 1}),
        OperationCase("strong compression", config={"compression": 12}),
        OperationCase("broken compression", config={"compression": 4.5}),
        OperationCase("higher cutoff", config={"band_features": "strict", "mid_cutoff": 0.8}),
    ]
    return made


def _low_branches() -> list[OperationCase]:
    both = ("by_token", "by_sample")
    made = []
    for order in ORDERS:
        for gates in (both, ("by_token",), ("by_sample",)):
            name = f"low branch {' and '.join(gates)}, {order}"
            made.append(OperationCase(name, BANDS["high"], token_order=order, gates=gates))
        made.append(OperationCase(f"low branch of mixed, {order}", token_order=order, gates=both))
    inverse = {"low_output": "synthesis"}
    made += [
        OperationCase("low branch of low", BANDS["low"], gates=both),
        OperationCase("low branch by sample of bands", (MIXED, (2, 2, 1, 0)), gates=both),
        OperationCase("low branch, strict", config={"band_features": "strict"}, gates=both),
        OperationCase("low branch, values", config={"band_features": "values"}, gates=both),
        OperationCase("low branch, inverse DCT", config=inverse, gates=both),
        OperationCase(
            "low branch, no summaries",
            BANDS["high"],
            config={"summary_tokens": 0},
            learned=("norms", "rotary"),
            gates=both,
        ),
        OperationCase("low branch, one frame", grid=(1, 9, 11), gates=both),
    ]
    return made


def _small() -> list[OperationCase]:
    """Cases that Triton's kernels take in the interpreter too."""
    few = {"summary_tokens": 4}

    def small(name: str, *given: Any, config: dict[str, Any], **named: Any) -> OperationCase:
        return OperationCase(f"small, {name}", *given, config=few | config, grid=SMALL, **named)

    text: dict[str, Any] = {"text": 5, "masked": True}
    gates = ("by_token", "by_sample")
    return [
        small("mixed", config={}),
        small("by sample", (MIXED, (2, 2, 1, 0)), config={}, token_order="tile"),
        small("gains", (0, 1, 2, 2), config={"band_features": "gains"}),
        small("radial", (1, 1, 2, 0), config={"mid_pattern": "radial"}, token_order="tile"),
        small("inverse DCT", (0, 0, 2, 2), config={"low_output": "synthesis"}),
        small("text with mask", config={}, token_order="tile", **text),
        small("low branch", BANDS["high"], config={"summary_tokens": 0}, gates=gates),
        small("low branch of mixed", config={}, token_order="tile", gates=gates),
    ]


SMALL_OPERATIONS = _small()
OPERATIONS = [*_operations(), *SMALL_OPERATIONS]
QUIET = {"summary_tokens": 0}
SMALL_LAYERS = [
    LayerCase("small, soft", config=QUIET, grid=SMALL),
    LayerCase("small, timed", {"routing": "timed"}, QUIET, grid=SMALL, token_order="tile"),
    LayerCase("small, learned", {"routing": "learned"}, {"summary_tokens": 4}, grid=SMALL),
]
LAYERS = [
    LayerCase("soft"),
    LayerCase("soft, tile", token_order="tile"),
    LayerCase("soft, no summaries", config=QUIET),
    LayerCase("soft, mixed", {"allocation": (0, 1, 2, 2)}),
    LayerCase("soft, gains", config={"band_features": "gains"}),
    LayerCase("timed", {"routing": "timed"}),
    LayerCase("timed, no summaries, tile", {"routing": "timed"}, QUIET, token_order="tile"),
    LayerCase("fixed", {"routing": "fixed"}),
    LayerCase("fixed, high", {"routing": "fixed", "allocation": BANDS["high"]}, QUIET),
    LayerCase("fixed, with dense", {"routing": "fixed", "allocation": (3, 2, 1, 0)}),
    LayerCase("fixed, low branch", {"routing": "fixed", "low_beside": True}),
    LayerCase("fixed, strict", {"routing": "fixed"}, {"band_features": "strict"}),
    LayerCase("learned", {"routing": "learned"}),
    LayerCase("learned, tile", {"routing": "learned"}, token_order="tile"),
    LayerCase("learned, no prior", {"routing": "learned", "prior": "none"}, QUIET),
    LayerCase("learned, low branch", {"routing": "learned", "low_beside": True}, QUIET),
    LayerCase("learned, in training", {"routing": "learned"}, router_training="all"),
    LayerCase("learned, in budget", {"routing": "learned"}, flop_budget=0.4),
    LayerCase("table", {"routing": "learned"}, table=((2, 2, 0, 1), (0, 1, 1, 3))),
    LayerCase("soft, table", table=((2, 2, 0, 1), (0, 1, 1, 2))),
    LayerCase("dense", {"attention": "dense"}),
    *SMALL_LAYERS,
]
