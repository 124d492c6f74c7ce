"""Two processes with a clip each train a pipeline as one process does with both, one after the
other, whether each holds all weights or a share of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tests.support.ranks import run_ranks
from tests.support.shared_finetuning import LEVELS, STEPS, go_on, write_reports
from tests.support.tiny_finetuning import lora_config, make_pipeline_and_cache, with_run
from tests.support.tiny_minimax import make_minimax
from tests.support.tiny_training import changed

from freqformer.training.parallel_config import ParallelConfig

LORA = "lora/pytorch_lora_weights.safetensors"
FULL = "transformer/diffusion_pytorch_model.safetensors"
ON_TWO = ("lora", "full", "lora, shared", "full, shared", "half, shared", "one, then shared")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs, by one process and by two."""
    folder = make_pipeline_and_cache(tmp_path_factory.mktemp("shared"))
    write_reports(folder, ("lora", "full", "half"), 0, 1)
    go_on(folder, "lora-1", "one, then shared-2")
    run_ranks("shared_finetuning.py", 2, folder, *ON_TWO, seconds=500)
    go_on(folder, "lora, shared-2", "shared, then one-1")
    write_reports(folder, ("shared, then one",), 0, 1)
    return folder


def reports(runs: Path, name: str) -> list[list[float]]:
    """Step, loss and gradient norm of each step."""
    return json.loads((runs / f"{name}.json").read_text(encoding="utf-8"))


def held_out(runs: Path, name: str) -> list[float]:
    """Held-out losses, by level and step."""
    log = EventAccumulator(str(runs / name / "logs")).Reload()
    return [event.value for level in LEVELS for event in log.Scalars(f"held_out_loss/{level:g}")]


def check_same_weights(runs: Path, name: str, other: str, result: str) -> None:
    weights, others = (load_file(runs / run / result) for run in (name, other))
    assert weights.keys() == others.keys()
    for label, x in weights.items():
        torch.testing.assert_close(others[label], x, rtol=1e-3, atol=1e-5, msg=label)


@pytest.mark.parametrize(
    ("name", "one", "result"),
    [
        ("lora", "lora", LORA),
        ("full", "full", FULL),
        ("lora, shared", "lora", LORA),
        ("full, shared", "full", FULL),
    ],
)
def test_losses_gradients_and_weights_are_those_of_one_process(
    runs: Path, name: str, one: str, result: str
) -> None:
    expected, found = reports(runs, f"{one}-1"), reports(runs, f"{name}-2")
    assert len(expected) == STEPS
    for mine, theirs in zip(expected, found, strict=True):
        assert theirs == pytest.approx(mine, rel=1e-4)
    check_same_weights(runs, f"{one}-1", f"{name}-2", result)


def test_shared_weights_are_gathered_in_the_dtypes_that_they_have(runs: Path) -> None:
    """Another order of sums is another rounding, which bfloat16 takes further, and Adam makes whole
    steps of what is nearly zero: most weights are the same."""
    expected, found = reports(runs, "half-1"), reports(runs, "half, shared-2")
    assert len(expected) == STEPS
    for mine, theirs in zip(expected, found, strict=True):
        assert theirs == pytest.approx(mine, rel=1e-3)
    weights, others = (load_file(runs / run / LORA) for run in ("half-1", "half, shared-2"))
    same = [torch.isclose(others[name], x, rtol=1e-3, atol=1e-5) for name, x in weights.items()]
    assert torch.cat([x.flatten() for x in same]).double().mean() > 0.85


@pytest.mark.parametrize("name", ["one, then shared-2", "shared, then one-1"])
def test_a_run_goes_on_on_another_number_of_ranks(runs: Path, name: str) -> None:
    assert reports(runs, name) == [pytest.approx(reports(runs, "lora-1")[-1], rel=1e-4)]
    check_same_weights(runs, "lora-1", name, LORA)


@pytest.mark.parametrize("name", ["lora, shared", "full, shared"])
def test_each_rank_holds_half_of_the_weights(runs: Path, name: str) -> None:
    """A tensor whose first extent is 1 lies on one rank."""
    held = [json.loads((runs / f"{name}-held-{rank}.json").read_text()) for rank in (0, 1)]
    shares = [mine / whole for mine, whole in held]
    assert sum(shares) == pytest.approx(1)
    assert shares == pytest.approx([0.5, 0.5], abs=0.05)


@pytest.mark.parametrize("name", ["lora, shared", "full, shared"])
def test_their_files_are_those_of_one_process(runs: Path, name: str) -> None:
    folders = [runs / f"{name}-2", runs / f"{name.partition(',')[0]}-1"]
    parts = ("lora", "transformer")
    found = [
        sorted(str(x.relative_to(folder)) for part in parts for x in folder.glob(f"{part}/*"))
        for folder in folders
    ]
    assert found[0] == found[1]
    assert len(found[0]) == 3


def test_averaged_weights_are_measured_as_on_one_process(runs: Path) -> None:
    expected = held_out(runs, "half-1")
    assert len(expected) == len(LEVELS) * STEPS
    assert held_out(runs, "half, shared-2") == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("kind", ["hunyuan", "hunyuan-1.5", "ltx", "wan-2.2-i2v", "minimax"])
def test_ranks_share_every_family(tmp_path: Path, kind: str) -> None:
    folder = (
        make_minimax(tmp_path) if kind == "minimax" else make_pipeline_and_cache(tmp_path, kind)
    )
    write_reports(folder, ("family",), 0, 1)
    run_ranks("shared_finetuning.py", 2, folder, "family, shared", seconds=500)
    expected, found = reports(folder, "family-1"), reports(folder, "family, shared-2")
    assert len(expected) == STEPS
    for mine, theirs in zip(expected, found, strict=True):
        assert theirs == pytest.approx(mine, rel=1e-4)
    check_same_weights(folder, "family-1", "family, shared-2", LORA)


def test_what_ranks_cant_share_is_refused(tmp_path: Path) -> None:
    shared = ParallelConfig(dp_shard=2)
    config = with_run(lora_config(tmp_path, tmp_path / "run"), gradient_checkpointing=True)
    with pytest.raises(ValueError, match=r"run\.parallel\.cp is 2, and pipeline\.folder.*dp_shard"):
        with_run(config, parallel=ParallelConfig(cp=2))
    with pytest.raises(ValueError, match=r"offload_blocks is 1 and run\.parallel\.dp_shard 2"):
        changed(with_run(config, parallel=shared), "pipeline", offload_blocks=1)
    with pytest.raises(ValueError, match=r"optimizer\.kind is 'adamw8bit' and run\.parallel"):
        changed(with_run(config, parallel=shared), "optimizer", kind="adamw8bit")
