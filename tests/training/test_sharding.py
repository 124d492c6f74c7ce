"""A step's clips are shared out whole, and each once."""

from __future__ import annotations

from itertools import islice

import torch

from freqformer.training.sharding import StepShards


def test_processes_and_forward_passes_share_the_clips_of_a_step() -> None:
    shards = [StepShards(2, 3, processes=2, process=number) for number in (0, 1)]
    assert shards[0].clips_per_step == 12
    taken = [list(islice(one.indices(5), 12)) for one in shards]
    assert taken[0][:6] == [60, 61, 64, 65, 68, 69]
    assert sorted(taken[0] + taken[1]) == list(range(60, 84))


def test_slices_are_of_the_same_clips() -> None:
    values = torch.arange(12)
    for number in (0, 1):
        one = StepShards(2, 3, processes=2, process=number)
        assert torch.cat(one.slices(values)).tolist() == list(islice(one.indices(0), 6))
