"""What is not installed is named with the extra that brings it, wherever it is first needed."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from freqformer._optional import EXTRAS, MissingPackageError, needs

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "freqformer"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OPTIONAL = frozenset().union(*EXTRAS.values())
GATED = {"cli": "cli", "media": "train", "models": "model", "integrations/diffusers": "model"}
"""Packages whose `__init__` imports all that they need within `needs`."""
HIDING = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {hidden!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hidden())
"""


def without(packages: set[str], code: str) -> subprocess.CompletedProcess[str]:
    program = HIDING.format(hidden=packages) + code
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False
    )


USES = {
    "model": [
        "from freqformer import FreqFormerPipeline",
        "import freqformer.integrations.diffusers",
    ],
    "train": [
        "import freqformer.media",
        "import freqformer.training.trainer",
        "import freqformer.calibration.figures",
        "from freqformer.training.seeding import seed_everything; seed_everything(1)",
    ],
    "simulate": ["import freqformer.analysis.figures"],
    "cli": ["import freqformer.cli"],
}


@pytest.mark.parametrize("extra", USES)
def test_first_uses_name_the_extra(extra: str) -> None:
    lines = [
        f"try:\n    {use}\nexcept ValueError as error:\n    print(error)" for use in USES[extra]
    ]
    # diffusers is asked for by both; the models' own extra is enough for it.
    ran = without(EXTRAS[extra], "\n".join(lines))
    assert ran.returncode == 0, ran.stderr
    told = ran.stdout.splitlines()
    assert len(told) == len(USES[extra])
    assert all(text.endswith(f"pip install 'freqformer[{extra}]'") for text in told), told


def test_operations_need_no_extra() -> None:
    code = """
import torch
from freqformer import Grid, FreqFormerConfig, frequency_attention
from freqformer.routing import RoutingTable
from freqformer.simulate import scenario, simulate
x = torch.randn(1, 16, 3, 16)
frequency_attention(x, x, x, grid=Grid(1, 4, 4), allocation=[0, 1, 2], config=FreqFormerConfig())
"""
    ran = without(set(OPTIONAL), code)
    assert ran.returncode == 0, ran.stderr


def test_the_command_says_what_it_needs() -> None:
    ran = without(EXTRAS["cli"], "from freqformer.__main__ import main\nmain()")
    assert ran.returncode == 2
    assert ran.stderr == (
        "error: this part of FreqFormer needs typer, which is not installed: pip install "
        "'freqformer[cli]'\n"
    )


def test_only_missing_packages_of_the_extra_are_renamed() -> None:
    with pytest.raises(MissingPackageError, match="needs plotly") as caught, needs("simulate"):
        raise ModuleNotFoundError("No module named 'plotly.offline'", name="plotly.offline")
    assert isinstance(caught.value, ImportError)
    assert isinstance(caught.value, ValueError)
    with pytest.raises(ModuleNotFoundError, match="own"), needs("simulate"):
        raise ModuleNotFoundError("No module named 'own'", name="own")


def imports(node: ast.AST, extra: str | None) -> Iterator[tuple[str, str | None]]:
    """Every package that is imported when the code runs, with the extra that is named around it."""
    for child in ast.iter_child_nodes(node):
        inner = extra
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.With) and ast.unparse(child.items[0]).startswith("needs("):
            inner = ast.literal_eval(ast.unparse(child.items[0])[len("needs(") : -1])
        if isinstance(child, ast.Import):
            yield from ((name.name.partition(".")[0], extra) for name in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module:
            yield child.module.partition(".")[0], extra
        yield from imports(child, inner)


def test_every_import_of_an_optional_package_names_its_extra() -> None:
    seen = set()
    for file in sorted(SOURCE.rglob("*.py")):
        place = file.relative_to(SOURCE).parent.as_posix()
        gate = next((extra for package, extra in GATED.items() if place.startswith(package)), None)
        for package, extra in imports(ast.parse(file.read_text(encoding="utf-8")), gate):
            if package in OPTIONAL:
                seen.add(package)
                assert extra is not None, f"{file}: {package} is imported outside `with needs(...)`"
                assert package in EXTRAS[extra], f"{file}: {package} is not brought by {extra}"
    assert {"diffusers", "av", "matplotlib", "plotly", "typer"} <= seen


def names(extra: str) -> set[str]:
    """The packages of an extra, and of the extras that it takes in, as they are imported."""
    found = set()
    for requirement in PROJECT["optional-dependencies"][extra]:
        name = requirement.split("[")[0].split(">")[0].strip()
        if name == "freqformer":
            found |= set().union(
                *(names(inner) for inner in requirement.split("[")[1].rstrip("]").split(","))
            )
        else:
            found.add({"pillow": "PIL"}.get(name, name))
    return found


def test_extras_are_those_of_the_project() -> None:
    for extra, packages in EXTRAS.items():
        assert packages == names(extra)
    assert names("all") >= OPTIONAL
    core = {requirement.split(">")[0] for requirement in PROJECT["dependencies"]}
    assert core == {"torch", "numpy", "safetensors"}
