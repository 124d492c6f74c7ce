"""Tables of what was measured of trained models: generated videos, and real clips."""

from __future__ import annotations

from benchmarks.quality.report import NOTHING, Result, mean, overall

GENERATED = (
    "variant",
    "size",
    "Fréchet distance",
    "contrast",
    "motion",
    "flicker",
    "Fréchet distance by quarters of four times the length",
    "contrast by quarters",
)


def _model(result: Result) -> str:
    return (
        f"`{result['variant']}`, {result['steps']:,} steps at {result['learning_rate']:g}, seed "
        f"{result['seed']}"
    )


def generated_table(results: list[Result]) -> str:
    """Generated videos beside held-out clips, a row for each model."""
    if not results:
        return NOTHING
    lines = [f"| {' | '.join(GENERATED)} |", "|" + len(GENERATED) * "---|"]
    floor = results[0]["frechet_of_held_out"]
    lines.append(f"| other held-out clips | | {floor:.3f} | 1 | 1 | 1 | | |")
    for one in results:
        quarters = one["long"]["quarters"]
        cells = [_model(one), one["size"], f"{one['frechet']:.3f}"]
        cells += [f"{one[name]:.2f}" for name in ("contrast", "motion", "flicker")]
        cells.append(" / ".join(f"{part['frechet']:.3f}" for part in quarters))
        cells.append(" / ".join(f"{part['contrast']:.2f}" for part in quarters))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def real_clips_table(results: list[Result]) -> str:
    """Losses on real clips after fine-tuning, and before, a row for each model."""
    if not results:
        return NOTHING
    names = sorted(results[0]["losses_by_clip"])
    head = ["variant", "size", *names, "all, before fine-tuning"]
    lines = [f"| {' | '.join(head)} |", "|" + len(head) * "---|"]
    for one in results:
        cells = [_model(one), one["size"]]
        cells += [f"{overall(one['losses_by_clip'][name]):.4f}" for name in names]
        before = mean([overall(levels) for levels in one["before"].values()])
        lines.append(f"| {' | '.join([*cells, f'{before.value:.4f}'])} |")
    return "\n".join(lines)
