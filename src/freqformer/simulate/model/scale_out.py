"""One denoising step on many GPUs, on paper: Ulysses over heads, queries split beyond it, weights
sharded by FSDP.

G GPUs are u x r: all-to-alls over u of them turn tokens into heads, and the r that hold the same
heads split their queries and gather their keys. u and r are the best divisors of G. Derivation:
docs/complexity.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from freqformer.config import Band
from freqformer.ops.merge.cost import BRANCHES
from freqformer.plan import AttentionPlan
from freqformer.simulate.model.counts import layer_counts
from freqformer.simulate.model.profiles import ProfileError, check_whole
from freqformer.simulate.model.roofline import Machine, working_set
from freqformer.simulate.model.simulation import Result
from freqformer.simulate.model.transformers import ModelShape

Balance = Literal["naive", "balanced"]
"""Heads on GPUs: in order, or the most costly first onto the least loaded GPU; numbers of heads
differ by one at most."""

DEFAULT_GPUS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


LAYER_MESSAGES = 5
"""All-to-alls of a layer: queries, keys, gates, values and the output."""


@dataclass(frozen=True)
class ScaleOut:
    """One denoising step on `gpus` GPUs."""

    gpus: int
    ulysses: int
    """u: GPUs among which heads are divided."""
    query_split: int
    """r: GPUs that share the queries of the same heads."""
    seconds: float
    """With balanced heads."""
    naive_seconds: float
    """With heads in order, at the division that suits them best."""
    dense_seconds: float
    """Dense attention on the same GPUs, at its own best division."""
    communication_seconds: float
    """Gathered keys, and of all-to-alls and FSDP what computation does not hide."""
    all_to_all_bytes: float
    """Sent per GPU in one layer: q, k, v and the output, and gates of a LOW branch beside the own
    bands."""
    imbalance: float
    """Load of the busiest GPU over the mean, balanced heads."""
    naive_imbalance: float
    memory_bytes: float
    """Per GPU: its share of the weights, one gathered layer, and its share of the activations."""


def assign_heads(costs: Sequence[float], gpus: int, balance: Balance) -> list[list[int]]:
    """Which heads each GPU gets; numbers of heads differ by one at most.

    Args:
        costs: of every head.
        gpus: at most as many as heads.
        balance: `naive` keeps the order; `balanced` deals the most costly heads first, those to
            GPUs that get fewest, or keeps the order where that leaves less to the busiest.

    Raises:
        ProfileError: for more GPUs than heads.
    """
    check_whole("gpus", gpus, 1, len(costs))
    room = [len(costs) // gpus + (gpu < len(costs) % gpus) for gpu in range(gpus)]
    ends = [sum(room[: gpu + 1]) for gpu in range(gpus)]
    ordered = [list(range(end - size, end)) for end, size in zip(ends, room, strict=True)]
    if balance == "naive":
        return ordered
    groups: list[list[int]] = [[] for _ in range(gpus)]
    load = [0.0] * gpus
    for head in sorted(range(len(costs)), key=lambda head: -costs[head]):
        gpu = min(
            (g for g in range(gpus) if len(groups[g]) < room[g]), key=lambda g: (load[g], room[g])
        )
        groups[gpu].append(head)
        load[gpu] += costs[head]
    return min(
        groups,
        ordered,
        key=lambda dealt: max(sum(costs[head] for head in group) for group in dealt),
    )


def scale_out(result: Result, gpus: Sequence[int] = DEFAULT_GPUS) -> list[ScaleOut]:
    """A denoising step on these numbers of GPUs.

    Args:
        result: of `simulate`; its initial split of heads is what is divided.
        gpus: numbers of GPUs, from 1 to 65,536.

    Raises:
        ProfileError: for a machine whose profile has no interconnect, or a number out of range.
    """
    return [_best(result, count) for count in gpus]


def all_to_all_seconds(machine: Machine, sent: float, gpus: int, *, messages: int) -> float:
    """Seconds of all-to-alls in which each of `gpus` GPUs sends `sent` bytes to the others.

    Raises:
        ProfileError: for a machine without an interconnect.
    """
    return _Links(machine, gpus).whole_all_to_all(sent, gpus, messages=messages)


def exposed_seconds(machine: Machine, sent: float, gpus: int, *, messages: int) -> float:
    """As `all_to_all_seconds`, without what computation hides, and with sorting and joining."""
    return _Links(machine, gpus).all_to_all(sent, gpus, messages=messages)


def _best(result: Result, gpus: int) -> ScaleOut:
    check_whole("gpus", gpus, 1, 1 << 16)
    heads = result.scenario.model.heads
    divisors = [u for u in range(1, min(gpus, heads) + 1) if gpus % u == 0]
    rows = [_divided(result, gpus, u) for u in divisors]
    return replace(
        min(rows, key=lambda row: row.seconds),
        naive_seconds=min(row.naive_seconds for row in rows),
        dense_seconds=min(row.dense_seconds for row in rows),
    )


def _divided(result: Result, gpus: int, ulysses: int) -> ScaleOut:
    split = gpus // ulysses
    links = _Links(result.scenario.machine, gpus)
    allocation = result.allocation
    costs = {
        band: _slowest(result, [[band] * len(allocation)], split)[0] for band in set(allocation)
    }
    attention = {}
    for balance in ("naive", "balanced"):
        groups = assign_heads([costs[band] for band in allocation], ulysses, balance)
        attention[balance] = _slowest(
            result, [[allocation[head] for head in group] for group in groups], split
        )
    # Costs add up but for waves and launches, which can turn the order of two near equal divisions.
    attention["balanced"] = min(attention["balanced"], attention["naive"])
    sent, talk, dense_talk = _communication(result, links, ulysses, split)
    dense = (
        result.dense_stage.seconds * math.ceil(len(allocation) / ulysses) / len(allocation) / split
    )
    rest = (result.step.seconds / _calls(result) - result.layer.seconds) / gpus
    gather = links.gather(result.scenario.model, gpus)
    totals = {
        name: _calls(result) * (max(layer + rest, gather) + exchange)
        for name, layer, exchange in (
            ("balanced", attention["balanced"][0], talk),
            ("naive", attention["naive"][0], talk),
            ("dense", dense, dense_talk),
        )
    }
    hidden = attention["balanced"][0] + rest
    return ScaleOut(
        gpus=gpus,
        ulysses=ulysses,
        query_split=split,
        seconds=totals["balanced"],
        naive_seconds=totals["naive"],
        dense_seconds=totals["dense"],
        communication_seconds=_calls(result) * (talk + max(0.0, gather - hidden)),
        all_to_all_bytes=sent,
        imbalance=attention["balanced"][1],
        naive_imbalance=attention["naive"][1],
        memory_bytes=_memory(result, gpus),
    )


def _calls(result: Result) -> int:
    """Attention layers run in one denoising step."""
    model = result.scenario.model
    return model.num_layers * model.guidance_passes


def _slowest(result: Result, groups: list[list[int]], split: int) -> tuple[float, float]:
    """Seconds of an attention layer on the busiest GPU, and its load over the mean."""
    machine, size = result.scenario.machine, result.scenario.machine.hardware.element_size
    if result.runs_dense:
        loads = [len(group) for group in groups]
        busiest = max(loads)
        return result.dense_stage.seconds * busiest / len(result.allocation) / split, busiest * len(
            loads
        ) / sum(loads)
    times: dict[tuple, float] = {}
    loads = []
    for group in groups:
        key = tuple(sorted(group))
        if key not in times:
            counts = layer_counts(
                result.plan,
                key,
                element_size=size,
                router=result.scenario.router,
                low_branch=result.scenario.has_low_branch,
            )
            times[key] = sum(stage.seconds for stage in machine.layer(counts, parts=split).values())
        loads.append(times[key])
    return max(loads), max(loads) * len(loads) / sum(loads)


def _communication(
    result: Result, links: _Links, ulysses: int, split: int
) -> tuple[float, float, float]:
    """Bytes that a GPU sends in the all-to-alls of a layer; seconds of communication, and those of
    dense attention."""
    model, size = result.scenario.model, result.scenario.machine.hardware.element_size
    tokens = result.scenario.tokens + model.joint_text_tokens
    plain = 4 * tokens * model.width * size / (ulysses * split) * (ulysses - 1) / ulysses
    gates = BRANCHES / (4 * model.head_dim) if result.scenario.has_low_branch else 0.0
    sent = plain * (1 + gates)
    pair = 2 * model.head_dim * size / ulysses
    banded = sum(
        _foreign_keys(result.plan, Band(band), tokens, split) for band in result.allocation
    )
    if result.scenario.has_low_branch:
        branched = sum(band != Band.LOW for band in result.allocation)
        banded += branched * _foreign_keys(result.plan, Band.LOW, tokens, split)
    gathered = [rows * pair for rows in (banded, model.heads * tokens * (split - 1) / split)]
    turns = [links.all_to_all(moved, ulysses, messages=LAYER_MESSAGES) for moved in (sent, plain)]
    # Keys and values are two messages.
    talk, dense = (
        turn + links.seconds(received, split, ulysses, messages=2)
        for turn, received in zip(turns, gathered, strict=True)
    )
    return sent, talk, dense


def _foreign_keys(plan: AttentionPlan, band: Band, tokens: int, split: int) -> float:
    """Keys of one head that a GPU gathers from the others that share its queries.

    Of low tokens all, and of fixed lists the tiles that its own queries see; which ones top-k will
    want is not known before, so it gathers all.
    """
    if band == Band.LOW:
        return plan.num_low_tokens * (split - 1) / split
    if band == Band.HIGH or (band == Band.MID and plan.mid_lists is not None):
        seen = working_set(plan, band, -(-plan.layout.num_tiles // split)) - sum(
            plan.extra_segments(band)
        )
        return max(0.0, min(seen, tokens) - tokens / split)
    return tokens * (split - 1) / split


def _memory(result: Result, gpus: int) -> float:
    model, hardware = result.scenario.model, result.scenario.machine.hardware
    weights = model.weights * hardware.element_size
    activations = result.step.peak_memory_bytes - weights
    return (
        weights / _shards(result.scenario.machine, gpus)
        + weights / model.num_layers
        + activations / gpus
    )


def _shards(machine: Machine, gpus: int) -> int:
    """GPUs over which weights are sharded: those of a node, and every node holds them all."""
    links = machine.hardware.interconnect
    return min(gpus, links.node_gpus) if links else 1


class _Links:
    """Time of messages between GPUs that fill one node after the other."""

    def __init__(self, machine: Machine, gpus: int) -> None:
        links = machine.hardware.interconnect
        if links is None and gpus > 1:
            raise ProfileError(
                f"{machine.hardware.name} has no interconnect in its profile; add one, or simulate "
                "one machine alone"
            )
        self.links, self.machine = links, machine
        self.share = machine.efficiency.link_bandwidth

    def all_to_all(self, sent: float, group: int, *, messages: int) -> float:
        """Seconds of a layer's all-to-alls that nothing hides, with sorting and joining what they
        carry; arguments as `seconds`."""
        taken = self.whole_all_to_all(sent, group, messages=messages)
        exposed = taken * (1 - self.machine.efficiency.all_to_all_overlap)
        return exposed + self._packing(sent, group)

    def _packing(self, sent: float, group: int) -> float:
        """Seconds to read and write everything twice, before it leaves and after it arrived; a
        GPU's own share too, which `sent` is without."""
        if group == 1:
            return 0.0
        traffic = 4 * sent * group / (group - 1)
        return self.machine.memory_time(traffic, self.machine.efficiency.packing_bandwidth)

    def whole_all_to_all(self, sent: float, group: int, *, messages: int) -> float:
        """As `all_to_all`, with what computation hides."""
        achieved = self.machine.efficiency
        started = messages * achieved.all_to_all_s if group > 1 else 0.0
        return started + self._seconds(sent, group, 1, messages, achieved.all_to_all_bandwidth)

    def seconds(self, sent: float, group: int, stride: int, *, messages: int) -> float:
        """Seconds of a collective in which every GPU exchanges `sent` bytes evenly with its group.

        Args:
            sent: bytes per GPU.
            group: GPUs that take part.
            stride: places between neighbours of the group; groups of the inner dimension have 1.
            messages: collectives that the bytes are divided into.
        """
        return self._seconds(sent, group, stride, messages, self.share)

    def _seconds(self, sent: float, group: int, stride: int, messages: int, share: float) -> float:
        if group == 1 or self.links is None:
            return 0.0
        near = min(group, max(1, self.links.node_gpus // stride))
        inside = sent * (near - 1) / (group - 1)
        seconds = inside / (self.links.node_bandwidth * share)
        latency = self.links.node_latency_s
        if near < group:
            seconds = max(seconds, (sent - inside) / (self.links.network_bandwidth * share))
            latency = self.links.network_latency_s
        return seconds + messages * latency

    def gather(self, model: ModelShape, gpus: int) -> float:
        """Seconds to gather one layer's weights from the GPUs of a node."""
        shards = _shards(self.machine, gpus)
        layer = model.weights * self.machine.hardware.element_size / model.num_layers
        return self.seconds(layer * (shards - 1) / shards, shards, 1, messages=1)
