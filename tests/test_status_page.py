"""What docs/status.md and docs/index.md say of the package is so."""

from __future__ import annotations

import json

from tests.support.pages import ROOT, check_says

from freqformer.demo.shipped import SHIPPED_MODEL


def test_the_shipped_model() -> None:
    record = json.loads((SHIPPED_MODEL / "record.json").read_text(encoding="utf-8"))
    minutes = sum(session["seconds"] for session in record["sessions"]) / 60
    assert all(session["device"].startswith("NVIDIA H100") for session in record["sessions"])
    check_says(
        "docs/index.md",
        f"{record['parameters'] / 1e6:.1f} million weights, trained for {minutes:.1f} minutes on "
        "one H100; ",
        f"{record['sample_seconds']:.0f} s a video on two CPU cores",
    )
    shown = ROOT / "docs/images/shipped.png"
    assert shown.read_bytes() == (SHIPPED_MODEL / "samples.png").read_bytes()
