"""Locks: pins that exclude one another are found, whatever this machine's own settings offer."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import pytest
from tools.locks import MACHINES, TORCH, Machine, Resolver, conflict, lock_path, pinned

from tools import locks

LINUX = [machine for machine in MACHINES if machine.platform.startswith("linux")]
PROJECT = """
[project]
name = "project"
version = "1"
requires-python = ">=3.11"
dependencies = ["torch>=2.11"]
[project.optional-dependencies]
all = []
dev = ["triton; sys_platform == 'linux'"]
docs = []
"""


def wheel(folder: Path, name: str, version: str, *requirements: str) -> None:
    """A package for every platform that holds nothing but what it requires."""
    metadata = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    metadata += [f"Requires-Dist: {requirement}" for requirement in requirements]
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{info}/METADATA", "\n".join(metadata) + "\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")


@pytest.fixture
def registry(tmp_path: Path) -> Resolver:
    """A folder in place of a registry: torch 2.13 as it is for Linux, and two releases of
    Triton."""
    wheel(tmp_path, "torch", "2.13.0", "triton==3.7.1; sys_platform == 'linux'")
    wheel(tmp_path, "triton", "3.6.0")
    wheel(tmp_path, "triton", "3.7.1")
    (tmp_path / "pyproject.toml").write_text(PROJECT, encoding="utf-8")
    return Resolver(tmp_path, ["--no-index", "--find-links", str(tmp_path)])


def found(registry: Resolver, folder: Path, lock: str, machine: Machine) -> str | None:
    (folder / "lock.txt").write_text(lock, encoding="utf-8")
    return conflict(registry, folder / "pyproject.toml", folder / "lock.txt", machine)


def test_pins_that_torch_excludes(registry: Resolver, tmp_path: Path) -> None:
    for machine in (LINUX[0], LINUX[-1]):
        text = found(registry, tmp_path, "torch==2.13.0\ntriton==3.6.0\n", machine)
        assert text is not None
        assert re.search(r"torch depend on triton\S*( \S+)* 'linux'}==3\.7\.1", text), text
        assert "==3.6.0, we can conclude that your requirements are unsatisfiable" in text
        assert found(registry, tmp_path, "torch==2.13.0\ntriton==3.7.1\n", machine) is None


def test_without_triton_the_same_pins_hold(registry: Resolver, tmp_path: Path) -> None:
    assert (
        found(registry, tmp_path, "torch==2.13.0\ntriton==3.6.0\n", Machine("macos-arm64", "3.13"))
        is None
    )


def test_a_dependency_without_a_pin(registry: Resolver, tmp_path: Path) -> None:
    text = found(registry, tmp_path, "torch==2.13.0\n", LINUX[0])
    assert text is not None
    assert "pins no version of triton: run `make locks`" in text


def test_a_package_that_is_only_source(registry: Resolver, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        PROJECT.replace("all = []", 'all = ["absent"]'), encoding="utf-8"
    )
    (tmp_path / "absent-1.tar.gz").write_bytes(b"")
    text = found(registry, tmp_path, "torch==2.13.0\ntriton==3.7.1\nabsent==1\n", LINUX[0])
    assert text is not None
    assert "absent" in text


def test_what_is_resolved() -> None:
    assert len(MACHINES) == len(locks.PLATFORMS) * len(locks.PYTHONS) == 16
    assert sorted(path.name for path in locks.LOCKS.glob("torch-*.txt")) == [
        f"torch-{name}.txt" for name in TORCH
    ]
    project = (locks.ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert all(f"\n{extra} = [" in project for extra in locks.EXTRAS)


@pytest.mark.parametrize("torch", TORCH)
def test_a_lock_holds_its_torch_and_names_no_place(torch: str) -> None:
    lock = lock_path(torch).read_text(encoding="utf-8")
    assert f"\ntorch=={torch}." in lock
    assert {"diffusers", "matplotlib", "pytest", "mkdocs-material", "triton", "typer"} <= pinned(
        lock
    )
    assert "://" not in lock
    assert " @ " not in lock
