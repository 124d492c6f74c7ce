"""Makes the virtual environment that every target of the Makefile runs in, with any Python.

It says first what will be downloaded, since PyTorch's usual build for Linux brings CUDA's libraries
with it, and lets pip show its progress and its errors.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLATFORMS = {
    ("linux", "x86_64"): "linux-x86_64",
    ("linux", "aarch64"): "linux-aarch64",
    ("darwin", "arm64"): "macos-arm64",
    ("win32", "amd64"): "windows-amd64",
}
CPU_BUILD_BYTES = 200_000_000
"""Of torch itself, for Linux: 192 MB for torch 2.13, Python 3.11 and x86-64."""
CUDA_DISK_GB, CPU_DISK_GB = 6.5, 3.0
"""Of the whole environment, rounded up from what it took with torch 2.13 and Python 3.11 on
x86-64."""
GB = 1e9


def offered_build(pip: list[str], release: str, index: list[str]) -> str:
    """The build of torch that pip here prefers, by its version's local part: "cpu", "cu130" or "".

    Of equal releases pip takes the one with the greatest local part, and any before none.
    """
    listed = subprocess.run(
        [*pip, "index", "versions", "torch", *index], capture_output=True, text=True, check=False
    )
    builds = re.findall(rf"\b{re.escape(release)}(?:\+([\w.]+))?(?=[\s,)]|$)", listed.stdout)
    return max(builds, default="")


def announcement(torch: str, release: str, build: str) -> tuple[str, float]:
    """What is about to be downloaded, in words, and the GB that it takes on the disk."""
    name = PLATFORMS.get((sys.platform, platform.machine().lower()))
    if name is None:
        return f"torch {release}; the size is not known for this platform", CPU_DISK_GB
    sizes = json.loads((ROOT / "requirements" / "download.json").read_text(encoding="utf-8"))[
        torch
    ][name]
    if not name.startswith("linux"):
        return f"torch {release}: up to {sizes['all'] / GB:.1f} GB to download", CPU_DISK_GB
    if build.startswith("cpu"):
        size = sizes["without_torch"] + CPU_BUILD_BYTES
        text = f"torch {release}, a build for CPUs: up to {size / GB:.1f} GB to download"
        return f"{text}, {CPU_DISK_GB} GB on the disk", CPU_DISK_GB
    less = (sizes["all"] - sizes["without_torch"] - CPU_BUILD_BYTES) / GB
    text = (
        f"torch {release} with CUDA: up to {sizes['all'] / GB:.1f} GB to download, "
        f"{CUDA_DISK_GB} GB on the disk.\n"
        f"No GPU here? A build for CPUs is {less:.1f} GB less: stop this and run it again with\n"
        "TORCH_INDEX=URL, where URL is what PyTorch's “Get started” page gives after --index-url\n"
        "for Linux, pip and CPU."
    )
    return text, CUDA_DISK_GB


def run(command: list[str]) -> None:
    done = subprocess.run(command, cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(
            f"\nset-up stopped: the message above says why. It came from\n  {' '.join(command)}\n"
            "What is downloaded already is kept: run make again once the cause is gone."
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes the virtual environment")
    parser.add_argument("folder", type=Path, help="of the virtual environment")
    parser.add_argument("--torch", default="2.13", help="which lock: requirements/torch-TORCH.txt")
    parser.add_argument("--torch-index", default="", help="one more index for pip")
    asked = parser.parse_args()
    lock = ROOT / "requirements" / f"torch-{asked.torch}.txt"
    if not lock.exists():
        locks = ", ".join(
            sorted(path.stem.removeprefix("torch-") for path in lock.parent.glob("torch-*.txt"))
        )
        sys.exit(f"TORCH is {asked.torch!r}, for which there is no lock; there is one for {locks}")
    release = re.findall(r"^torch==(\S+)", lock.read_text(encoding="utf-8"), re.MULTILINE)[0]
    run([sys.executable, "-m", "venv", str(asked.folder)])
    scripts = "Scripts" if sys.platform == "win32" else "bin"
    pip = [str(asked.folder / scripts / "python"), "-m", "pip", "--disable-pip-version-check"]
    index = ["--extra-index-url", asked.torch_index] if asked.torch_index else []
    text, disk = announcement(asked.torch, release, offered_build(pip, release, index))
    print(f"Setting up {asked.folder}: {text}", flush=True)
    free = shutil.disk_usage(asked.folder).free / GB
    if free < disk:
        print(f"Only {free:.1f} GB of the disk are free: this may not be enough.", flush=True)
    run([*pip, "install", "--constraint", str(lock), *index, "--editable", ".[all,dev,docs]"])


if __name__ == "__main__":
    if sys.version_info < (3, 11):  # noqa: UP036 - whatever Python is at hand runs this
        version = platform.python_version()
        sys.exit(
            f"FreqFormer needs Python 3.11 or newer, this is {version}: make PYTHON=python3.11"
        )
    main()
