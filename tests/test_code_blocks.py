"""Every code block of the README and the docs runs as printed.

A comment above a block says what is smaller in its test, `<!-- tested with: `max_steps=5000` ->
`max_steps=1` -->`, or why it can't run on a CPU, `<!-- not run: it takes an hour of a GPU -->`.
Python blocks stand for themselves: nothing is handed from one to the next but files. Of shell
blocks every line is a command in a folder with the files that readers are told of: videos/,
holiday.mp4, prompts.txt, runs/dense, a dense model, wan/, a pipeline of diffusers, and cached/ made
by it. A pipeline of another family lies in a folder of its name in `PIPELINES`, where a block
names it.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.command_line import run
from tests.support.family_parts import picture
from tests.support.family_pipelines import PIPELINES
from tests.support.tiny_cache import cache_config
from tests.support.tiny_pipelines import tiny_wan_pipeline

from freqformer.media import write_video
from freqformer.training.cache.making import make_cache

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_RUN = {
    "docs/index.md": 1,
    "docs/calibration.md": 1,
    "docs/conversion.md": 2,
    "docs/distributed.md": 8,
    "docs/families.md": 2,
    "docs/quality.md": 1,
    "docs/training.md": 3,
}
"""Blocks that give a reason for not being run, by page."""
FENCE = re.compile(
    r"^(?:<!-- (?P<mark>[^\n]*) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
CHANGE = re.compile(r"`([^`]+)` -> `([^`]*)`")
TINY = {
    "model": {
        "num_layers": 1,
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "patch_size": [1, 8, 8],
        "frequency": {"tile": [2, 2, 4], "summary_tokens": 0},
    },
    "data": {"num_frames": 4, "height": 32, "width": 48, "fps": 8},
    "run": {"max_steps": 1, "batch_size": 1, "progress": False, "device": "cpu"},
}


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str
    mark: str

    @property
    def runs(self) -> bool:
        return not self.mark.startswith("not run: ")

    @property
    def tested(self) -> str:
        """The text with what the comment above it makes smaller."""
        text = self.text
        for old, new in CHANGE.findall(self.mark):
            assert old in text, (
                f"{self.page}:{self.line} is tested with another {old!r}, which it does not hold"
            )
            text = text.replace(old, new)
        return text


def blocks_of(page: Path) -> list[Block]:
    source, name = page.read_text(encoding="utf-8"), page.relative_to(ROOT).as_posix()
    return [
        Block(
            name,
            source[: found.start()].count("\n") + 1,
            found["language"],
            found["text"],
            found["mark"] or "",
        )
        for found in FENCE.finditer(source)
    ]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the pages speak of."""
    folder = tmp_path_factory.mktemp("reader")
    tiny_wan_pipeline().save_pretrained(folder / "wan")
    noise = torch.rand(20, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    frames = torch.nn.functional.interpolate(noise, (48, 80), mode="bicubic").clamp(0, 1)
    pixels = (255 * frames).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    for name in ("holiday.mp4", "videos/one.mp4"):
        write_video(pixels, folder / name, 8)
    (folder / "videos" / "one.txt").write_text("a red ball flies left", encoding="utf-8")
    cached = {"vae": str(folder / "wan"), "text_encoder": str(folder / "wan")}
    make_cache(cache_config(folder, output=str(folder / "cached"), **cached))
    picture().save(folder / "lighthouse.png")
    (folder / "prompts.txt").write_text("a lighthouse in the storm\n", encoding="utf-8")
    (folder / "tiny.json").write_text(json.dumps(TINY), encoding="utf-8")
    dense = json.loads(json.dumps(TINY))
    dense["model"]["frequency"]["preset"] = "dense"
    (folder / "dense.json").write_text(json.dumps(dense), encoding="utf-8")
    run(
        "train",
        folder / "videos",
        "-o",
        folder / "runs" / "dense",
        "--config",
        folder / "dense.json",
    )
    return folder


@pytest.fixture
def reader(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, as the current one."""
    shutil.copytree(prepared, tmp_path / "reader")
    (tmp_path / "reader" / "benchmarks").symlink_to(ROOT / "benchmarks")
    monkeypatch.chdir(tmp_path / "reader")
    return tmp_path / "reader"


def commands(text: str) -> list[str]:
    """The command lines of a shell block, without comments; a backslash joins a line to the
    next."""
    lines = text.replace("\\\n", " ").splitlines()
    return [command for line in lines if (command := line.partition("  #")[0].strip())]


@pytest.mark.filterwarnings("ignore:__array")  # of pictures that diffusers hands to numpy
@pytest.mark.parametrize(
    "block", [b for b in BLOCKS if b.runs], ids=lambda block: f"{block.page}:{block.line}"
)
def test_block(block: Block, reader: Path) -> None:
    for name in PIPELINES:
        if f'"{name}"' in block.tested and not (reader / name).exists():
            PIPELINES[name].make().save_pretrained(reader / name)
    if block.language == "python":
        namespace: dict[str, Any] = {}
        exec(compile(block.tested, f"{block.page}:{block.line}", "exec"), namespace)
        if "enable_frequency_attention" in block.text:
            assert 0 < namespace["attention"].density < 0.8
    else:
        assert block.language == "", (
            f"{block.page}:{block.line} is in {block.language}, which no test runs"
        )
        for command in commands(block.tested):
            program, *arguments = shlex.split(command)
            assert program == "freqformer", (
                f"{block.page}:{block.line} calls {program}: run it here, or say why not"
            )
            run(*arguments)


def test_what_is_not_run_says_why() -> None:
    assert Counter(block.page for block in BLOCKS if not block.runs) == NOT_RUN
    assert all(len(block.mark) > len("not run: ") + 10 for block in BLOCKS if not block.runs)
    assert all(CHANGE.search(block.mark) for block in BLOCKS if block.runs and block.mark)


def test_no_block_is_missed() -> None:
    fences = sum(
        len(re.findall(r"^\s*```", page.read_text(encoding="utf-8"), re.MULTILINE))
        for page in PAGES
    )
    assert fences == 2 * len(BLOCKS)
    assert sum(block.language == "python" for block in BLOCKS if block.runs) >= 9
    kept = [
        command
        for block in BLOCKS
        if block.runs and not block.language
        for command in commands(block.text)
    ]
    assert len(kept) >= 10
