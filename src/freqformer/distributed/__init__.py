"""Many GPUs: context parallelism by Ulysses and sharded weights, on torch's own DeviceMesh and
FSDP2."""

from freqformer.distributed.context import ContextParallel
from freqformer.distributed.gradients import sum_gradients
from freqformer.distributed.heads import deal_heads
from freqformer.distributed.mesh import make_mesh
from freqformer.distributed.parallelize import parallelize
from freqformer.distributed.tokens import gather_tokens, shard_tokens, token_shares

__all__ = [
    "ContextParallel",
    "deal_heads",
    "gather_tokens",
    "make_mesh",
    "parallelize",
    "shard_tokens",
    "sum_gradients",
    "token_shares",
]
