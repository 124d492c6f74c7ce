"""A video with frequency attention beside the one that dense attention makes of the same noise."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

import torch
from torch import Tensor

from freqformer import _colours
from freqformer._files import write_text
from freqformer.generation.likeness import lpips, psnr, ssim
from freqformer.generation.request import LARGEST_BYTE, Made, Request


@dataclass(frozen=True)
class Likeness:
    """How near two videos are."""

    psnr: float
    """dB over all frames."""
    ssim: float
    lpips: float | None
    """None where the package isn't installed."""


@dataclass(frozen=True)
class Compared:
    """Both videos of a request, and what is said of them."""

    request: Request
    dense: Made
    banded: Made
    delivered: str
    """What the handle says of the density."""
    command: str
    """That made this."""

    @property
    def speedup(self) -> float:
        """How many times sooner the whole video is there."""
        return self.dense.seconds / self.banded.seconds

    @property
    def likeness(self) -> Likeness:
        """Of the banded video to the dense one."""
        video, reference = _unit(self.banded.frames), _unit(self.dense.frames)
        return Likeness(
            float(psnr(video, reference)), float(ssim(video, reference)), lpips(video, reference)
        )

    def side_by_side(self) -> Tensor:
        """Dense left, banded right, with a white line between: uint8 (F, H, W, 3)."""
        dense = self.dense.frames
        line = dense.new_full((len(dense), dense.shape[1], 4, 3), LARGEST_BYTE)
        return torch.cat([dense, line, self.banded.frames], 2)


def write_page(compared: Compared, likeness: Likeness, page: Path, video: Path) -> None:
    """Write the comparison as HTML, which needs no network.

    Args:
        compared: both videos.
        likeness: of the two.
        page: to write.
        video: side by side, in the same folder.

    Raises:
        ValueError: where it can't be written.
    """
    rows = "".join(
        f"<tr><td>{name}</td>{''.join(f'<td>{cell}</td>' for cell in _cells(made))}</tr>"
        for name, made in (
            ("dense attention", compared.dense),
            ("frequency attention", compared.banded),
        )
    )
    facts = {
        "prompt": compared.request.prompt,
        "video": video.name,
        "delivered": compared.delivered,
        "speedup": f"{compared.speedup:.2f}",
        "psnr": f"{likeness.psnr:.1f} dB",
        "ssim": f"{likeness.ssim:.3f}",
        "lpips": "not installed" if likeness.lpips is None else f"{likeness.lpips:.3f}",
        "seed": compared.request.seed,
        "command": compared.command,
    }
    template = Template((files("freqformer.generation") / "page.html").read_text(encoding="utf-8"))
    shown = {name: escape(str(fact)) for name, fact in facts.items()}
    write_text(page, template.substitute(shown, rows=rows, ink=_colours.INK))


def _cells(made: Made) -> tuple[str, str, str]:
    peak = "–" if made.peak_bytes is None else f"{made.peak_bytes / 1e9:.2f} GB"
    return (f"{made.seconds:.1f} s", f"{1000 * made.call_median:.0f} ms", peak)


def _unit(frames: Tensor) -> Tensor:
    """uint8 (F, H, W, 3) -> (1, F, 3, H, W) in [0, 1]."""
    return frames.permute(0, 3, 1, 2)[None].float() / LARGEST_BYTE
