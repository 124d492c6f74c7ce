"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

LARGEST_SEED = 2**63 - 1
"""What every generator of random numbers takes."""

Model = Annotated[
    str,
    typer.Argument(
        help=(
            "Output folder of a training run, a saved pipeline, or 'shipped' for the one that "
            "comes along."
        )
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        min=0, max=LARGEST_SEED, help="Of the weights, the clips, the noise and all else."
    ),
]
