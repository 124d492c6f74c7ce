"""Runs of the quality study at a tiny size on the CPU: every variant trains, seeds pair, runs
resume."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.quality import data
from benchmarks.quality import study as quality_study
from benchmarks.quality.__main__ import main, predicted_seconds, study
from benchmarks.quality.study import OPTIMIZER, Run, Trainer, execute
from benchmarks.quality.validation import validate
from benchmarks.quality.variants import SIZES, VARIANTS, Size, build, used_parameters

from freqformer.models.transformer import FreqFormerTransformer3DModel

TINY = Size(video=(4, 16, 16), layers=2, head_dim=16, batch=2, validation_clips=2)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def few_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw the clips of few steps at once."""
    monkeypatch.setattr(quality_study, "CHUNK_CLIPS", 8)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_gives_gradients_to_all_that_it_uses(name: str) -> None:
    torch.manual_seed(0)
    model: Any = build(VARIANTS[name], TINY, 0)
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


def test_parameters_are_equal_but_for_routers_and_gates() -> None:
    counts = {}
    for name in ("dense", "window_summaries", "vsa", "router", "freq_gains"):
        model = build(VARIANTS[name], Size(), 0)
        counts[name] = sum(parameter.numel() for parameter in model.parameters())
    assert max(counts.values()) < 1.01 * min(counts.values())


def test_used_parameters_are_those_with_a_gradient() -> None:
    model = torch.nn.ModuleList(
        [torch.nn.Linear(2, 3), torch.nn.Linear(4, 5), torch.nn.Linear(6, 7)]
    )
    (model[0](torch.ones(1, 2)).sum() + 0 * model[1](torch.ones(1, 4)).sum()).backward()
    assert used_parameters(model) == 2 * 3 + 3


def test_a_run_says_what_it_did_and_repeats() -> None:
    run = Run("router", VARIANTS["router"], 3, 2, TINY)
    first, again = execute(run, CPU, graph=False), execute(run, CPU, graph=False)
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
    model = build(VARIANTS["beside_both"], TINY, 3)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    told = validate(model.eval(), VARIANTS["beside_both"], TINY, CPU)
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
    assert validate(model, VARIANTS["beside_both"], TINY, CPU) == told  # nothing stays held


def test_without_a_routing_network_there_are_no_tables() -> None:
    told = validate(
        build(VARIANTS["gated_plain"], TINY, 3).eval(), VARIANTS["gated_plain"], TINY, CPU
    )
    assert told.keys() == {"losses"}


def test_training_lowers_the_loss_and_the_schedule_ends_at_zero(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quality_study, "OPTIMIZER", replace(OPTIMIZER, warmup_steps=4))
    steps, size = 24, replace(TINY, layers=1)
    trainer = Trainer(Run("window", VARIANTS["window"], 0, steps, size), CPU)
    trainer.clip.copy_(data.draw_scenes(2, 0, CPU, frames=4, side=16).video)
    trainer.noise.normal_(generator=torch.Generator().manual_seed(0))
    for _ in range(steps):
        trainer.advance()
    assert float(trainer.losses[-6:].mean()) < 0.95 * float(trainer.losses[:6].mean())
    assert float(trainer.rates.max()) <= OPTIMIZER.learning_rate
    assert float(trainer.rates[-1]) < 0.01 * OPTIMIZER.learning_rate
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
    monkeypatch.setattr(quality_study, "validate", lambda *given: {})
    for name in ("dense", "router"):
        execute(Run(name, VARIANTS[name], 0, 2, TINY), CPU, graph=False)
    assert all(torch.equal(a, b) for a, b in zip(seen["dense"], seen["router"], strict=True))
    assert not torch.equal(seen["dense"][0], seen["dense"][3])


def test_a_loss_that_is_not_finite_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "draw_scenes", lambda *given, **named: _nan_scenes())
    with pytest.raises(
        RuntimeError, match="loss of window, seed 0, is not finite from step 1 of 2 on"
    ):
        execute(Run("window", VARIANTS["window"], 0, 2, TINY), CPU, graph=False)


def _nan_scenes() -> data.Scenes:
    nothing = torch.zeros(0)
    return data.Scenes(torch.full((8, 3, *TINY.video), torch.nan), nothing, nothing, nothing)


def test_the_command_line_writes_results_and_skips_what_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "--variants",
        "window",
        "--steps",
        "2",
        "--device",
        "cpu",
        "--commit",
        "abc",
        "--output",
        str(tmp_path),
    ]
    assert main(command, TINY) == 0
    (path,) = tmp_path.glob("*.json")
    assert path.name == "window-2-0.json"
    result = json.loads(path.read_text())
    assert result["variant"] == "window"
    assert result["machine"]["commit"] == "abc"
    assert result["machine"]["command"].endswith(
        "python -m benchmarks.quality --variants window --seeds 0 --steps 2"
    )
    before = path.stat().st_mtime_ns
    assert main(command, TINY) == 0
    assert path.stat().st_mtime_ns == before
    assert "window-2-0.json is there already" in capsys.readouterr().out


def test_a_compiled_run_trains_compiled_blocks_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []

    def compile_blocks(
        _: Any, **options: Any
    ) -> None:  # a compiler can't trace the type checks of tests
        given.append(options)

    monkeypatch.setattr(FreqFormerTransformer3DModel, "compile_repeated_blocks", compile_blocks)
    command = [
        "--variants",
        "window",
        "--steps",
        "2",
        "--device",
        "cpu",
        "--output",
        str(tmp_path),
        "--compile",
    ]
    assert main(command, TINY) == 0
    assert given == [{"fullgraph": True, "dynamic": False}]
    result = json.loads((tmp_path / "window-2-0.json").read_text())
    assert result["compiled"]
    assert result["machine"]["command"].endswith("--steps 2 --compile")


def test_runs_on_longer_clips_have_files_of_their_own(tmp_path: Path) -> None:
    run = Run("window", VARIANTS["window"], 0, 10, SIZES["64k"])
    assert study([run], _result, [tmp_path], {}, None) == 0
    (path,) = tmp_path.glob("*.json")
    assert path.name == "window-64k-10-0.json"
    assert json.loads(path.read_text())["machine"]["command"].endswith("--steps 10 --tokens 64k")
    assert run.size.grid.num_tokens == 65_536


def test_a_failed_run_does_not_stop_the_others_and_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fake(run: Run) -> dict[str, Any]:
        if run.name == "window":
            raise RuntimeError("out of memory")
        return _result(run)

    runs = [Run(name, VARIANTS[name], 0, 10, TINY) for name in ("window", "router")]
    assert study(runs, fake, [tmp_path], {}, None) == 1
    assert [path.name for path in tmp_path.glob("*.json")] == ["router-10-0.json"]
    assert "out of memory" in capsys.readouterr().err


def test_a_result_in_another_folder_counts_as_done(tmp_path: Path) -> None:
    runs = [Run(name, VARIANTS[name], 0, 10, TINY) for name in ("window", "router")]
    earlier, output = tmp_path / "earlier", tmp_path / "output"
    assert study(runs[:1], _result, [earlier], {}, None) == 0
    assert study(runs, _result, [output, earlier], {}, None) == 0
    assert [path.name for path in output.glob("*.json")] == ["router-10-0.json"]


def test_processes_with_one_output_folder_share_the_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [Run(name, VARIANTS[name], 0, 10, TINY) for name in ("window", "router")]
    done: list[str] = []

    def recorded(run: Run) -> dict[str, Any]:
        done.append(run.name)
        return _result(run)

    def first(run: Run) -> dict[str, Any]:
        if run.name == "window":  # while it is under way, another process is started
            assert study(runs, recorded, [tmp_path], {}, None) == 0
        return recorded(run)

    assert study(runs, first, [tmp_path], {}, None) == 0
    assert done == ["router", "window"]
    said = capsys.readouterr().out
    assert "window-10-0.json is being made by another process" in said
    assert "router-10-0.json is there already" in said


def test_no_run_begins_that_would_end_too_late(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [
        Run(name, VARIANTS[name], seed, 10, TINY)
        for seed in (0, 1)
        for name in ("window", "router")
    ]
    assert study(runs, _result, [tmp_path], {}, minutes=1.0) == 0
    # The first takes 100 s as far as it says; after it, none is predicted to fit into a minute.
    assert [path.name for path in tmp_path.glob("*.json")] == ["window-10-0.json"]
    assert "router, seed 0, would take 100 s" in capsys.readouterr().out


def test_the_predicted_time_is_the_own_variants_and_grows_with_steps() -> None:
    results = [_result(Run("window", VARIANTS["window"], 0, 10, TINY)) | {"seconds": 20.0}]
    results += [_result(Run("dense", VARIANTS["dense"], 0, 10, TINY))]
    assert predicted_seconds(
        Run("window", VARIANTS["window"], 1, 1010, TINY), results
    ) == pytest.approx(20 + 5)
    assert predicted_seconds(Run("vsa", VARIANTS["vsa"], 0, 10, TINY), results) == 100
    assert predicted_seconds(Run("vsa", VARIANTS["vsa"], 0, 10, TINY), []) == 0
    # A run of as many steps knows best: it may have been compiled.
    results += [_result(Run("window", VARIANTS["window"], 0, 1010, TINY)) | {"seconds": 17.0}]
    assert predicted_seconds(Run("window", VARIANTS["window"], 1, 1010, TINY), results) == 17


def _result(run: Run) -> dict[str, Any]:
    losses = {"0.1": 0.5, "0.9": 0.3}
    own = {
        "variant": run.name,
        "seed": run.seed,
        "steps": run.steps,
        "tokens": run.size.grid.num_tokens,
    }
    return own | {"losses": losses, "step_ms": 5.0, "seconds": 100.0}
