"""The training loop: what a step does, what a run writes, and when it stops."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import freqformer
from freqformer import FreqFormerPipeline, FreqFormerTransformer3DModel
from freqformer._files import locked
from freqformer.media import VideoError
from freqformer.training.checkpoint import (
    CheckpointError,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from freqformer.training.config import (
    DataConfig,
    OptimizerConfig,
    RunConfig,
    TrainConfig,
)
from freqformer.training.loop import train
from freqformer.training.objective import learning_rate_factor, resolution_shift
from freqformer.training.report import TrainingError

ROOT = Path(__file__).parents[2]
VIDEO = Path(freqformer.__file__).parent / "assets" / "pagoda.mp4"
MODEL = {
    "num_layers": 1,
    "num_attention_heads": 3,
    "attention_head_dim": 8,
    "patch_size": [1, 4, 4],
    "frequency": {"preset": "paper"},
}
FIXED = {"preset": "paper", "routing": "fixed", "prior": "none"}


@pytest.fixture
def config(tmp_path) -> TrainConfig:
    """Three steps of a tiny model with learned routers on synthetic clips."""
    return TrainConfig(
        str(tmp_path / "out"),
        model=MODEL,
        data=DataConfig(num_frames=4, height=16, width=24),
        optimizer=OptimizerConfig(warmup_steps=1),
        run=RunConfig(max_steps=3, batch_size=2, device="cpu", progress=False),
    )


def changed(config: TrainConfig, section: str, **values) -> TrainConfig:
    return replace(config, **{section: replace(getattr(config, section), **values)})


def run(
    config: TrainConfig, model: FreqFormerTransformer3DModel | None = None
) -> tuple[list, Path]:
    reports = []
    return reports, train(config, model=model, on_step=reports.append)


def checkpoint(config: TrainConfig, step: int) -> tuple[dict, dict]:
    return load_checkpoint(Path(config.output) / "checkpoints" / f"step-{step:08d}")


def test_a_run_reports_saves_and_logs(config):
    config = changed(changed(config, "run", max_steps=5), "checkpoint", every_steps=2, keep=2)
    reports, pipeline = run(config)
    assert [report.step for report in reports] == [1, 2, 3, 4, 5]
    assert [report.progress for report in reports] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    rates = [1e-3 * learning_rate_factor(step, step / 5, 1) for step in range(5)]
    assert [report.learning_rate for report in reports] == pytest.approx(rates, rel=1e-12)
    assert all(math.isfinite(x) for r in reports for x in (r.loss, r.routing_loss, r.gradient_norm))
    assert all(report.gradient_norm > 0 for report in reports)
    output = Path(config.output)
    shown = sorted(path.name for path in output.iterdir() if not path.name.startswith("."))
    assert shown == ["checkpoints", "logs", "pipeline", "sessions.json", "train.json"]
    assert sorted(path.name for path in (output / "checkpoints").iterdir()) == [
        "step-00000004",
        "step-00000005",
    ]
    assert pipeline == output / "pipeline"
    assert not [
        path for path in output.rglob("*") if path.suffix in (".bin", ".pt", ".pkl", ".pth")
    ]
    log = EventAccumulator(str(output / "logs"))
    log.Reload()
    for name in ("loss", "learning_rate", "gradient_norm", "routing_loss"):
        logged = [(event.step, event.value) for event in log.Scalars(name)]
        assert logged == [(r.step, pytest.approx(getattr(r, name), rel=1e-6)) for r in reports]


def test_the_pipeline_has_the_average_and_the_shift(config):
    config = changed(config, "data", num_frames=8, height=64, width=96)
    config = changed(config, "run", max_steps=2, batch_size=1)
    _, folder = run(replace(config, model={**MODEL, "patch_size": [1, 2, 2]}))
    pipeline = FreqFormerPipeline.from_pretrained(folder)
    groups, _ = checkpoint(config, 2)
    saved = dict(pipeline.transformer.named_parameters())
    assert saved.keys() == groups["ema"].keys()
    assert all(torch.equal(saved[name], average) for name, average in groups["ema"].items())
    assert any(not torch.equal(saved[name], groups["model"][name]) for name in saved)
    assert pipeline.scheduler.config["shift"] == resolution_shift(8 * 32 * 48) > 1
    frames = pipeline(
        8, 64, 96, num_inference_steps=2, generator=torch.Generator().manual_seed(0)
    ).frames
    assert bool(torch.as_tensor(frames).isfinite().all())


def test_the_average_follows_its_rule(config):
    """The first update takes the weights; the n-th keeps (1 + n) / (10 + n) of the average, at most
    the decay."""
    config = changed(changed(config, "checkpoint", every_steps=1, keep=4), "run", max_steps=4)
    config = changed(config, "optimizer", ema_decay=0.25)
    run(config)
    weights = [checkpoint(config, step)[0]["model"] for step in range(1, 5)]
    for name, final in checkpoint(config, 4)[0]["ema"].items():
        average = weights[0][name].double()
        for weight, decay in zip(weights[1:], (2 / 11, 3 / 12, 0.25), strict=True):
            average = decay * average + (1 - decay) * weight[name].double()
        torch.testing.assert_close(final.double(), average, rtol=1e-5, atol=1e-7)


def test_accumulation_is_the_big_batch(config):
    """Four clips a step, split as 4, 2 + 2 and 1 + 1 + 1 + 1."""
    config = changed(replace(config, model={**MODEL, "frequency": FIXED}), "run", batch_size=4)
    results = []
    for batch in (4, 2, 1):
        split = replace(config, output=f"{config.output}-{batch}")
        split = changed(split, "run", batch_size=batch, accumulation=4 // batch)
        reports, _ = run(split)
        results.append(
            (
                [r.loss for r in reports],
                [r.gradient_norm for r in reports],
                checkpoint(split, 3)[0]["model"],
            )
        )
    for losses, norms, weights in results[1:]:
        assert losses == pytest.approx(results[0][0], rel=1e-5)
        assert norms == pytest.approx(results[0][1], rel=1e-4)
        for name, weight in weights.items():
            # Adam divides by the gradient's own size, so rounding in tiny gradients shows up to the
            # learning rate's scale.
            assert float((weight - results[0][2][name]).abs().double().mean()) < 2e-5, name


def test_gradients_are_clipped(config):
    """With plain momentum-free steps being Adam's, clipping shows in the moments."""
    config = changed(config, "run", max_steps=1)
    moments = {}
    for limit in (1e9, 1e-3):
        limited = replace(
            changed(config, "optimizer", max_grad_norm=limit), output=f"{config.output}-{limit}"
        )
        reports, _ = run(limited)
        # After one step the first moment is (1 - beta1) times the clipped gradient.
        first = [
            x
            for name, x in checkpoint(limited, 1)[0]["optimizer"].items()
            if name.endswith("/exp_avg")
        ]
        moments[limit] = float(torch.cat([x.flatten() for x in first]).norm()) / 0.1
        assert reports[0].gradient_norm > 1e-3
        assert moments[limit] == pytest.approx(min(limit, reports[0].gradient_norm), rel=1e-3)


def test_weight_decay_spares_vectors(config):
    config = changed(
        changed(config, "run", max_steps=1),
        "optimizer",
        weight_decay=0.5,
        learning_rate=1.0,
        warmup_steps=0,
    )
    model = FreqFormerTransformer3DModel(**MODEL)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    run(config, model)
    moved = {name: p for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    spared = changed(replace(config, output=config.output + "-0"), "optimizer", weight_decay=0.0)
    model = FreqFormerTransformer3DModel(**MODEL)
    model.load_state_dict(before)
    run(spared, model)
    for name, parameter in model.named_parameters():
        if name in moved:
            decayed = parameter - 0.5 * before[name] if parameter.ndim > 1 else parameter
            torch.testing.assert_close(moved[name], decayed, rtol=1e-4, atol=1e-4)


def test_training_lowers_the_loss(config):
    config = replace(config, model={**MODEL, "num_attention_heads": 6, "attention_head_dim": 16})
    config = changed(config, "run", max_steps=40, batch_size=4)
    reports, _ = run(changed(config, "optimizer", learning_rate=1e-2, warmup_steps=5))
    losses = torch.tensor([report.loss for report in reports])
    # The first prediction is 0, so the first loss is the power of noise - clip; the noise alone has
    # 1.
    assert float(losses[0]) > 1
    # It falls to about 0.3 of that.
    assert float(losses[-10:].mean()) < 0.5 * float(losses[:3].mean())


def router_changes(config: TrainConfig, **values) -> tuple[list, bool]:
    """The reports of a run with these routing settings, and whether its routers changed."""
    model = FreqFormerTransformer3DModel(**MODEL)
    router = {
        name: p.detach().clone() for name, p in model.named_parameters() if ".router." in name
    }
    output = f"{config.output}-{'-'.join(map(str, values.values()))}"
    reports, _ = run(replace(changed(config, "routing", **values), output=output), model)
    assert {layer.router_training for layer in model.attentions} == {"off"}
    after = dict(model.named_parameters())
    return reports, any(not torch.equal(after[name], before) for name, before in router.items())


def test_routers_learn_only_when_told(config):
    # Gates and output start at 0, so the first gradient reaches a router in the third step.
    config = changed(config, "run", max_steps=4)
    for mode in ("sampled", "all"):
        reports, change = router_changes(config, mode=mode)
        assert change
        assert all(report.routing_loss != 0 for report in reports)
        # The loss of the clip alone teaches them, too.
        reports, change = router_changes(config, mode=mode, budget_weight=0.0, entropy_weight=0.0)
        assert change
        assert all(report.routing_loss == 0 for report in reports)
    reports, change = router_changes(config, mode="off")
    assert not change
    assert all(report.routing_loss == 0 for report in reports)


def test_a_tight_budget_costs(config):
    """The excess over the budget is what differs between the routing losses of the first step."""
    first = []
    for budget in (1.0, 1e-3):
        entropy_free = changed(config, "routing", budget=budget, entropy_weight=0.0)
        reports, _ = run(
            changed(replace(entropy_free, output=f"{config.output}-{budget}"), "run", max_steps=1)
        )
        first.append(reports[0].routing_loss)
    assert first[0] == 0
    assert first[1] > 1


@pytest.mark.parametrize("preset", ["dense", "paper"])
def test_bfloat16_keeps_float32_weights(config, preset):
    model = {**MODEL, "frequency": {"preset": preset}}
    config = replace(changed(config, "run", precision="bf16"), model=model)
    reports, folder = run(config)
    assert all(math.isfinite(report.loss) for report in reports)
    groups, _ = checkpoint(config, 3)
    assert all(x.dtype == torch.float32 for x in groups["model"].values() if x.is_floating_point())
    assert FreqFormerPipeline.from_pretrained(folder).transformer.dtype == torch.float32
    # The same run in float32 in the same process is another one, and a near one.
    exact, _ = run(
        changed(replace(config, output=config.output + "-fp32"), "run", precision="fp32")
    )
    assert [r.loss for r in exact] != [r.loss for r in reports]
    assert exact[0].loss == pytest.approx(reports[0].loss, rel=0.05)
    assert not AcceleratorState._shared_state


def test_a_given_model_is_trained_in_place_and_left_as_it_was(config):
    model = FreqFormerTransformer3DModel(**MODEL)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    forward = model.forward
    run(changed(config, "run", precision="bf16"), model)
    assert model.forward == forward
    groups, _ = checkpoint(config, 3)
    assert all(torch.equal(p, groups["model"][name]) for name, p in model.named_parameters())
    assert any(not torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_real_video_trains(config):
    config = changed(config, "data", path=str(VIDEO))
    reports, _ = run(config)
    again, _ = run(replace(config, output=config.output + "-again"))
    assert [r.loss for r in reports] == [r.loss for r in again]
    other, _ = run(changed(replace(config, output=config.output + "-other"), "run", seed=1))
    assert [r.loss for r in other] != [r.loss for r in again]


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(config):
    config = changed(changed(config, "run", max_steps=9), "checkpoint", every_steps=2)
    model = FreqFormerTransformer3DModel(**MODEL)

    def poison(report):
        if report.step == 5:
            with torch.no_grad():
                next(model.parameters()).fill_(math.nan)

    with pytest.raises(
        TrainingError, match=r"loss is nan .* at step 6; .*learning rate.*keeps step 4"
    ):
        train(config, model=model, on_step=poison)
    groups, state = checkpoint(config, 4)
    assert state["step"] == 4
    assert all(bool(x.isfinite().all()) for x in groups["model"].values())
    reports, _ = run(config, FreqFormerTransformer3DModel(**MODEL))
    assert [report.step for report in reports] == [5, 6, 7, 8, 9]


# TensorBoard's own thread reports that it could not write, too.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    ("free", "every", "error"),
    [(0, 10, TrainingError), (64, 2, CheckpointError), (300, 2, CheckpointError)],
)
def test_a_full_disk_stops_the_run_which_goes_on_once_there_is_space(
    config, small_disk, free, every, error
):
    """With nothing free the log can't be written, with some KiB free the next checkpoint can't."""
    config = changed(
        changed(config, "run", max_steps=2 * every), "checkpoint", every_steps=every, keep=1
    )
    straight, _ = run(config)
    config = replace(config, output=str(small_disk / "out"))

    def fill(report):
        if report.step == every + 1:
            space = os.statvfs(small_disk)
            (small_disk / "filler").write_bytes(bytes(space.f_bavail * space.f_bsize - free * 1024))

    with pytest.raises(error, match=r"(?s)can't be written: .*No space left.*free space"):
        train(config, on_step=fill)
    newest = newest_checkpoint(small_disk / "out" / "checkpoints")
    assert newest == small_disk / "out" / "checkpoints" / f"step-{every:08d}"
    load_checkpoint(newest)
    (small_disk / "filler").unlink()
    resumed = run(config)[0]
    assert [(r.step, r.loss, r.gradient_norm) for r in resumed] == [
        (r.step, r.loss, r.gradient_norm) for r in straight[every:]
    ]


def test_a_time_limit_ends_the_run_with_its_schedule(config):
    config = changed(
        changed(config, "run", max_steps=10**6, max_seconds=1.0), "checkpoint", every_steps=10**6
    )
    reports, folder = run(config)
    assert folder.is_dir()
    assert 1 < len(reports) < 10**6
    assert all(report.progress < 1 for report in reports[:-1])
    assert reports[-1].progress == 1
    assert reports[-1].seconds >= 1
    after_warmup = [report.learning_rate for report in reports[2:]]
    assert after_warmup == sorted(after_warmup, reverse=True)
    # The clock of the earlier part counts, so nothing is left to do.
    assert run(config)[0] == []


def test_a_finished_run_writes_its_pipeline_again(config):
    _, folder = run(config)
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    before = weights.read_bytes()
    weights.unlink()
    reports, _ = run(config)
    assert reports == []
    assert weights.read_bytes() == before


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("optimizer", {"learning_rate": 0.5}, r"optimizer\.learning_rate was 0\.001 and is 0\.5"),
        ("run", {"seed": 4}, r"run\.seed was 0 and is 4"),
        ("data", {"fps": 9.0}, r"data\.fps was 8\.0 and is 9\.0"),
        ("run", {"batch_size": 3}, r"clips_per_step was 2 and is 3"),
        ("objective", {"shift": 2.0}, r"objective\.shift was None and is 2\.0"),
        ("routing", {"mode": "all"}, r"routing\.mode was 'sampled' and is 'all'"),
    ],
)
def test_another_run_in_the_folder_is_refused(config, section, values, message):
    run(changed(config, "run", max_steps=1))
    with pytest.raises(CheckpointError, match=message):
        run(changed(config, section, **values))
    with pytest.raises(CheckpointError, match=r"model\.num_attention_heads was 3 and is 4"):
        run(replace(config, model={**MODEL, "num_attention_heads": 4}))


def test_what_may_change_when_a_run_goes_on(config):
    run(changed(config, "run", max_steps=1))
    moved = changed(
        changed(config, "run", batch_size=1, accumulation=2, max_steps=3), "data", workers=1
    )
    assert [
        report.step for report in run(changed(moved, "checkpoint", keep=1, every_steps=1))[0]
    ] == [2, 3]
    with pytest.raises(CheckpointError, match="resume is False"):
        run(changed(config, "checkpoint", resume=False))


def test_other_videos_are_mentioned_when_a_run_goes_on(config, tmp_path, caplog):
    clips = tmp_path / "clips"
    clips.mkdir()
    (clips / "a.mp4").write_bytes(VIDEO.read_bytes())
    config = changed(config, "data", path=str(clips))
    run(changed(config, "run", max_steps=1))
    (clips / "b.mp4").write_bytes(VIDEO.read_bytes())
    assert [report.step for report in run(config)[0]] == [2, 3]
    assert "the clips are not those" in caplog.text


def test_a_checkpoint_that_training_did_not_write(config):
    save_checkpoint(Path(config.output) / "checkpoints", 1, {}, {"step": 1})
    with pytest.raises(CheckpointError, match=r"lacks .*clips_per_step.* in its state"):
        run(config)


@pytest.mark.parametrize(
    "change",
    [{"config": []}, {"config": {"run": 3}}, {"seconds": "1"}, {"step": -1}, {"parts": [{}]}],
)
def test_a_checkpoint_with_a_damaged_state(config, change):
    """F122."""
    state = {
        "config": {},
        "clips_per_step": 4,
        "data": "",
        "ema_steps": 1,
        "seconds": 1.0,
        "step": 1,
        "parts": [],
    }
    save_checkpoint(Path(config.output) / "checkpoints", 1, {}, state | change)
    with pytest.raises(CheckpointError):
        run(config)


def test_a_second_run_is_told_who_holds_the_folder(config):
    """F101."""
    config = changed(config, "run", max_steps=1)
    with (
        locked(Path(config.output)),
        pytest.raises(CheckpointError, match=rf"in use by process {os.getpid()} on .*; wait"),
    ):
        run(config)
    run(config)


@pytest.mark.parametrize(
    ("name", "value"),
    [("WORLD_SIZE", "2"), ("SLURM_STEP_NUM_TASKS", "4"), ("OMPI_COMM_WORLD_SIZE", "2")],
)
def test_processes_that_do_not_know_of_one_another(config, monkeypatch, name, value):
    """F101: each would train alone and write to the same folder."""
    monkeypatch.setenv(name, value)
    with pytest.raises(
        CheckpointError,
        match=rf"{name} is {value}, but this process trains alone.*accelerate launch",
    ):
        run(config)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"model": {"layers": 3}},
            ValueError,
            r"model has unknown arguments \['layers'\]; allowed are .*num_layers",
        ),
        (
            {"data": DataConfig(num_frames=4, height=18, width=24)},
            ValueError,
            "multiples of patch_size",
        ),
        ({"data": DataConfig(path="/nowhere")}, VideoError, "/nowhere does not exist"),
        ({"output": "/dev/null/run"}, CheckpointError, "/dev/null/run can't be written"),
    ],
)
def test_bad_input_is_a_clear_error(config, change, error, message):
    with pytest.raises(error, match=message):
        run(replace(config, **change))
    assert not AcceleratorState._shared_state


def test_the_progress_bar_goes_to_standard_error(config, capsys):
    run(changed(config, "run", progress=True))
    captured = capsys.readouterr()
    assert "training" in captured.err
    assert "step 3" in captured.err
    assert captured.out == ""


def steps_of(folder: Path, processes: int, batch: int) -> list[list[float]]:
    """(step, loss, gradient norm) as the main one of some processes prints them."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [
        sys.executable,
        *launcher,
        "tests/support/several_processes.py",
        str(folder),
        str(batch),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]


@pytest.mark.slow
def test_two_processes_do_what_one_does(tmp_path):
    one, two = steps_of(tmp_path / "one", 1, 2), steps_of(tmp_path / "two", 2, 1)
    assert [step for step, *_ in two] == [1, 2, 3, 4]
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    path = tmp_path / "two" / "checkpoints" / "step-00000002"
    assert load_checkpoint(path)[1]["clips_per_step"] == 4
    # Two processes go on from where they were cut off.
    shutil.rmtree(tmp_path / "two" / "checkpoints" / "step-00000004")
    assert steps_of(tmp_path / "two", 2, 1) == two[2:]
