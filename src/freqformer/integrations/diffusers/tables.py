"""Tables of a pipeline's transformers as files, beside the model or anywhere else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from freqformer.routing import RoutingTable
from freqformer.routing.table import RECORD_NAME as TABLE_RECORD


def save_tables(tables: Mapping[str, RoutingTable], folder: str | Path) -> None:
    """Write each table into a folder of its transformer's name.

    Args:
        tables: by the transformers' names in their pipeline.
        folder: made if missing.

    Raises:
        ValueError: where it can't be written.
    """
    for part, table in tables.items():
        table.save(Path(folder) / (part or "transformer"))


def load_tables(folder: str | Path) -> RoutingTable | dict[str, RoutingTable]:
    """What `save_tables` or `RoutingTable.save` wrote, for `enable_frequency_attention`.

    Raises:
        ValueError: for a folder without tables, and for damaged ones.
    """
    folder = Path(folder)
    parts = sorted(path.parent for path in folder.glob(f"*/{TABLE_RECORD}"))
    if (folder / TABLE_RECORD).is_file() or not parts:
        return RoutingTable.load(folder)
    return {part.name: RoutingTable.load(part) for part in parts}
