"""What was simulated and how far to trust it, in words: table, report and JSON say the same."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from freqformer.config import LAYER_FIELDS, Band, FreqFormerConfig
from freqformer.simulate.model.allocations import count_heads
from freqformer.simulate.model.efficiency import Efficiency
from freqformer.simulate.model.presets import PRESETS
from freqformer.simulate.model.scenarios import Scenario
from freqformer.simulate.model.simulation import Result
from freqformer.simulate.present.units import duration
from freqformer.training_free.dials import Dials

ROUTERS = {
    "soft": (
        "soft: a router weighs each head's band and LOW by the layer's statistics and the "
        "noise level"
    ),
    "timestep": "timestep: a router weighs each head's band and LOW by the noise level alone",
    "hard": "hard: a router chooses a band for each head",
    "fixed": "fixed: no router",
}
SCHEDULES = {
    "fixed": "the same at every step",
    "prior": "the paper's prior by noise level, as before any training",
}
LEFT_OUT = (
    "Times of steps and generations are those of the transformer's operations, each at the rate "
    "that "
    "it reaches alone, dense attention with cuDNN's kernel. Left out: text encoder, VAE, patch "
    "embedding, output layer and sampler, and what a pipeline loses. On an H200 a block of Wan2.1 "
    "14B "
    "with dense attention took 1.14 times the time that is said here when compiled, 1.25 times in "
    "plain PyTorch, 1.73 times with FlashAttention 2."
)
"""What a reader must know before comparing a generation with a stopwatch."""


def preset_title(case: Scenario) -> str:
    """The preset's name and what has been changed."""
    changes = case.changes
    return f"preset {case.preset}" + (f" with other {', '.join(changes)}" if changes else "")


def settings(case: Scenario) -> dict[str, str]:
    """Every setting that has a say in the cost, by name."""
    changes = f", with other {', '.join(case.changes)}" if case.changes else ""
    preset = f"{case.preset} ({PRESETS[case.preset].title}){changes}"
    if case.runs_dense:
        return {"preset": preset, "attention": "dense in every head"}
    if case.dials is not None:
        return {"preset": preset} | _dials(case.dials)
    return {
        "preset": preset,
        "split": _split(case),
        "routing": _routing(case),
        "schedule": _schedule(case),
        "learned summaries": _summaries(case),
        "low branch": "gated, added to every head's band" if case.has_low_branch else "none",
    } | {
        name.replace("_", " "): _value(name, value)
        for name, value in plan_settings(case.config).items()
    }


def _dials(dials: Dials) -> dict[str, str]:
    """The dials of a dense model, by name."""
    first, last = dials.dense_blocks
    return {
        "density": f"{dials.density:g} of dense attention's FLOPs in banded steps",
        "banded steps": f"{dials.start_percent:.0%} to {dials.end_percent:.0%} of the sampler's",
        "dense blocks": f"{first} first, {last} last",
        "min tokens": f"{dials.min_tokens:,}; below it everything is dense",
    }


def plan_settings(config: FreqFormerConfig) -> dict[str, Any]:
    """Fields of the configuration that plans depend on; `Scenario` says the others by itself."""
    values = config.to_dict()
    return {name: value for name, value in values.items() if name not in LAYER_FIELDS}


def settings_record(case: Scenario) -> dict[str, Any]:
    """The settings beside the configuration as JSON-able values."""
    table = case.routing.table
    no_bands = case.attention == "dense" and table is None
    return {
        "preset": case.preset,
        "changed_from_preset": case.changes,
        "attention": case.attention,
        "routing": {
            "kind": case.routing.kind,
            "split": None if no_bands else list(_initial(case)[: Band.DENSE]),
            "schedule": case.routing.schedule if table is None else "table",
            "table_shape": None if table is None else list(table.shape),
            "router_reads": case.router,
        },
        "learned_summaries": case.pools_summaries,
        "low_branch": case.has_low_branch,
        "dials": None if case.dials is None else asdict(case.dials),
    }


def _initial(case: Scenario) -> tuple[int, ...]:
    return count_heads(case.initial)


def _schedule(case: Scenario) -> str:
    return (
        "by the table"
        if case.routing.table is not None
        else SCHEDULES[case.routing.schedule or "fixed"]
    )


def _split(case: Scenario) -> str:
    table = case.routing.table
    if table is not None:
        shares = ", ".join(f"{share:.0%} {name}" for name, share in table.shares.items() if share)
        buckets, layers, _ = table.shape
        return f"a table of {buckets} noise levels and {layers} layers: {shares} of the heads"
    heads = zip(Band, _initial(case), strict=True)
    return (
        ", ".join(f"{count} {band.name}" for band, count in heads if count)
        + f" of {case.model.heads} heads at first"
    )


def _routing(case: Scenario) -> str:
    text = ROUTERS[case.routing.kind]
    if case.routing.table is not None:
        text += "; runs beside the table" if case.router else "; the table is in its place"
    return text if case.router or case.routing.kind == "fixed" else f"{text}, not run"


def _summaries(case: Scenario) -> str:
    if case.config.summary_tokens == 0:
        return "none, as there are no summary tokens"
    return (
        "mid and high ones, pooled by learned queries"
        if case.pools_summaries
        else "none, low ones alone"
    )


def _value(name: str, value: object) -> str:
    if value is None:
        return {"tile": "chosen for the grid", "mid_tiles": "every tile"}.get(name, "none")
    return " × ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


MEASURED = ("fitted on", "measured in")
"""How the source of a value begins that rests on measurements."""


def dense_rate_note(result: Result) -> str:
    """The dense generation's time and the rate that this means, to hold against a stopwatch."""
    whole = result.generation
    rate = whole.dense_flops / whole.dense_seconds / 1e12
    steps, passes = result.scenario.model.steps, result.scenario.model.guidance_passes
    return (
        f"With dense attention a generation of {result.scenario.tokens:,} tokens takes "
        f"{duration(whole.dense_seconds)} ({steps} steps of {passes} model "
        f"call{'s' if passes > 1 else ''}), {rate:,.0f} TFLOP/s on average."
    )


def efficiency_notes(result: Result) -> list[str]:
    """What a reader must know about where the times come from."""
    machine = result.scenario.machine
    efficiency, notes = machine.efficiency, []
    if efficiency.transferred:
        notes.append(
            f"Nothing was measured on {machine.hardware.title}: the fractions that kernels achieve "
            "are those of "
            f"{efficiency.name}. Take its times as estimates."
        )
    for word, text in (
        ("probe", "come from probes that are not kept, not from committed benchmarks"),
        ("assumption", "are assumptions, wholly or in part, until they are measured"),
    ):
        sources = efficiency.sources | machine.hardware.sources
        names = [name for name, source in sources.items() if word in source]
        if names:
            notes.append(f"These values {text}: {', '.join(names)}.")
    return notes


def scale_note(efficiency: Efficiency) -> str:
    """Which of the figures of many GPUs rest on measurements of several, and which are foretold."""
    parts = []
    for name, text in (
        ("all_to_all_bandwidth", "the all-to-alls' share of the link's bandwidth, {:.0%}"),
        ("all_to_all_s", "what each takes beside its bytes, {:.1g} s"),
        ("all_to_all_overlap", "the share of their time that computation hides, {:.0%}"),
        ("packing_bandwidth", "the share of memory bandwidth at which heads are sorted, {:.0%}"),
    ):
        source = efficiency.sources.get(name, "")
        if source.startswith(MEASURED) and not efficiency.transferred:
            parts.append(f"{text.format(getattr(efficiency, name))} ({source})")
    if not parts:
        return (
            "Foretold: every figure of more than one GPU. No all-to-all was measured on this "
            "machine: their rate and what computation hides of them are assumptions."
        )
    return (
        f"Measured: {'; '.join(parts)}. Foretold from them, and from what one GPU takes: every "
        "time of more than one GPU. Assumed: latencies, links between nodes, and gathered weights "
        "and keys."
    )


def fit_note(fit: dict[str, Any]) -> str:
    """The errors of the fit and of the hold-out, as a sentence."""
    parts = [
        f"{name}: {fit[key]['count']} measurements, median error {fit[key]['median']:.1%}, worst "
        f"{fit[key]['worst']:.1%}"
        for name, key in (("fitted", "fit"), ("held out", "held_out"))
        if fit.get(key, {}).get("count")
    ]
    text = "Times against committed measurements. " + "; ".join(parts) + "."
    if "held_out" not in fit:
        text += " Nothing was held out, so how well other lengths are predicted is not known."
    if "memory" in fit:
        found = fit["memory"]
        text += (
            f" Peak memory: {found['count']} layers, median error {found['median']:.1%}, "
            f"worst {found['worst']:.1%}."
        )
    return text
