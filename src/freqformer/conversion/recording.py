"""Calls recorded while a pipeline of diffusers generates from prompts."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from freqformer._progress import progress_bar
from freqformer._validate import check_whole
from freqformer.conversion.calls import CALLS_FILE, CallFolder, new_folder, recorded
from freqformer.generation.loading import load_pipeline
from freqformer.generation.request import Request, make
from freqformer.integrations.diffusers.families import transformers_of

logger = logging.getLogger(__name__)

PAUSE = 1.0
"""Seconds between two looks at what another process records."""


@dataclass(frozen=True)
class RecordConfig:
    """What is recorded.

    Args:
        prompts: one video each.
        request: what else is asked of the pipeline; its prompt and seed are replaced.
        calls_per_video: how many of a video's calls are kept, any with the same chance.
    """

    prompts: tuple[str, ...]
    request: Request
    calls_per_video: int = 8

    def __post_init__(self) -> None:
        check_whole("calls_per_video", self.calls_per_video, 1)
        if not self.prompts:
            raise ValueError(
                "prompts is empty; one prompt at least is allowed: write one on each line of the "
                "file"
            )


def read_prompts(path: Path) -> tuple[str, ...]:
    """The lines of a text file that aren't empty.

    Raises:
        ValueError: for a file that can't be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"prompts is {path}, which can't be read ({error}); a text file with a prompt on each "
            "line is allowed"
        ) from error
    return tuple(line.strip() for line in lines if line.strip())


def record(
    pipeline: Path,
    folder: Path,
    config: RecordConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    part: str = "transformer",
    progress: bool = True,
) -> CallFolder:
    """Generate a video for each prompt, and keep some calls of the transformer; goes on where it
    stopped.

    Args:
        pipeline: folder of the pipeline.
        folder: of the calls; made if need be.
        config: what is recorded.
        dtype, device: of the pipeline.
        part: name of the transformer in it.
        progress: whether to draw a bar.

    Raises:
        ValueError: for a pipeline that isn't known, or takes other arguments.
        FileError: for a folder with calls of another transformer, or one that can't be written.
    """
    pipe = load_pipeline(str(pipeline), dtype=dtype, device=device)
    transformers = transformers_of(pipe)
    transformer = transformers[part]
    calls = new_folder(folder, transformer)
    wanted = len(config.prompts)
    with progress_bar("recording", wanted, enabled=progress) as bar:
        for number in range(calls.videos, wanted):
            asked = replace(config.request, prompt=config.prompts[number], seed=number)
            with recorded(transformer, config.calls_per_video, number) as kept:
                make(pipe, asked, transformers, device)
            calls.add_video(kept, asked.prompt)
            bar.update(completed=number + 1)
    return calls


def await_calls(folder: Path, videos: int) -> None:
    """Wait until another process has recorded so many videos.

    Args:
        folder: of the calls, which both processes see; it may not be there yet.
        videos: at least.

    Raises:
        FileError: for a folder that is damaged.
    """
    while not (folder / CALLS_FILE).is_file() or CallFolder.read(folder).videos < videos:
        time.sleep(PAUSE)
