"""How long a launch takes when its work items are dealt to processors: waves, stragglers and the
longest list."""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def makespan(items: Sequence[tuple[float, int]], slots: int) -> float:
    """Seconds until all items are done, when every slot that falls free takes the next one.

    Args:
        items: (seconds, count) of equal work items, in the order in which they start.
        slots: items that run at once.

    Raises:
        ValueError: for no slots, or negative times or counts.
    """
    if slots < 1 or any(seconds < 0 or count < 0 for seconds, count in items):
        raise ValueError(
            f"slots is {slots} and items {list(items)[:4]}; at least one slot, no negative times "
            "are allowed"
        )
    free = [0.0] * slots
    for seconds, count in items:
        if seconds == 0:
            continue
        # Level the slots, then move all of them by whole waves: the same as one item at a time, but
        # quick.
        level = max(free)
        ready = [int((level - start) // seconds) for start in free]
        if sum(ready) <= count:
            waves, count = divmod(count - sum(ready), slots)
            free = [
                start + (filled + waves) * seconds
                for start, filled in zip(free, ready, strict=True)
            ]
        heapq.heapify(free)
        for _ in range(count):
            heapq.heapreplace(free, free[0] + seconds)
    return max(free)
