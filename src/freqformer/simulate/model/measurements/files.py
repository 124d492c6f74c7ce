"""Reading committed benchmark results as measurements that an efficiency can be fitted to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from freqformer._files import read_json
from freqformer.simulate.model.fit import MeasuredShare, Measurement
from freqformer.simulate.model.hardware import Hardware
from freqformer.simulate.model.measurements.common import (
    machine_name,
)
from freqformer.simulate.model.measurements.distributed import (
    distributed_results,
    measured_shares,
)
from freqformer.simulate.model.measurements.gradients import (
    backward_results,
    trained_peaks,
)
from freqformer.simulate.model.measurements.layers import (
    eager_results,
    kernel_results,
    layer_peaks,
    layer_results,
)
from freqformer.simulate.model.profiles import ProfileError, check_number

MOST_BYTES = 2**50
"""Of a measured peak."""
MOST_SHOWN = 300
"""Characters of an error about a file's content that are repeated."""
_REMEDY = "give a JSON file that a benchmark wrote"


def read_results(paths: Sequence[Path], hardware: Hardware) -> list[Measurement]:
    """Measurements of benchmark result files, `layer.json`, `kernel.json`, `backward.json`,
    `eager_cpu.json` and those of the folder `distributed`.

    Raises:
        ProfileError: for a file that can't be read, that holds none of them, or that another
            machine made, naming it, and the field where one is missing.
    """
    return [measurement for path in paths for measurement in _read(path, hardware)]


def _read(path: Path, hardware: Hardware) -> list[Measurement]:
    values = read_json(path, remedy=_REMEDY, error=ProfileError)
    with _checked(path):
        machine = machine_name(values)
        if hardware.name not in machine.lower().replace(" ", ""):
            raise ProfileError(
                f"{path} was measured on {machine}, not on {hardware.title}: name that with "
                "--hardware"
            )
        if "layers" in values and "scaling" in values:
            return list(layer_results(path.name, values))
        if "launch" in values and "dense" in values:
            return list(kernel_results(path.name, values))
        if "layers" in values and "launches" in values:
            return list(backward_results(path.name, values))
        if "distributed" in values:
            return list(distributed_results(path.name, values))
        if "speed" in values:
            return list(eager_results(path.name, values))
    raise ProfileError(
        f"{path} holds no known benchmark; give layer.json, kernel.json, backward.json, "
        "eager_cpu.json or files of the folder distributed of benchmarks/results"
    )


@contextlib.contextmanager
def _checked(path: Path) -> Iterator[None]:
    """Raise ProfileError where a file does not hold what a benchmark writes: what its readers
    stumble over has many types."""
    try:
        yield
    except (KeyError, IndexError, StopIteration) as error:
        raise ProfileError(
            f"{path} lacks {error} where benchmarks/{path.name} writes it: run the benchmark again"
        ) from error
    except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
        if str(path) in str(error):
            raise
        raise ProfileError(
            f"{path} holds what benchmarks/{path.name} does not write ({str(error)[:MOST_SHOWN]}): "
            "run the benchmark again"
        ) from error


def read_shares(paths: Sequence[Path]) -> list[MeasuredShare]:
    """Values that files of the folder `distributed` hold themselves; other files have none.

    Raises:
        ProfileError: for a file that can't be read or holds what no benchmark writes, naming it.
    """
    shares = []
    for path in paths:
        values = read_json(path, remedy=_REMEDY, error=ProfileError)
        with _checked(path):
            if "distributed" in values:
                shares += measured_shares(path.name, values)
    return shares


def read_peaks(paths: Sequence[Path]) -> list[tuple[str, float, float]]:
    """Name, measured and counted peak bytes of every layer in `layer.json`: inputs, output and
    workspace; and in `backward.json`: inputs, output's gradient, and all that forward and backward
    hold beside them.

    Files of other benchmarks have none.

    Raises:
        ProfileError: for a file that can't be read or holds what no benchmark writes, naming it.
    """
    rows = []
    for path in paths:
        values = read_json(path, remedy=_REMEDY, error=ProfileError)
        with _checked(path):
            if "scaling" in values:
                own = layer_peaks(values)
            elif "layers" in values and "launches" in values:
                own = list(trained_peaks(values))
            else:
                own = []
            for name, measured, _ in own:
                check_number(f"peak bytes of {name!r}", measured, 1, MOST_BYTES)
        rows += own
    return rows
