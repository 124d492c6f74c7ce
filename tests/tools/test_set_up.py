"""Set-up: what it says before it downloads, and that causes of a failure are shown."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tools import set_up

SIZES = json.loads((set_up.ROOT / "requirements" / "download.json").read_text(encoding="utf-8"))


@pytest.fixture
def linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")


@pytest.mark.parametrize(
    ("versions", "build"),
    [
        ("2.14.1, 2.13.0, 2.12.1", ""),
        ("2.13.0+cpu, 2.13.0", "cpu"),
        ("2.13.0+cu130, 2.13.0+cpu", "cu130"),  # pip takes the greatest
        ("12.13.0+cpu, 2.13.0.1+cpu, 2.14.0+cpu", ""),
        ("", ""),  # no registry was reached: pip install will say so
    ],
)
def test_the_build_that_pip_prefers(versions: str, build: str) -> None:
    pip = [sys.executable, "-c", f"print('torch (2.14.1)\\nAvailable versions: {versions}')"]
    assert set_up.offered_build(pip, "2.13.0", []) == build


@pytest.mark.usefixtures("linux")
@pytest.mark.parametrize("torch", SIZES)
def test_what_will_be_downloaded(torch: str) -> None:
    cuda, cuda_disk = set_up.announcement(torch, f"{torch}.0", "")
    cpu, cpu_disk = set_up.announcement(torch, f"{torch}.0", "cpu")
    assert f"with CUDA: up to {SIZES[torch]['linux-x86_64']['all'] / 1e9:.1f} GB" in cuda
    assert "TORCH_INDEX=URL" in cuda
    assert "a build for CPUs: up to 0." in cpu
    assert "CUDA" not in cpu
    assert cuda_disk > cpu_disk


def test_other_platforms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    assert "up to 0." in set_up.announcement("2.13", "2.13.0", "")[0]
    monkeypatch.setattr(platform, "machine", lambda: "sparc")
    assert "not known" in set_up.announcement("2.13", "2.13.0", "")[0]


def test_a_failure_shows_its_cause_and_its_command() -> None:
    code = "import sys; sys.exit('the cause')"
    program = f"import sys\nfrom tools.set_up import run\nrun([sys.executable, '-c', {code!r}])"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=set_up.ROOT,
        check=False,
    )
    assert done.returncode == 1
    cause, _, rest = done.stderr.partition("\n")
    assert cause == "the cause"
    assert "set-up stopped" in rest
    assert code in rest


def test_a_release_without_a_lock(tmp_path: Path) -> None:
    command = [sys.executable, "tools/set_up.py", str(tmp_path / "new"), "--torch", "1.0"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=set_up.ROOT, check=False)
    assert done.returncode == 1
    assert f"there is one for {', '.join(sorted(SIZES))}" in done.stderr
    assert not (tmp_path / "new").exists()


def test_the_page_of_the_demo_says_the_same() -> None:
    page = " ".join((set_up.ROOT / "docs" / "index.md").read_text(encoding="utf-8").split())
    size = SIZES["2.13"]["linux-x86_64"]
    assert f"CUDA's libraries: {size['all'] / 1e9:.1f} GB to download" in page
    cpu = (size["without_torch"] + set_up.CPU_BUILD_BYTES) / 1e9
    assert f"a build of PyTorch for CPUs, {cpu:.1f} GB in all" in page
