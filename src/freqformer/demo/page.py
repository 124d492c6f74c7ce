"""The report's page: a template that is filled with what a run measured."""

from __future__ import annotations

from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from freqformer import _colours
from freqformer.analysis.spectra import BAND_NAMES

OPERATORS = (
    "dense global attention on compressed tokens",
    "block-sparse attention on the tiles that match best",
    "sliding-window attention on the tiles around",
)

COLUMNS = ("share of heads", "cost of this model here", "cost at 720p by default settings")

FROM_SCRATCH = {
    "beginning": (
        "There was no shipped model to begin with: a small one was trained from scratch "
        "on this clip."
    ),
    "how": "from scratch",
    "out": "It saw this one clip only, so the clip is what it should give back.",
}
FINE_TUNED = {
    "beginning": "It began with a trained model, which it fine-tuned on this clip.",
    "how": "from the weights of that model",
    "out": "It was fine-tuned on this clip, so the clip is what it should give back.",
}
"""What differs between the two ways of the demo."""
CHOOSING = {
    "routing_title": "Which band each head used",
    "routing_text": "A small network in each layer looks at the features and at the noise level, "
    "and moves heads between "
    "the bands. While this video was generated, it chose as follows.",
    "routing_alt": "Heat map: the band of each head in each layer at each denoising step",
}
SOFT = {
    "routing_title": "How much each head looked at the whole",
    "routing_text": "Every head has two branches: its own band, and low frequencies of the whole "
    "video. A small network in "
    "each layer weighs them by the features and the noise level. While this video was generated, "
    "it gave low frequencies "
    "more weight where the picture is red, and less where it is blue.",
    "routing_alt": (
        "Heat map: the weight of low frequencies of each head in each layer at each denoising step"
    ),
}
TIMED = SOFT | {
    "routing_text": SOFT["routing_text"].replace(
        "the features and the noise level", "the noise level"
    )
}
FIXED = {
    "routing_title": "Which band each head used",
    "routing_text": "The band of every head is fixed.",
    "routing_alt": "Heat map: the band of each head in each layer",
}


def render_page(facts: dict[str, Any]) -> str:
    """The page as HTML. It needs no network: all its links are relative.

    Args:
        facts: of a run, as `run_demo` writes them to summary.json.

    Raises:
        KeyError: for a fact that is missing.
    """
    clip, costs = facts["clip"], facts["attention_flops_of_dense"]
    verdict = facts["verdict"]
    rows = [
        (
            name,
            facts["head_shares"][band],
            costs["here"]["bands"][band],
            costs["720p"]["bands"][band],
        )
        for band, name in enumerate(BAND_NAMES)
    ]
    texts = {
        "clip_size": (
            f"{clip['frames']} frames of {clip['width']} x {clip['height']} pixels at "
            f"{clip['fps']:g} per second"
        ),
        "num_frames": clip["frames"],
        "tokens": f"{costs['here']['tokens']:,}",
        "tokens_720p": f"{costs['720p']['tokens']:,}",
        "density_here": _percent(costs["here"]["density"]),
        "density_720p": _percent(costs["720p"]["density"]),
        "parameters": f"{facts['parameters'] / 1e6:.1f} million",
        "compression": f"{facts['compression']:.0f}",
        **{f"{name}_share": _percent(facts["band_shares"][name]) for name in BAND_NAMES},
        **{name: f"{facts[name]:.2f}" for name in ("first_loss", "last_loss")},
        **{
            name: f"{facts[name]:.0f}"
            for name in ("train_seconds", "generate_seconds", "total_seconds")
        },
        **{
            name: facts[name]
            for name in ("train_steps", "inference_steps", "threads", "tiles", "command", "credit")
        },
        **{name: facts[name] for name in ("version", "torch_version")},
        **{
            name: verdict[name]
            for name in ("similarity", "judgement", "shortfall", "planned_steps")
        },
        **(FROM_SCRATCH if facts["shipped"] is None else FINE_TUNED),
        **{"hard": CHOOSING, "soft": SOFT, "timestep": TIMED, "fixed": FIXED}[facts["routing"]],
    }
    shown = {name: escape(str(text)) for name, text in texts.items()}
    return _template("page.html").substitute(
        shown,
        **{name.lower(): getattr(_colours, name) for name in ("INK", "LOW", "MID", "HIGH")},
        band_rows="".join(map(_row, rows, range(3))),
        headings="".join(f'<th class="number">{label}</th>' for label in COLUMNS),
        costs="".join(
            f'<td class="number" data-label="{label}">{shown[name]}</td>'
            for label, name in zip(COLUMNS[1:], ("density_here", "density_720p"), strict=True)
        ),
        shipped=_shipped(facts["shipped"], shown),
    )


def _shipped(facts: dict[str, Any] | None, shown: dict[str, str]) -> str:
    """The section on what the shipped model generated before it was trained any further; none
    without such a model."""
    if facts is None:
        return ""
    counts = {name: str(facts[name]) for name in ("frames", "long_frames")}
    seconds = {name: f"{facts[name]:.0f}" for name in ("seconds", "long_seconds", "dense_seconds")}
    return _template("shipped.html").substitute(shown, **counts, **seconds)


def _template(name: str) -> Template:
    return Template((files("freqformer.demo") / name).read_text(encoding="utf-8"))


def _row(cells: tuple[str, float, float, float], band: int) -> str:
    dot = f'<span class="dot" style="background:{_colours.BANDS[band]}"></span>'
    # A phone shows a row as a list, in which every cell says what it is.
    numbers = "".join(
        f'<td class="number" data-label="{label}">{_percent(cell)}</td>'
        for label, cell in zip(COLUMNS, cells[1:], strict=True)
    )
    return f"<tr><td>{dot}{cells[0]}</td><td>{OPERATORS[band]}</td>{numbers}</tr>"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%" if share < 0.0995 else f"{100 * share:.0f}%"
