"""The layer of exact attention, which takes bands from a table alone."""

from __future__ import annotations

from freqformer.attention.base import AttentionLayer
from freqformer.config import FreqFormerConfig
from freqformer.routing import FixedRouter, RoutingTable


class DenseAttention(AttentionLayer):
    """Exact self-attention in every head, by torch's own operation.

    It is called as `FreqAttention` is, and its projections have the same names. A routing table may
    give its heads bands afterwards (docs/calibration.md): it then takes the whole meaning of the
    bands from the table, and low summaries alone, since it has learned none.

    Args:
        dim: channels of input and output; `num_heads` divides it, and head_dim = dim / num_heads is
            even.
        num_heads: heads.
        config: with `allocation="dense"`.

    Raises:
        ValueError: for a value that does not fit, naming the argument.
    """

    forgets_summaries = False

    def __init__(
        self, dim: int, num_heads: int, config: FreqFormerConfig = FreqFormerConfig.dense()
    ) -> None:
        super().__init__(dim, num_heads, config)
        if not config.is_dense:
            raise ValueError(
                f"config.allocation is {config.allocation!r}; 'dense' is allowed: take "
                "FreqFormerConfig.dense(), or FreqAttention for heads of bands"
            )
        self.router = FixedRouter()

    @property
    def exact(self) -> bool:
        """Whether calls compute exact attention in every head, and nothing else."""
        return self.forced_dense or self.table_bands is None

    def meaning(self, table: RoutingTable) -> FreqFormerConfig:
        """What bands mean under this table: what it says."""
        return table.config

    def check_table(self, table: RoutingTable) -> None:
        """Raise ValueError for a table that asks for learned gains."""
        if table.config.band_features == "band_gains":
            raise ValueError(
                "table.config.band_features is 'band_gains', and a dense layer has learned none; "
                "take 'full'"
            )
