"""How many processes share what of a run."""

from __future__ import annotations

from dataclasses import dataclass

from freqformer._validate import check_whole

_MOST_RANKS = 2**20


@dataclass(frozen=True)
class ParallelConfig:
    """How the processes of a run share its work; those beyond the product hold copies of the
    weights and take clips of their own.

    Args:
        cp: processes that share one clip's tokens; at most the model's heads, and 1 for a pipeline
            of diffusers.
        dp_shard: processes that share the weights of those with other clips, by FSDP2; where `cp`
            is above 1, weights are shared over both. 1 and 1 hold all weights on every process.
    """

    cp: int = 1
    dp_shard: int = 1

    def __post_init__(self) -> None:
        check_whole("cp", self.cp, 1, most=_MOST_RANKS)
        check_whole("dp_shard", self.dp_shard, 1, most=_MOST_RANKS)

    def copies(self, processes: int) -> int:
        """Copies of the weights that so many processes hold.

        Raises:
            ValueError: where the degrees don't divide them.
        """
        ranks = self.cp * self.dp_shard
        if processes % ranks:
            raise ValueError(
                f"parallel has cp {self.cp} and dp_shard {self.dp_shard} with {processes} "
                f"processes; multiples of {ranks} are allowed: start them by torchrun "
                f"--nproc-per-node {ranks}, or choose other degrees"
            )
        return processes // ranks
