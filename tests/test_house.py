"""The rules of CONTRIBUTING.md that can be counted, over the tree.

`LIMITS` has what every place must keep to, `DENSITIES` what all operations together must. In
`EXCEPTIONS` is who may go over a limit, how far and why; a place that stays within it must leave.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "freqformer"
LINE_WIDTH = 100
PRAGMA = re.compile(r"\s+# (?:noqa|pyright|type): ?.*$")
"""Comments for a checker, which ruff leaves out of a line's width too, as it does a line that is
one word."""
NO_FOLDER = {"__init__.py", "__main__.py", "__pycache__"}


class Exceeds(NamedTuple):
    """How far a named place may go over a limit, and why."""

    at_most: int
    reason: str


LIMITS = {
    "lines of a file": 400,
    "lines of a function": 60,
    "lines of a kernel": 150,
    "arguments of a public function": 8,
    "arguments of a kernel": 12,
}
DENSITIES = {
    "literal subscripts": 10,
    "parallel assignments": 8,
}
"""Most per 1,000 lines of ops."""
COMMENTS_OF_KERNELS = 8
"""Least per 100 lines of the files that hold kernels."""
COMMAND = "its arguments are the options of a command, which Typer reads from the signature"
ORDER = "one launch from end to end, in the order in which the device does it"
BACKWARD = "what the backward of one launch reads: tensors, their gradients and tables"
INPUTS = "independent inputs of one operation, all but the first few by keyword"
STORY = "one behaviour of one part, told in order; halves would repeat what they set up"

EXCEPTIONS: dict[str, dict[str, Exceeds]] = {
    "lines of a file": {
        "tests/attention/test_function.py": Exceeds(453, STORY),
        "tests/test_demo.py": Exceeds(444, STORY),
        "tests/training/test_loop.py": Exceeds(525, STORY),
    },
    "lines of a function": {
        "src/freqformer/cli/cache.py:cache": Exceeds(90, COMMAND),
        "src/freqformer/cli/calibrate.py:calibrate": Exceeds(130, COMMAND),
        "src/freqformer/cli/convert.py:convert": Exceeds(130, COMMAND),
        "src/freqformer/cli/generate.py:generate": Exceeds(122, COMMAND),
        "src/freqformer/cli/sample.py:sample": Exceeds(101, COMMAND),
        "src/freqformer/cli/simulate.py:simulate": Exceeds(62, COMMAND),
        "src/freqformer/cli/train.py:train": Exceeds(125, COMMAND),
        "src/freqformer/ops/fused_operation.py:_attention_backward": Exceeds(63, ORDER),
        "src/freqformer/ops/checks.py:check_tensors": Exceeds(62, "one check after another"),
        "tests/cli/test_fit_hardware.py:test_it_reads_the_backward_benchmark": Exceeds(
            75, "a whole result file of the benchmark, written out"
        ),
        "tests/support/attend_cases.py:make_case": Exceeds(66, "one draw after another"),
    },
    "arguments of a kernel": {
        "src/freqformer/ops/block_sparse/gluon/bwd_dkv.py:video_grads_kernel": Exceeds(
            13, "six descriptors, which a kernel can't find in a tuple"
        ),
    },
    "arguments of a public function": {
        "src/freqformer/attention/function.py:frequency_attention": Exceeds(15, INPUTS),
        "src/freqformer/calibration/command.py:calibrate_on_clips": Exceeds(9, COMMAND),
        "src/freqformer/cli/cache.py:cache": Exceeds(16, COMMAND),
        "src/freqformer/cli/calibrate.py:calibrate": Exceeds(22, COMMAND),
        "src/freqformer/cli/convert.py:convert": Exceeds(15, COMMAND),
        "src/freqformer/cli/generate.py:generate": Exceeds(24, COMMAND),
        "src/freqformer/cli/sample.py:sample": Exceeds(15, COMMAND),
        "src/freqformer/cli/simulate.py:simulate": Exceeds(9, COMMAND),
        "src/freqformer/cli/train.py:train": Exceeds(13, COMMAND),
        "src/freqformer/integrations/diffusers/enable.py:enable_frequency_attention": Exceeds(
            11, "the dials that people know from other models, each by its own word"
        ),
        "src/freqformer/models/transformer.py:FreqFormerTransformer3DModel.__init__": Exceeds(
            14, "diffusers saves a model's constructor arguments as its configuration, flat"
        ),
        "src/freqformer/ops/block_sparse/triton/launch_backward.py:attend_backward": Exceeds(
            12, BACKWARD
        ),
        "src/freqformer/ops/fused.py:fused_attention": Exceeds(11, INPUTS),
        "src/freqformer/ops/prologue/triton/launch.py:prepare_rows": Exceeds(9, INPUTS),
        "src/freqformer/ops/unfused.py:unfused_attention": Exceeds(9, INPUTS),
        "src/freqformer/ops/unfused_operation.py:attention": Exceeds(9, INPUTS),
    },
}


@cache
def modules() -> dict[str, ast.Module]:
    """The syntax trees of all Python files that we keep, by their path from the root."""
    folders = ("src", "benchmarks", "tools", "tests", "examples")
    return {
        path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
    }


def lines_of(name: str) -> list[str]:
    return (ROOT / name).read_text(encoding="utf-8").splitlines()


def is_kernel(function: ast.FunctionDef) -> bool:
    """Whether Triton or Gluon compiles it."""
    marks = [ast.unparse(mark).partition("(")[0] for mark in function.decorator_list]
    return any(mark.endswith(".jit") for mark in marks)


def functions(*folders: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Every function and method in these folders, with a name that a reader can find."""
    for name, tree in modules().items():
        if not name.startswith(folders):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                for method in node.body:
                    if isinstance(method, ast.FunctionDef):
                        yield f"{name}:{node.name}.{method.name}", method
        methods = {
            method
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef)
            for method in node.body
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node not in methods:
                yield f"{name}:{node.name}", node


def length(function: ast.FunctionDef) -> int:
    """Lines of a function, its docstring left out."""
    first, last = function.lineno, function.end_lineno or function.lineno
    docstring = 0
    if ast.get_docstring(function) is not None:
        text = function.body[0]
        docstring = (text.end_lineno or text.lineno) - text.lineno + 1
    return last - first + 1 - docstring


def arguments(function: ast.FunctionDef) -> int:
    """Arguments that a caller may give."""
    given = function.args
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs]
    return sum(argument.arg not in ("self", "cls") for argument in named)


def names_in(node: ast.AST, lists: dict[str, set[str]]) -> set[str]:
    """The strings of a list as it is written, those of the named lists that it unpacks included."""
    found: set[str] = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            found.add(part.value)
        if isinstance(part, ast.Name):
            found |= lists[part.id]
    return found


@cache
def named_lists() -> dict[str, set[str]]:
    """Strings of the lists that modules of ops assign, by name."""
    return {
        target.id: names_in(node.value, {})
        for tree in operations().values()
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.List)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def kernel_arguments(kernel: ast.FunctionDef) -> int:
    """Arguments of a kernel but constants and integers that it is not compiled anew for: those must
    stay parameters, see "Kernels take integers one by one" in DESIGN.md."""
    apart = {
        argument.arg
        for argument in kernel.args.args
        if argument.annotation and "constexpr" in ast.unparse(argument.annotation)
    }
    for mark in kernel.decorator_list:
        for keyword in mark.keywords if isinstance(mark, ast.Call) else []:
            if keyword.arg == "do_not_specialize":
                apart |= names_in(keyword.value, named_lists())
    return sum(argument.arg not in apart for argument in kernel.args.args)


def is_public(place: str, function: ast.FunctionDef) -> bool:
    """Whether it is called from other modules: no part of its name is private."""
    names = place.partition(":")[2].split(".")
    return not any(name.startswith("_") and name != "__init__" for name in names) and not is_kernel(
        function
    )


def measured(rule: str) -> dict[str, int]:
    """What a rule counts, by place."""
    if rule == "lines of a file":
        return {name: len(lines_of(name)) for name in modules()}
    if rule in ("lines of a kernel", "arguments of a kernel"):
        count = length if rule == "lines of a kernel" else kernel_arguments
        return {place: count(node) for place, node in functions("src") if is_kernel(node)}
    everything = functions("src", "benchmarks", "tools", "tests", "examples")
    if rule == "lines of a function":
        return {place: length(node) for place, node in everything if not is_kernel(node)}
    assert rule == "arguments of a public function"
    own = functions("src", "benchmarks", "tools")
    return {place: arguments(node) for place, node in own if is_public(place, node)}


@pytest.mark.parametrize(("rule", "limit"), LIMITS.items())
def test_limits(rule: str, limit: int) -> None:
    over = {place: count for place, count in measured(rule).items() if count > limit}
    allowed = EXCEPTIONS.get(rule, {})
    more = {
        place: count
        for place, count in over.items()
        if place not in allowed or count > allowed[place].at_most
    }
    assert not more, f"{rule}: at most {limit}; cut these, or name them in EXCEPTIONS: {more}"
    spare = sorted(allowed.keys() - over.keys())
    assert not spare, f"{rule}: within {limit} again, so take these out of EXCEPTIONS: {spare}"
    assert all(len(exception.reason) > 15 for exception in allowed.values())


def test_lines_are_narrow() -> None:
    wide = [
        f"{name}:{number}"
        for name in modules()
        for number, line in enumerate(lines_of(name), 1)
        if len(PRAGMA.sub("", line)) > LINE_WIDTH and " " in line.strip()
    ]
    assert not wide


def operations() -> dict[str, ast.Module]:
    return {name: tree for name, tree in modules().items() if "freqformer/ops/" in name}


def is_literal_subscript(node: ast.AST) -> bool:
    """`outputs[4]`: a place in a tuple by its number. A shape's axes have no other name."""
    if not (isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant)):
        return False
    of_a_shape = isinstance(node.value, ast.Attribute) and node.value.attr == "shape"
    return isinstance(node.slice.value, int) and not of_a_shape


def is_parallel_assignment(node: ast.AST) -> bool:
    """`a, b = x, y`: two assignments on one line."""
    return (
        isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Tuple)
        and any(isinstance(target, ast.Tuple) for target in node.targets)
    )


def per_thousand_lines(counts: Callable[[ast.AST], bool]) -> float:
    trees = operations()
    found = sum(counts(node) for tree in trees.values() for node in ast.walk(tree))
    return 1000 * found / sum(len(lines_of(name)) for name in trees)


def comments_of_kernels() -> float:
    """Comments per 100 lines of the files that hold kernels."""
    comments = lines = 0
    for name, tree in operations().items():
        if any(isinstance(node, ast.FunctionDef) and is_kernel(node) for node in ast.walk(tree)):
            text = (ROOT / name).read_text(encoding="utf-8")
            lines += len(text.splitlines())
            tokens = tokenize.generate_tokens(io.StringIO(text).readline)
            comments += sum(token.type == tokenize.COMMENT for token in tokens)
    return 100 * comments / lines


@pytest.mark.parametrize(
    ("rule", "counts"),
    [
        ("literal subscripts", is_literal_subscript),
        ("parallel assignments", is_parallel_assignment),
    ],
)
def test_densities(rule: str, counts: Callable[[ast.AST], bool]) -> None:
    assert per_thousand_lines(counts) <= DENSITIES[rule]


def test_kernels_are_explained() -> None:
    assert comments_of_kernels() >= COMMENTS_OF_KERNELS


def test_arguments_of_a_kernel_leave_out_what_must_stay_apart() -> None:
    source = """
@triton.jit(do_not_specialize=[*UNSPECIALIZED, "cells"])
def kernel(query, rows, num_rows, cells, step, ROWS: tl.constexpr): ...
"""
    (kernel,) = ast.parse(source).body
    assert isinstance(kernel, ast.FunctionDef)
    # `step` counts: the kernel is compiled anew for it, as for a field of a tuple.
    assert kernel_arguments(kernel) == 3


def children(folder: Path) -> set[str]:
    """What a layout list must name: folders with a slash, and modules."""
    return {
        path.name + "/" * path.is_dir()
        for path in folder.iterdir()
        if path.name not in NO_FOLDER and (path.is_dir() or path.suffix == ".py")
    }


def layout(page: str) -> dict[str, set[str]]:
    """The names that a page's layout block lists, by the folder that they are in.

    A line without indent opens a folder, and the lines below it begin with what it holds. Two
    spaces end the names.
    """
    text = (ROOT / page).read_text(encoding="utf-8")
    block = text.split("## Layout")[1].split("```")[1]
    listed: dict[str, set[str]] = {}
    inside: set[str] = set()
    for line in block.strip().splitlines():
        names = re.split(r"\s{2,}", line.strip())[0].split()
        if line.startswith(" "):
            inside |= set(names)
            continue
        for name in names:
            inside = listed.setdefault(name, set())
    return listed


def test_the_layout_in_design() -> None:
    listed = layout("DESIGN.md")
    folders = {"src/freqformer/": PACKAGE, "src/freqformer/ops/": PACKAGE / "ops"}
    for name, folder in folders.items():
        assert listed.pop(name) == children(folder), name
    top = {"benchmarks/", "docs/", "examples/", "requirements/", "tests/", "tools/", "configs/"}
    assert listed.keys() == top
    assert all((ROOT / name).is_dir() for name in top)


def test_the_order_of_imports_in_contributing() -> None:
    """The order in words is the linter's, each layer and nothing else."""
    rules = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = [c for c in rules["tool"]["importlinter"]["contracts"] if c["type"] == "layers"]
    layers = [layer.replace("freqformer.", "") for layer in reversed(contract["layers"])]
    words = " → ".join(layer.replace(" | ", ", ") for layer in layers)
    text = " ".join((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split())
    assert words in text, f"it must say: {words}"
    existing = {name.removesuffix("/").removesuffix(".py") for name in children(PACKAGE)}
    layered = set(re.split(r" → |, ", words))
    assert layered <= existing
    anywhere = {"_files", "_interrupt", "_optional", "_validate", "media"}
    anywhere |= {"_colours", "_older", "_progress", "_renamed"}
    assert existing - layered == {*anywhere, "assets"}
    assert all(f"`{name}`" in text for name in anywhere)


def test_decisions_name_their_evidence() -> None:
    """Each is bold, has three lines at most, and ends with files that exist, or says that no file
    of its probe was kept."""
    text = (ROOT / "DESIGN.md").read_text(encoding="utf-8").split("## Decisions")[1]
    decisions = [f"- **{part}".strip() for part in re.split(r"^- \*\*", text, flags=re.MULTILINE)][
        1:
    ]
    assert len(decisions) > 20
    for decision in (part.split("\n\n")[0] for part in decisions):
        assert len(decision.splitlines()) <= 3, decision
        (evidence,) = re.findall(r"\(([^()]+)\)$", decision)
        named = re.findall(r"[\w./-]+/[\w./-]+", evidence)
        assert named or "probe" in evidence, decision
        assert not [name for name in named if not (ROOT / name).exists()], decision


def test_every_target_that_is_named_has_a_rule() -> None:
    rules = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("src/**/*.md")]
    pages += [*ROOT.glob("examples/*.md"), *(ROOT / name for name in modules())]
    for page in pages:
        named = set(re.findall(r"`make ([a-z-]+)", page.read_text(encoding="utf-8")))
        assert named <= rules, f"{page.name} names targets without a rule"
