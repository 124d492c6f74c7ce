"""Tables and figures of docs/quality.md, computed from the results of every seed."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.quality.costs import density
from benchmarks.quality.names import current_name
from benchmarks.quality.runs import OPTIMIZER
from benchmarks.quality.sizes import STUDY
from benchmarks.quality.variants import VARIANTS

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "quality"
PAGE = ROOT / "docs" / "quality.md"
FIGURES = "figures"
NOTHING = "No results yet."
Result = dict[str, Any]


def read_results(folder: Path = RESULTS) -> list[Result]:
    """Every result in a folder, with today's names of variants."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return [result | {"variant": current_name(result["variant"])} for result in found]


def rebuilt(page: str, blocks: dict[str, str]) -> str:
    """The page with the text between its marks made anew.

    Args:
        page: with `<!-- NAME: generated -->` and `<!-- NAME: end -->` for every block.
        blocks: the text of each.

    Raises:
        ValueError: for a page without a mark.
    """
    for name, text in blocks.items():
        begin, end = f"<!-- {name}: generated -->", f"<!-- {name}: end -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        if len(pattern.findall(page)) != 1:
            raise ValueError(
                f"page has no single block {begin} ... {end}; put one where the text belongs"
            )
        block = f"{begin}\n\n{text}\n\n{end}"
        page = pattern.sub(lambda _, block=block: block, page)
    return page


@dataclass(frozen=True)
class Mean:
    """A mean over seeds and its standard error; NaN for one seed."""

    value: float
    error: float

    def text(self, digits: int, *, sign: bool = False) -> str:
        """Like `0.326 ± 0.001`."""
        value = f"{self.value:{'+' if sign else ''}.{digits}f}"
        return value if math.isnan(self.error) else f"{value} ± {self.error:.{digits}f}"


def mean(values: list[float]) -> Mean:
    """Over at least one value."""
    average = sum(values) / len(values)
    if len(values) == 1:
        return Mean(average, math.nan)
    variance = sum((value - average) ** 2 for value in values) / (len(values) - 1)
    return Mean(average, math.sqrt(variance / len(values)))


def overall(losses: dict[str, float]) -> float:
    """The mean over noise levels."""
    return sum(losses.values()) / len(losses)


def tokens_of(result: Result) -> int:
    """Tokens of a clip; the first results don't say."""
    return result.get("tokens", STUDY.grid.num_tokens)


def is_usual(result: Result) -> bool:
    """Whether its model and learning rate are the study's; the first results don't say."""
    usual_rate = result.get("learning_rate", OPTIMIZER.peak_rate) == OPTIMIZER.peak_rate
    return usual_rate and not result.get("size", "").endswith("wide")


def by_variant(
    results: list[Result], steps: int, tokens: int = STUDY.grid.num_tokens
) -> dict[str, dict[int, Result]]:
    """Results of so many steps and tokens by variant, in the order of their mean loss, and seed:
    those of the usual size and learning rate."""
    groups: dict[str, dict[int, Result]] = {}
    for result in results:
        if result["steps"] == steps and tokens_of(result) == tokens and is_usual(result):
            groups.setdefault(result["variant"], {})[result["seed"]] = result
    return dict(
        sorted(
            groups.items(),
            key=lambda item: mean([overall(r["losses"]) for r in item[1].values()]).value,
        )
    )


def drawn(results: list[Result]) -> dict[str, dict[int, Result]]:
    """What the figures show: the study's size, and the most steps that there are results of."""
    steps = [result["steps"] for result in results if tokens_of(result) == STUDY.grid.num_tokens]
    return by_variant(results, max(steps, default=0))


def best_fixed(groups: dict[str, dict[int, Result]]) -> str | None:
    """The variant of lowest loss among those of equal FLOPs without a router, of those with the
    most seeds."""
    fixed = [name for name in groups if VARIANTS[name].fixed and not VARIANTS[name].dense]
    most = max((len(groups[name]) for name in fixed), default=0)
    return next((name for name in fixed if len(groups[name]) == most), None)


def paired(seeds: dict[int, Result], other: dict[int, Result]) -> Mean | None:
    """Mean loss less that of another variant, over the seeds of both; None where they share
    none."""
    common = sorted(seeds.keys() & other.keys())
    if not common:
        return None
    return mean(
        [overall(seeds[seed]["losses"]) - overall(other[seed]["losses"]) for seed in common]
    )


def variants_table() -> str:
    """How every variant's FLOPs were matched."""
    lines = [
        "| variant | attention | LOW/MID/HIGH heads | window | MID tiles | summaries | FLOPs, of "
        "dense |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, variant in VARIANTS.items():
        config, splits = (
            variant.config,
            ["/".join(map(str, split)) for split in dict.fromkeys(variant.splits)],
        )
        kept = {
            "topk": str(config.mid_tiles),
            "radial": f"radius {config.radial_radius}",
            "axial": "axial",
        }
        has_mid = any(split[1] for split in variant.splits)
        has_window = any(split[2] for split in variant.splits) or config.mid_pattern == "axial"
        dense = variant.dense
        cells = [
            f"`{name}`",
            variant.about,
            "–" if dense else ", ".join(splits),
            " × ".join(map(str, config.window)) if has_window and not dense else "–",
            kept[config.mid_pattern] if has_mid and not dense else "–",
            "–" if dense else str(config.summary_tokens),
            f"{density(variant):.3f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Predicted before they ran:", ""]
    lines += [f"- `{name}`: {one.expected}" for name, one in VARIANTS.items() if one.expected]
    return "\n".join(lines)


def results_text(results: list[Result]) -> str:
    """Tables of every number of steps, most steps first, and the figures."""
    if not results:
        return NOTHING
    parts = []
    settings = {(tokens_of(one), -one["steps"]) for one in results if is_usual(one)}
    for tokens, steps in sorted(settings):
        groups = by_variant(results, -steps, tokens)
        parts += [
            f"### {tokens:,} tokens, {-steps:,} steps",
            _losses_table(groups),
            _routers_table(groups),
        ]
        parts.append(_soft_table(groups))
    captions = {
        "noise": "Loss by noise level, relative to the best fixed variant",
        "flops": "Loss against attention FLOPs",
        "time": "Training loss against wall-clock",
    }
    shown = [result for seeds in drawn(results).values() for result in seeds.values()]
    if any("allocation" in result for result in shown):
        captions["allocation"] = "Bands that routers chose, by layer, head and noise level"
    if any("gates" in result for result in shown):
        captions["weights"] = (
            "What soft routing adds to the weight of LOW, by layer, head and noise level"
        )
    parts.append(
        "\n".join(
            f"![{caption}]({FIGURES}/quality-{name}.png)" for name, caption in captions.items()
        )
    )
    parts.append(_others_table([result for result in results if not is_usual(result)]))
    parts.append("\n".join(["Machines:", *_machines(results)]))
    return "\n\n".join(part for part in parts if part)


def _others_table(results: list[Result]) -> str:
    """Other learning rates and wider models; empty where none ran."""
    if not results:
        return ""
    lines = ["| variant | size | learning rate | steps | seeds | loss |", "|" + 6 * "---|"]
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for one in sorted(results, key=lambda one: (one["size"], one["steps"], one["variant"])):
        key = (f"`{one['variant']}`", one["size"], one["learning_rate"], f"{one['steps']:,}")
        groups.setdefault(key, []).append(one)
    for key, runs in groups.items():
        loss = mean([overall(run["losses"]) for run in runs]).text(4)
        lines.append(f"| {' | '.join(map(str, key))} | {len(runs)} | {loss} |")
    return "\n".join(["### Other learning rates and sizes", "", *lines])


def _losses_table(groups: dict[str, dict[int, Result]]) -> str:
    best = best_fixed(groups)
    levels = next(iter(next(iter(groups.values())).values()))["losses"].keys()
    head = [
        "variant",
        "seeds",
        "loss",
        "less the best fixed",
        *(f"t = {level}" for level in levels),
    ]
    head += ["FLOPs, of dense", "parameters", "step, ms", "memory, GiB"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    ways = [way_of(run) for seeds in groups.values() for run in seeds.values()]
    usual = max(sorted(set(ways)), key=ways.count)
    for name, seeds in groups.items():
        runs = list(seeds.values())
        difference = paired(seeds, groups[best]) if best not in (None, name) else None
        cells = [
            f"`{name}`",
            str(len(runs)),
            mean([overall(run["losses"]) for run in runs]).text(4),
        ]
        cells.append("–" if difference is None else difference.text(4, sign=True))
        cells += [mean([run["losses"][level] for run in runs]).text(4) for level in levels]
        cells += [
            f"{mean([run['density'] for run in runs]).value:.3f}",
            f"{runs[0]['parameters']:,}",
        ]
        cells.append(_step(runs, usual))
        peaks = [run["peak_gib"] for run in runs if "peak_gib" in run]
        cells.append(f"{max(peaks):.1f}" if peaks else "–")
        lines.append(f"| {' | '.join(cells)} |")
    told = (
        f"\n\nSteps are timed on: {usual}, unless the cell says otherwise; they compare on "
        "one card only."
    )
    if best is not None:
        told += f" The best fixed variant is `{best}`; differences are paired by seed."
    return "\n".join(lines) + told


def way_of(run: Result) -> str:
    """The card, and whether blocks were compiled."""
    card = re.search(r"[A-Z]+\d+", run["machine"]["gpu"])
    return (card[0] if card else run["machine"]["gpu"]) + (
        ", compiled" if run.get("compiled") else ""
    )


def _step(runs: list[Result], usual: str) -> str:
    """Milliseconds of a step, the least of its runs done the usual way, else of others, which are
    named."""
    alike = [run for run in runs if way_of(run) == usual]
    least = min(alike or runs, key=lambda run: run["step_ms"])
    return f"{least['step_ms']:.1f}" + ("" if alike else f" ({way_of(least)})")


def _routers_table(groups: dict[str, dict[int, Result]]) -> str:
    """What routers gain over tables made of their own logits; empty where none ran."""
    lines = []
    for name, seeds in groups.items():
        runs = [run for run in seeds.values() if "allocation" in run]
        if not runs:
            continue
        cells = [f"`{name}`", *_table_cells(runs)]
        first, last = ([_heads(run["allocation"][level]) for run in runs] for level in (0, -1))
        for level in (first, last):
            cells.append(
                "/".join(
                    f"{sum(heads[band] for heads in level) / len(level):.1f}" for band in range(3)
                )
            )
        cells.append(f"{sum(_moved(run['allocation']) for run in runs) / len(runs):.0%}")
        lines.append(f"| {' | '.join(cells)} |")
    head = (
        "| router | loss | table by noise level, less it | one table for all, less it | "
        "heads of all layers in LOW/MID/HIGH at t = 0.1 | at t = 0.9 | heads that move "
        "|\n|---|---|---|---|---|---|---|"
    )
    return "\n".join([head, *lines]) if lines else ""


def _table_cells(runs: list[Result]) -> list[str]:
    """The loss, and those with tables less it."""
    live = [overall(run["losses"]) for run in runs]
    cells = [mean(live).text(4)]
    for table in ("by_level", "averaged"):
        pairs = zip(runs, live, strict=True)
        cells.append(
            mean([overall(run["tables"][table]["losses"]) - own for run, own in pairs]).text(
                4, sign=True
            )
        )
    return cells


def _soft_table(groups: dict[str, dict[int, Result]]) -> str:
    """What soft routing adds to weights, and gains over one weight for all noise levels; empty
    where none ran."""
    lines = []
    for name, seeds in groups.items():
        runs = [run for run in seeds.values() if "gates" in run]
        if runs:
            weights = [mean_weights(run) for run in runs]
            cells = [f"`{name}`", *_table_cells(runs)]
            for branch in (1, 0):
                cells += [
                    mean([levels[level][branch] for levels in weights]).text(2, sign=True)
                    for level in (0, -1)
                ]
            lines.append(f"| {' | '.join(cells)} |")
    head = (
        "| soft routing | loss | weights held by noise level, less it | one weight for all, less "
        "it | "
        "adds to LOW at t = 0.1 | at t = 0.9 | to the own branch at t = 0.1 | at t = 0.9 |\n|"
        + 8
        * "---|"
    )
    return "\n".join([head, *lines]) if lines else ""


def mean_weights(run: Result) -> list[list[float]]:
    """What soft routing adds to the own branch and to LOW, mean of all layers and heads, by noise
    level."""
    return [
        [
            sum(sum(layer[branch]) for layer in level) / sum(len(layer[branch]) for layer in level)
            for branch in range(2)
        ]
        for level in run["gates"]
    ]


def _heads(layers: list[list[list[float]]]) -> list[float]:
    """Heads in every band, all layers together, from shares by layer and head."""
    return [sum(head[band] for layer in layers for head in layer) for band in range(3)]


def _moved(allocation: list[list[list[list[float]]]]) -> float:
    """Share of heads whose most frequent band differs between the least and the most noise."""
    first, last = (
        [head.index(max(head)) for layer in allocation[level] for head in layer]
        for level in (0, -1)
    )
    return sum(a != b for a, b in zip(first, last, strict=True)) / len(first)


def _machines(results: list[Result]) -> list[str]:
    kinds = {
        f"- {run['machine']['gpu']}, torch {run['machine']['torch']}, Triton "
        f"{run['machine']['triton']}, "
        f"commit {run['machine']['commit'][:9]}"
        for run in results
    }
    return sorted(kinds)
