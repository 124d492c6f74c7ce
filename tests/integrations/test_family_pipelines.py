"""Whole small pipelines of every family: one call enables them, and takes them back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.support.family_pipelines import PIPELINES, TinyPipeline
from torch import Tensor

from freqformer.config import Band, FreqFormerConfig
from freqformer.integrations.diffusers import enable_frequency_attention
from freqformer.integrations.diffusers.families import FAMILIES, family_of, transformers_of
from freqformer.integrations.diffusers.ulysses import class_name
from freqformer.routing import RoutingTable

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated"),
    pytest.mark.filterwarnings("ignore:__array"),  # of tensors that diffusers hands to numpy
]


@pytest.fixture(scope="module", params=PIPELINES)
def family(request: pytest.FixtureRequest) -> tuple[TinyPipeline, Any, Tensor]:
    """A small pipeline, and the latents that it makes by itself."""
    tiny = PIPELINES[request.param]
    pipe = tiny.make()
    return tiny, pipe, tiny.latents(pipe)


def every_tile(pipe: Any) -> dict[str, RoutingTable]:
    """Heads that see all of it, of every transformer: dense attention by bands."""
    tables = {}
    for part, transformer in transformers_of(pipe).items():
        layers = family_of(transformer).layers(transformer)
        bands = torch.full((1, len(layers), layers[0][1].heads), Band.MID.value)
        config = FreqFormerConfig(tile=(4, 4, 4), mid_tiles=None, summary_tokens=0)
        tables[part] = RoutingTable(bands, torch.zeros_like(bands), config)
    return tables


def test_heads_that_see_every_tile_make_its_own_video(
    family: tuple[TinyPipeline, Any, Tensor],
) -> None:
    tiny, pipe, wanted = family
    with enable_frequency_attention(pipe, every_tile(pipe)) as handle:
        made = tiny.latents(pipe)
        assert handle.layer_names
    assert not torch.equal(made, wanted)
    torch.testing.assert_close(made, wanted, rtol=2e-3, atol=2e-4 * float(wanted.abs().max()))


def test_the_preset_changes_it_and_is_taken_back_to_the_last_bit(
    family: tuple[TinyPipeline, Any, Tensor],
) -> None:
    """A third of the steps stays dense, counted by its own scheduler, whatever calls a step
    takes."""
    tiny, pipe, wanted = family
    dials: dict[str, Any] = {"density": tiny.density, "density_schedule": "constant"}
    dials |= {"min_tokens": 1, "start_percent": 0.3}
    seen: list[bool] = []
    with enable_frequency_attention(pipe, **dials) as handle:
        for transformer in handle.transformers.values():
            _, layer = family_of(transformer).layers(transformer)[0]
            note_calls(layer.processor, seen)
        made = tiny.latents(pipe)
        assert handle.density == pytest.approx(tiny.density, abs=0.07)
    assert bool(made.isfinite().all())
    assert float((made - wanted).abs().max()) > 1e-3 * float(wanted.abs().max())
    assert sum(seen) == 2 * (len(seen) - sum(seen)) > 0
    assert torch.equal(tiny.latents(pipe), wanted)


def note_calls(processor: Any, seen: list[bool]) -> None:
    """Whether each call of its layer is banded."""
    own = processor.run

    def run(*given: Any) -> Any:
        seen.append(any(share.config is not None for share in processor.shares))
        return own(*given)

    processor.run = run


def test_every_family_has_a_pipeline_here() -> None:
    made = [PIPELINES[name].make() for name in PIPELINES]
    found = {class_name(one) for pipe in made for one in transformers_of(pipe).values()}
    assert found == set(FAMILIES)
