"""Runs of the quality study at a tiny size on the CPU: every variant trains, seeds pair, runs
resume."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from benchmarks.quality import data
from benchmarks.quality import study as quality_study
from benchmarks.quality import trainer as quality_trainer
from benchmarks.quality.building import build, used_parameters
from benchmarks.quality.report import PAGE
from benchmarks.quality.runs import OPTIMIZER, How, Run
from benchmarks.quality.sizes import SIZES, Size
from benchmarks.quality.study import execute
from benchmarks.quality.trainer import Trainer
from benchmarks.quality.validation import validate
from benchmarks.quality.variants import VARIANTS

TINY = Size(video=(4, 16, 16), layers=2, head_dim=16, batch=2, validation_clips=2)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny size by the name of the usual one, and the clips of few steps drawn at once."""
    monkeypatch.setattr(quality_trainer, "CHUNK_CLIPS", 8)
    monkeypatch.setattr(quality_trainer, "CHECK_STEPS", 2)
    monkeypatch.setitem(SIZES, "16k", TINY)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_gives_gradients_to_all_that_it_uses(name: str) -> None:
    torch.manual_seed(0)
    variant = VARIANTS[name]
    if variant.linear == "others":  # so that some of the four tiles are left
        variant = replace(variant, config=replace(variant.config, mid_tiles=2))
    model: Any = build(variant, TINY, 0)
    for parameter in model.parameters():  # what starts at zero would hide the rest
        parameter.data += 0.05 * torch.randn_like(parameter)
    if VARIANTS[name].learned:
        model.set_router_training("sampled")
    clip = torch.randn(2, 3, *TINY.video)
    model(clip, torch.tensor([100.0, 900.0]), return_dict=False)[0].square().mean().backward()
    given = {n: p.grad for n, p in model.named_parameters()}
    assert all(grad is None or bool(grad.isfinite().all()) for grad in given.values())
    unused = {
        n.rsplit(".", 1)[-1] for n, grad in given.items() if grad is None or not bool(grad.any())
    }
    # Without summaries nothing pools, and all of the bands are full.
    assert unused <= (
        {"summary_queries", "summary_offsets"}
        if not VARIANTS[name].config.summary_tokens
        else set()
    )


def test_parameters_are_equal_but_for_routers_gates_and_a_projection() -> None:
    counts = {}
    # A schedule is a table, which is looked at, and has no parameters.
    for name in (name for name, variant in VARIANTS.items() if len(variant.splits) == 1):
        with torch.device("meta"):
            model = build(VARIANTS[name], Size(), 0)
        counts[name] = sum(parameter.numel() for parameter in model.parameters())
    assert max(counts.values()) < 1.01 * min(counts.values())
    assert counts["window_and_linear"] == counts["window_and_low"]
    more = counts["best_tiles_and_linear"] - counts["window"]
    assert more == Size().layers * (64 * 64 + 64)
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    assert f"projection of 64 × 64, {more / counts['window']:.1%} of the model" in text


def test_used_parameters_are_those_with_a_gradient() -> None:
    model = torch.nn.ModuleList(
        [torch.nn.Linear(2, 3), torch.nn.Linear(4, 5), torch.nn.Linear(6, 7)]
    )
    (model[0](torch.ones(1, 2)).sum() + 0 * model[1](torch.ones(1, 4)).sum()).backward()
    assert used_parameters(model) == 2 * 3 + 3


def test_a_run_says_what_it_did_and_repeats() -> None:
    run = Run("paper", 3, 2, TINY)
    first, again = execute(run, How(CPU)), execute(run, How(CPU))
    assert first["losses"] == again["losses"]
    assert first["training_curve"] == again["training_curve"]
    assert list(first["losses"]) == ["0.1", "0.3", "0.5", "0.7", "0.9"]
    shares = torch.tensor(first["allocation"])
    assert shares.shape == (5, 2, 6, 4)
    torch.testing.assert_close(shares.sum(-1), torch.ones(5, 2, 6))
    assert set(first["tables"]) == {"by_level", "averaged"}
    assert json.loads(json.dumps(first)) == first


def test_gates_by_a_routing_network_are_told_and_held_for_tables() -> None:
    torch.manual_seed(0)
    model = build(VARIANTS["soft_routing"], TINY, 3)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    told = validate(model.eval(), VARIANTS["soft_routing"], TINY, CPU)
    gates = torch.tensor(told["gates"])
    assert gates.shape == (5, 2, 2, 6)
    assert (gates[0] - gates[-1]).abs().max() > 1e-2
    # Bands and mean gates of each level are nearly what the networks say; one mean for all levels
    # is another model.
    losses = {
        name: torch.tensor(list(table["losses"].values())) for name, table in told["tables"].items()
    }
    live = torch.tensor(list(told["losses"].values()))
    assert (losses["by_level"] - live).abs().max() < 0.5 * (losses["averaged"] - live).abs().max()
    assert validate(model, VARIANTS["soft_routing"], TINY, CPU) == told  # nothing stays held


def test_without_a_routing_network_there_are_no_tables() -> None:
    told = validate(
        build(VARIANTS["window_and_low"], TINY, 3).eval(), VARIANTS["window_and_low"], TINY, CPU
    )
    assert told.keys() == {"losses"}


def test_training_lowers_the_loss_and_the_schedule_ends_at_zero(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quality_trainer, "OPTIMIZER", replace(OPTIMIZER, warmup_steps=4))
    steps, size = 24, replace(TINY, layers=1)
    trainer = Trainer(Run("window", 0, steps, size), CPU)
    trainer.clip.copy_(data.draw_scenes(2, 0, CPU, frames=4, side=16).video)
    trainer.noise.normal_(generator=torch.Generator().manual_seed(0))
    for _ in range(steps):
        trainer.advance()
    assert float(trainer.losses[-6:].mean()) < 0.95 * float(trainer.losses[:6].mean())
    assert float(trainer.rates.max()) <= OPTIMIZER.peak_rate
    assert float(trainer.rates[-1]) < 0.01 * OPTIMIZER.peak_rate
    assert int(trainer.done) == steps


def test_variants_see_the_same_clips_noise_and_timesteps(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[torch.Tensor]] = {}
    advance = Trainer.advance

    def watched(self: Trainer) -> None:
        seen.setdefault(self.run.name, []).extend(
            x.clone() for x in (self.clip, self.noise, self.timesteps)
        )
        advance(self)

    monkeypatch.setattr(Trainer, "advance", watched)
    monkeypatch.setattr(quality_study, "validate", lambda *given: {"losses": {}})
    for name in ("dense", "paper"):
        execute(Run(name, 0, 2, TINY), How(CPU))
    assert all(torch.equal(a, b) for a, b in zip(seen["dense"], seen["paper"], strict=True))
    assert not torch.equal(seen["dense"][0], seen["dense"][3])


def test_a_loss_that_is_not_finite_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "draw_scenes", lambda *given, **named: _nan_scenes())
    with pytest.raises(
        RuntimeError, match="loss of window, seed 0, is not finite from step 1 of 2 on"
    ):
        execute(Run("window", 0, 2, TINY), How(CPU))


def _nan_scenes() -> data.Scenes:
    nothing = torch.zeros(0)
    return data.Scenes(torch.full((8, 3, *TINY.video), torch.nan), nothing, nothing, nothing)
