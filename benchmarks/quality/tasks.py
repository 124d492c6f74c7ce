"""What there is to do, from a queue file or the command line, and what of it is done.

A queue file is JSON: `{"tasks": [...]}`, each with a list of `variants`, `seeds`, `steps`, `sizes`
and `learning_rates` of which every combination is one run, in this order: seeds outermost, then
variants. `do` says what is done with it: `train`, or one of the measurements of its trained model,
`generated` and `clips`. `why` is for readers.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

from benchmarks.quality.names import current_name
from benchmarks.quality.runs import OPTIMIZER, Run
from benchmarks.quality.sizes import SIZES, USUAL, name_of
from benchmarks.quality.variants import chosen

from freqformer._files import read_json

Kind = Literal["train", "generated", "clips"]
Result = dict[str, Any]
FIELDS = {
    "seeds": [0],
    "steps": [2800],
    "sizes": [USUAL],
    "learning_rates": [OPTIMIZER.peak_rate],
}
"""What a task of a queue may leave out, and what it then has."""


@dataclass(frozen=True)
class Task:
    """One run, or one measurement of its trained model."""

    do: Kind
    run: Run

    def path(self, folder: Path) -> Path:
        """Its result file among results in a folder."""
        place = folder if self.do == "train" else folder / self.do
        return place / f"{self.run.stem}.json"

    @property
    def needs_weights(self) -> bool:
        """Whether it measures a trained model."""
        return self.do != "train"

    @property
    def command(self) -> str:
        """What does this task alone."""
        run = self.run
        words = [
            "PYTHONPATH=src:. python -m benchmarks.quality",
            f"--variants {run.name} --seeds {run.seed} --steps {run.steps}",
        ]
        size = name_of(run.size)
        if size != USUAL:
            words.append(f"--tokens {size}")
        if run.rate != OPTIMIZER.peak_rate:
            words.append(f"--rates {run.rate:g}")
        if self.do != "train":
            words.append(f"--do {self.do}")
        return " ".join(words)


def combined(
    do: Kind, variants: list[str], seeds: list[int], others: dict[str, list[Any]]
) -> list[Task]:
    """A task for every combination.

    Args:
        do: what is done.
        variants: names.
        seeds: of the runs.
        others: lists of `steps`, `sizes` and `learning_rates`.

    Raises:
        ValueError: for a name that is none, or another size.
    """
    for size in others["sizes"]:
        if size not in SIZES:
            raise ValueError(f"sizes has {size!r}; choose among {', '.join(SIZES)}")
    for name in variants:
        chosen(name)
    made = product(seeds, variants, others["sizes"], others["steps"], others["learning_rates"])
    return [
        Task(do, Run(current_name(name), seed, steps, SIZES[size], rate))
        for seed, name, size, steps, rate in made
    ]


def read_queue(path: Path) -> list[Task]:
    """The tasks of a queue file, each once.

    Raises:
        ValueError: for a file of another form, naming the entry.
    """
    every = [task for _, tasks in read_queue_entries(path) for task in tasks]
    return list(dict.fromkeys(every))


def read_queue_entries(path: Path) -> list[tuple[dict[str, Any], list[Task]]]:
    """Every entry of a queue file, with its tasks; raises as `read_queue`."""
    written = read_json(path, remedy="write {'tasks': [...]}, see benchmarks/quality/tasks.py")
    return [(entry, _tasks_of(entry, path)) for entry in written["tasks"]]


def _tasks_of(entry: dict[str, Any], path: Path) -> list[Task]:
    unknown = entry.keys() - {"do", "why", "variants", *FIELDS}
    if unknown or "variants" not in entry or entry.get("do", "train") not in get_args(Kind):
        raise ValueError(
            f"{path} has the task {entry}; variants, do (one of {', '.join(get_args(Kind))}), "
            f"why, {', '.join(FIELDS)} are allowed, and variants are needed"
        )
    given = FIELDS | {name: entry[name] for name in FIELDS if name in entry}
    seeds = given.pop("seeds")
    return combined(entry.get("do", "train"), entry["variants"], seeds, given)


def identity(result: Result) -> tuple[Any, ...]:
    """What makes a result that of one run; the first results don't say their size and rate."""
    named = {SIZES[name].grid.num_tokens: name for name in ("64k", USUAL)}
    tokens = result.get("tokens", SIZES[USUAL].grid.num_tokens)
    return (
        current_name(result["variant"]),
        result["seed"],
        result["steps"],
        result.get("size", named.get(tokens)),
        result.get("learning_rate", OPTIMIZER.peak_rate),
    )


def is_done(task: Task, folders: list[Path]) -> bool:
    """Whether a result of it is in one of the folders, whatever its file is called."""
    wanted = identity(task.run.record)
    return any(
        identity(read_json(path, remedy="remove it to run it again")) == wanted
        for folder in folders
        for path in task.path(folder).parent.glob("*.json")
    )
