"""Which band each head belongs to: statistics, routers, allocation, training, frozen tables."""

from freqformer.config import Prior, even_allocation
from freqformer.routing.allocation import allocate
from freqformer.routing.network import RoutingNetwork, sinusoidal_embedding
from freqformer.routing.routers import (
    Decision,
    FixedRouter,
    HardRouter,
    Router,
    RouterInputs,
    SoftRouter,
    TableRouter,
    TimestepRouter,
    branch_weights,
    make_router,
)
from freqformer.routing.statistics import routing_statistics
from freqformer.routing.table import RoutingTable, timestep_bucket
from freqformer.routing.training import RouterTraining, other_bands, routing_loss, straight_through

__all__ = [
    "Decision",
    "FixedRouter",
    "HardRouter",
    "Prior",
    "Router",
    "RouterInputs",
    "RouterTraining",
    "RoutingNetwork",
    "RoutingTable",
    "SoftRouter",
    "TableRouter",
    "TimestepRouter",
    "allocate",
    "branch_weights",
    "even_allocation",
    "make_router",
    "other_bands",
    "routing_loss",
    "routing_statistics",
    "sinusoidal_embedding",
    "straight_through",
    "timestep_bucket",
]
