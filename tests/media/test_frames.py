"""Frames as tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from freqformer.media import contact_sheet, from_unit, to_unit, write_video


def test_unit_range_round_trip() -> None:
    frames = torch.arange(256, dtype=torch.uint8).reshape(4, 8, 8, 1).expand(-1, -1, -1, 3)
    clip = to_unit(frames)
    assert clip.shape == (3, 4, 8, 8)
    assert (clip.min(), clip.max()) == (-1, 1)
    assert torch.equal(from_unit(clip), frames)
    assert torch.equal(
        from_unit(clip.to(torch.bfloat16) * 3),
        from_unit((clip.to(torch.bfloat16) * 3).clamp(-1, 1)),
    )


def test_wrong_tensors_are_refused(tmp_path: Path) -> None:
    wrong = [
        torch.zeros(2, 8, 8, 3),
        torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
        torch.zeros(0, 8, 8, 3, dtype=torch.uint8),
    ]
    for frames in wrong:
        for action in (
            to_unit,
            lambda f: write_video(f, tmp_path / "x.mp4", 8),
            lambda f: contact_sheet(f, tmp_path / "x.png"),
        ):
            with pytest.raises(ValueError, match="frames is"):
                action(frames)
    for clip in (
        torch.zeros(2, 4, 8, 8),
        torch.zeros(3, 4, 8),
        torch.zeros(3, 4, 8, 8, dtype=torch.uint8),
    ):
        with pytest.raises(ValueError, match="clip is"):
            from_unit(clip)
    with pytest.raises(ValueError, match="clip holds NaN"):
        from_unit(torch.full((3, 1, 2, 2), float("nan")))
