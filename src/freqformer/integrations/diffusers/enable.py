"""Frequency attention on and off: who can have it, and what takes it back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import nn

from freqformer._renamed import renamed_arguments
from freqformer._validate import check_choice
from freqformer.config import Band
from freqformer.integrations.diffusers.building import Layers, check_processors, make_session
from freqformer.integrations.diffusers.converted.adapter import Adapter
from freqformer.integrations.diffusers.converted.windows import WindowBands
from freqformer.integrations.diffusers.families import family_of, is_pipeline, transformers_of
from freqformer.integrations.diffusers.handle import FrequencyAttentionHandle
from freqformer.integrations.diffusers.layer_bands import (
    LayerBands,
    PresetBands,
    StepLevels,
    TableBands,
)
from freqformer.integrations.diffusers.session import Session, session_of
from freqformer.integrations.diffusers.steps import REMEDY, SamplerSteps, check_scheduler
from freqformer.integrations.diffusers.ulysses import class_name
from freqformer.ops.backends import IMPLS, ImplChoice
from freqformer.routing import RoutingTable
from freqformer.training_free.dials import Dials, checked_dials, tables_by_part
from freqformer.training_free.schedule import DensitySchedule


@renamed_arguments(transformer="pipe_or_transformer")
def enable_frequency_attention(
    pipe_or_transformer: Any,
    table: RoutingTable | Mapping[str, RoutingTable] | None = None,
    *,
    adapter: str | os.PathLike[str] | Adapter | None = None,
    density: float | None = None,
    density_schedule: DensitySchedule | None = None,
    start_percent: float | None = None,
    end_percent: float = 1.0,
    dense_blocks: tuple[int, int] = (0, 0),
    min_tokens: int | None = None,
    scheduler: Any = None,
    impl: ImplChoice = "auto",
) -> FrequencyAttentionHandle:
    """Replace the self-attention of a trained video model by frequency attention.

    By the preset every head sees the tiles that score highest by tile means, and low summaries of
    all else; a table says instead what each head does. Neither adds anything learned. An adapter is
    what `freqformer convert` made of this model: windows, and a LOW branch whose gates, router and
    changed projections were learned; they take part in what is banded alone. What is dense (steps,
    blocks, short videos, layers whose heads are all DENSE) runs the model's own attention, to the
    last bit and at its speed.

    A copy or pickle of an enabled model is enabled too; `disable_frequency_attention` takes it back
    there. Saving a model or pipeline writes what it would write without.

    Args:
        pipe_or_transformer: a pipeline of diffusers, all of whose video transformers are enabled,
            or one transformer.
        table: the band of every head by timestep bucket and layer; of a pipeline with several
            transformers one for each, by their names in it. None takes the preset.
        adapter: the folder that conversion wrote, or an `Adapter`; in place of a table. Of a
            pipeline with one video transformer.
        density: of the preset, attention FLOPs of banded steps over those of dense attention, from
            0.001 to 1, the mean over these steps; None takes 0.2. What is delivered is in the
            handle.
        density_schedule: of the preset, how the density is spread over the banded steps: "falling"
            gives the noisiest ones most of it, in three groups at most, and "constant" all of them
            the same. None takes "falling" where the sampler's steps are known, and "constant" for a
            bare transformer without a scheduler.
        start_percent: share of the sampler's steps, from the first, that stay dense; None takes
            0.2, and 0 with a table or an adapter.
        end_percent: share of the steps after which they are dense again.
        dense_blocks: how many first and how many last attention layers stay dense.
        min_tokens: video tokens below which a call stays dense; None takes 12,288, and 0 with a
            table or an adapter.
        scheduler: of the sampler, where a transformer is passed; a pipeline has its own.
        impl: as in `frequency_attention`.

    Returns: the handle that takes it back. Weights and `state_dict` stay as they are.

    Raises:
        ValueError: for another kind of model, dials out of range, percentages without a scheduler,
            a table or adapter of other layers or heads or made from another model, a folder that
            holds no adapter, processors that aren't the model's own, or a model that has it
            already. A call raises it for a density below what
            its grid allows, an attention mask, fused projections, ring attention, an unknown
            token grid, timesteps that aren't 0 to 1000, processors set in between, or
            activations recomputed by other means than `enable_gradient_checkpointing`.
    """
    transformers = transformers_of(pipe_or_transformer)
    percents = (start_percent, end_percent)
    given = _given(table, adapter, transformers)
    has_adapter = adapter is not None
    dials = checked_dials(
        table,
        density,
        percents,
        dense_blocks,
        min_tokens,
        density_schedule=density_schedule,
        adapter=has_adapter,
    )
    check_choice("impl", impl, IMPLS)
    steps = _steps(pipe_or_transformer, scheduler, dials)
    sessions = {
        part: _session(transformer, given[part], dials, steps, impl)
        for part, transformer in transformers.items()
    }
    for part, session in sessions.items():
        session.start(transformers[part])
    return FrequencyAttentionHandle(transformers, sessions)


@renamed_arguments(transformer="pipe_or_transformer")
def disable_frequency_attention(pipe_or_transformer: Any) -> None:
    """Take frequency attention back without its handle, as in a copy of an enabled model.

    Does nothing where it isn't on.

    Args:
        pipe_or_transformer: as in `enable_frequency_attention`.

    Raises:
        ValueError: for another kind of model.
    """
    for transformer in transformers_of(pipe_or_transformer).values():
        session = session_of(transformer)
        if session is not None:
            session.stop()


def _given(
    table: RoutingTable | Mapping[str, RoutingTable] | None,
    adapter: str | os.PathLike[str] | Adapter | None,
    transformers: Mapping[str, nn.Module],
) -> Mapping[str, RoutingTable | Adapter | None]:
    """The table or the adapter of every transformer, read; None for the preset."""
    if adapter is None:
        return tables_by_part(table, tuple(transformers))
    if table is not None:
        raise ValueError(
            "adapter is given beside a table, and both say what every head does; one of the two is "
            "allowed: leave one out"
        )
    if len(transformers) > 1:
        raise ValueError(
            f"adapter is of one transformer, and the pipeline has {', '.join(transformers)}; pass "
            "the transformer that was converted, like pipe.transformer, with scheduler"
        )
    read = adapter if isinstance(adapter, Adapter) else Adapter.load(adapter)
    return dict.fromkeys(transformers, read)


def _steps(model: Any, scheduler: Any, dials: Dials) -> SamplerSteps:
    """Which steps are banded, by the scheduler of the pipeline or the one that was passed."""
    pipeline = model if is_pipeline(model) else None
    if pipeline is not None and scheduler is not None:
        raise ValueError(
            "scheduler is given beside a pipeline, which has its own; None is allowed: leave it "
            "out, or set pipe.scheduler"
        )
    found = getattr(pipeline, "scheduler", None) if pipeline is not None else scheduler
    if found is not None:
        check_scheduler(found)
    elif dials.by_step:
        raise ValueError(
            f"scheduler is None with start_percent {dials.start_percent} and end_percent "
            f"{dials.end_percent}; percentages are of the sampler's steps, which its scheduler "
            f"places: {REMEDY}"
        )
    elif dials.density_schedule == "falling":
        raise ValueError(
            "scheduler is None with density_schedule 'falling', which follows the sampler's steps: "
            'pass the pipeline, or scheduler=pipe.scheduler, or density_schedule="constant"'
        )
    held = pipeline if found is not None else None
    return SamplerSteps(dials.start_percent, dials.end_percent, held, found)


def _session(
    transformer: nn.Module,
    given: RoutingTable | Adapter | None,
    dials: Dials,
    steps: SamplerSteps,
    impl: ImplChoice,
) -> Session:
    """The session of one transformer, not started yet."""
    family = family_of(transformer)
    layers = family.layers(transformer)
    check_processors(layers, family)
    first, last = dials.dense_blocks
    inner = layers[first : max(first, len(layers) - last)]
    learned = None
    bands: Mapping[str, LayerBands]
    if isinstance(given, Adapter):
        learned = given.for_layers(class_name(transformer), dict(layers))
        windows = given.settings.windows
        bands = {name: WindowBands(windows, layer.heads) for name, layer in inner}
    elif given is None:
        falling = dials.density_schedule != "constant" and steps.known
        levels = StepLevels(steps, family.noise_level, family.schedule) if falling else None
        bands = _preset_bands(inner, dials.density or 1.0, levels)
    else:
        bands = _table_bands(layers, inner, given)
    return make_session(
        transformer,
        bands,
        learned=learned,
        steps=steps,
        min_tokens=dials.min_tokens,
        impl=impl,
    )


def _preset_bands(
    inner: Layers, density: float, levels: StepLevels | None
) -> dict[str, LayerBands]:
    """The preset in every layer that isn't guarded, by name."""
    return {
        name: PresetBands(density, place, len(inner), layer.heads, levels)
        for place, (name, layer) in enumerate(inner)
    }


def _table_bands(layers: Layers, inner: Layers, table: RoutingTable) -> dict[str, LayerBands]:
    """What the table says of layers that aren't guarded, by name; without those that it leaves
    dense at every timestep."""
    if table.shape[1] != len(layers):
        raise ValueError(
            f"table has {table.shape[1]} layers; {len(layers)} are allowed, as many as the "
            "transformer has blocks: make a table for this model"
        )
    table.check_layers([layer for _, layer in layers])
    guarded = {name for name, _ in layers} - {name for name, _ in inner}
    found: dict[str, LayerBands] = {}
    for place, (name, layer) in enumerate(layers):
        bands, configs = table.for_layer(place, layer.heads, table.config)
        if name not in guarded and not bool((bands == Band.DENSE).all()):
            found[name] = TableBands(bands, configs, table.tiles)
    return found
