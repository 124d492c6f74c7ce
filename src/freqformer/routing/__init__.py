"""Which band each head belongs to: statistics, the routing network, allocation, training, frozen
tables."""

from freqformer.routing.allocation import allocate, even_allocation
from freqformer.routing.network import Prior, RoutingNetwork, sinusoidal_embedding
from freqformer.routing.statistics import routing_statistics
from freqformer.routing.table import RoutingTable, timestep_bucket
from freqformer.routing.training import RouterTraining, other_bands, routing_loss, straight_through

__all__ = [
    "Prior",
    "RouterTraining",
    "RoutingNetwork",
    "RoutingTable",
    "allocate",
    "even_allocation",
    "other_bands",
    "routing_loss",
    "routing_statistics",
    "sinusoidal_embedding",
    "straight_through",
    "timestep_bucket",
]
