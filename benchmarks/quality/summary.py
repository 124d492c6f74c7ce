"""The first screen of docs/quality.md: five sentences from the results, and what has not run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.quality.costs import training_flops
from benchmarks.quality.report import (
    Mean,
    Result,
    by_variant,
    is_usual,
    mean,
    overall,
    paired,
    tokens_of,
    way_of,
)
from benchmarks.quality.sizes import SIZES, STUDY, USUAL
from benchmarks.quality.tasks import identity, read_queue_entries

QUEUE = Path(__file__).parent / "queue.json"
DEFAULT, DENSE, SAME_HEADS = "soft_routing", "dense", "window_and_low"
"""Of the study's variants: the library's default, dense attention, the default without router."""
PUBLISHED = (
    "radial",
    "video_sparse_attention",
    "best_tiles_and_summaries",
    "window_and_linear",
    "best_tiles_and_linear",
)
TUNED = (DEFAULT, DENSE, "window")
"""Whose learning rates are tuned alike."""
STEPS = 2800
LONG = "64k"
Groups = dict[str, dict[int, Result]]


def summary_text(results: list[Result]) -> str:
    """Sentences as a list; those whose runs are missing are left out."""
    groups = by_variant(results, STEPS)
    sentences = []
    if DEFAULT in groups and DENSE in groups:
        first = against_dense(groups) + with_best_rates(results)
        sentences += [first, by_noise(groups), in_seconds(groups)]
    if DEFAULT in groups and any(name in groups for name in PUBLISHED):
        sentences.append(against_published(groups))
    longer = [at_length(results, size) for size in (USUAL, LONG)]
    if any(longer):
        sentences.append("; ".join(filter(None, longer)) + ".")
    return "\n".join(f"{place}. {text}" for place, text in enumerate(sentences, 1))


def losses(runs: dict[int, Result], level: str | None = None) -> Mean:
    """Mean loss over seeds, of one noise level or of all."""
    each = [run["losses"] for run in runs.values()]
    return mean([overall(found) if level is None else found[level] for found in each])


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


def _shared(groups: Groups) -> tuple[dict[int, Result], dict[int, Result]]:
    """Runs of the default and of dense attention with the seeds of both."""
    common = groups[DEFAULT].keys() & groups[DENSE].keys()
    default, dense = ({seed: groups[name][seed] for seed in common} for name in (DEFAULT, DENSE))
    return default, dense


def against_dense(groups: Groups) -> str:
    """The default's loss beside dense attention's, by paired seeds."""
    default, dense = _shared(groups)
    difference = paired(default, dense)
    assert difference is not None
    ratio = losses(default).value / losses(dense).value
    flops = 1 / mean([run["density"] for run in default.values()]).value
    return (
        f"After {STEPS:,} steps at {STUDY.grid.num_tokens:,} tokens the default (`{DEFAULT}`) has "
        f"a validation loss of {losses(groups[DEFAULT]).text(4)}, and dense attention, with "
        f"{flops:.0f} times the attention FLOPs, {losses(groups[DENSE]).text(4)}: {ratio:.3f} "
        f"times, {difference.text(4, sign=True)} over {_seeds(len(default))} of both."
    )


@dataclass(frozen=True)
class Best:
    """The least loss of a variant over learning rates, of one seed."""

    loss: float
    rate: float
    tried: tuple[float, ...]


def best_rates(results: list[Result]) -> dict[str, Best]:
    """Of each variant that is tuned and ran with several rates, at the usual size and steps."""
    found: dict[str, dict[float, float]] = {}
    for one in results:
        name, seed, steps, size, rate = identity(one)
        if name in TUNED and (seed, steps, size) == (0, STEPS, USUAL):
            found.setdefault(name, {})[rate] = overall(one["losses"])
    best = {}
    for name, by_rate in found.items():
        if len(by_rate) > 1:
            rate = min(by_rate, key=lambda rate: by_rate[rate])
            best[name] = Best(by_rate[rate], rate, tuple(sorted(by_rate)))
    return best


def with_best_rates(results: list[Result]) -> str:
    """The same with the best of each one's learning rates; empty where only one rate ran."""
    best = best_rates(results)
    if not {DEFAULT, DENSE} <= best.keys():
        return ""
    told = ", ".join(f"`{name}` {one.loss:.4f} ({one.rate:g})" for name, one in best.items())
    tried = ", ".join(f"{rate:g}" for rate in best[DENSE].tried)
    return (
        f" With the best learning rate of {tried} for each, seed 0: {told}, so that the default "
        f"has {best[DEFAULT].loss / best[DENSE].loss:.3f} times dense attention's loss."
    )


def by_noise(groups: Groups) -> str:
    """The same by noise level."""
    default, dense = _shared(groups)
    levels = list(next(iter(default.values()))["losses"])
    ratios = [losses(default, level).value / losses(dense, level).value for level in levels]
    worse = [
        level
        for level in levels
        if (found := _difference(default, dense, level)).value > 2 * found.error
    ]
    told = f"worse at t = {', '.join(worse)}" if worse else "nowhere worse by two standard errors"
    if len(default) == 1:
        told = "one seed, so no errors are known"
    listed = ", ".join(f"{ratio:.3f}" for ratio in ratios)
    return (
        f"By noise level, t = {levels[0]} to {levels[-1]}, it is {listed} times dense attention's: "
        f"{told}."
    )


def _difference(one: dict[int, Result], other: dict[int, Result], level: str) -> Mean:
    return mean([one[seed]["losses"][level] - other[seed]["losses"][level] for seed in one])


def in_seconds(groups: Groups) -> str:
    """What that run takes beside dense attention's: FLOPs of all layers, and seconds."""
    flops = {
        name: training_flops(groups[name][min(groups[name])]["density"], STEPS, STUDY)
        for name in (DEFAULT, DENSE)
    }
    text = f"Its run takes {flops[DEFAULT] / flops[DENSE]:.2f} of the training FLOPs of dense's"
    step = step_times(groups, usual_way(groups))
    if DEFAULT in step and DENSE in step:
        ratio = step[DEFAULT] / step[DENSE]
        text += f" and {ratio:.2f} of its GPU seconds ({usual_way(groups)})"
    router = paired(groups[DEFAULT], groups.get(SAME_HEADS, {}))
    if router is None:
        return text + "."
    share = router.value / losses(groups[SAME_HEADS]).value
    return (
        f"{text}; of its lead the router makes {-router.value:.4f} ± {router.error:.4f}, "
        f"{-share:.1%} of the loss of the same heads without it (`{SAME_HEADS}`)."
    )


def usual_way(groups: Groups) -> str:
    """The card, compiled or not, on which the default and most others were timed."""
    ways = [way_of(run) for run in groups[DEFAULT].values()]
    shared = {
        way: sum(way in [way_of(run) for run in runs.values()] for runs in groups.values())
        for way in sorted(set(ways))
    }
    return max(shared, key=lambda way: shared[way])


def step_times(groups: Groups, way: str) -> dict[str, float]:
    """Least milliseconds of a step of every variant that was timed this way, alone on the card."""
    found = {}
    for name, runs in groups.items():
        times = [
            run["step_ms"]
            for run in runs.values()
            if way_of(run) == way and run.get("processes", 1) == 1
        ]
        if times:
            found[name] = min(times)
    return found


def paired_ratio(groups: Groups, name: str) -> float | None:
    """The default's loss over another's, over the seeds of both."""
    common = groups.get(DEFAULT, {}).keys() & groups.get(name, {}).keys()
    if not common:
        return None
    own, other = ({seed: groups[one][seed] for seed in common} for one in (DEFAULT, name))
    return losses(own).value / losses(other).value


def against_published(groups: Groups) -> str:
    """The patterns of others at equal FLOPs, nearest first."""
    told = []
    for name in (name for name in groups if name in PUBLISHED):
        text = f"`{name}` {losses(groups[name]).text(4)} ({_seeds(len(groups[name]))})"
        ratio = paired_ratio(groups, name)
        told.append(text if ratio is None else f"{text}, {ratio:.3f} times")
    listed = "; ".join(told)
    return f"Patterns that others publish, and the default over them at equal FLOPs: {listed}."


def at_length(results: list[Result], size: str) -> str:
    """The longest runs of a size, in the order of the loss; empty where none is longer than the
    usual ones at the usual size."""
    tokens = SIZES[size].grid.num_tokens
    of_size = [one for one in results if tokens_of(one) == tokens and is_usual(one)]
    steps = max((one["steps"] for one in of_size), default=0)
    if steps <= (STEPS if size == USUAL else 0):
        return ""
    told = [
        f"`{name}` {losses(runs).text(4)} ({_seeds(len(runs))}, "
        f"{min(run['step_ms'] for run in runs.values()):.0f} ms a step)"
        for name, runs in by_variant(results, steps, tokens).items()
    ]
    return f"At {tokens:,} tokens, after {steps:,} steps: {', '.join(told)}"


def missing_text(results: list[Result], measured: dict[str, list[Result]]) -> str:
    """What of the queue has no result, by entry.

    Args:
        results: of training.
        measured: results of the measurements by their name.
    """
    done = {name: {identity(one) for one in found} for name, found in measured.items()}
    done["train"] = {identity(result) for result in results}
    lines = []
    for entry, tasks in read_queue_entries(QUEUE):
        left = [task for task in tasks if identity(task.run.record) not in done.get(task.do, ())]
        if left:
            lines.append(f"- {entry['why']}: {_listed(left)} ({len(left)} of {len(tasks)})")
    if not lines:
        return "Nothing of the queue is missing."
    return "\n".join(["What has not run yet, in the order of the queue:", "", *lines])


def _listed(tasks: list[Any]) -> str:
    return ", ".join(dict.fromkeys(f"`{task.run.name}`" for task in tasks))
