"""`calibrate` end to end: what the table does in the model, resuming, and what is refused."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.calibration.conftest import CANDIDATES, dense, make_clips, make_dense_model

from freqformer import FreqFormerConfig, FreqFormerTransformer3DModel
from freqformer._files import locked
from freqformer.calibration import Calibration, Candidates, calibrate
from freqformer.config import Band
from freqformer.routing import RoutingTable
from freqformer.training.checkpoint import save_checkpoint

OPTIONS = {"candidates": CANDIDATES, "num_buckets": 3, "progress": False}


@pytest.fixture(scope="module")
def straight() -> tuple[RoutingTable, Calibration]:
    """The table and the errors of a calibration that nothing interrupted."""
    return calibrate(make_dense_model(), make_clips(), 0.25, **OPTIONS)


def same(one: RoutingTable, other: RoutingTable) -> bool:
    return torch.equal(one.bands, other.bands) and torch.equal(one.mid_tiles, other.mid_tiles)


def velocity(model, clips, timestep: float = 500.0) -> torch.Tensor:
    with torch.no_grad():
        return model(clips[0], torch.full((2,), timestep)).sample


def test_the_table_runs_in_the_model_and_errs_more_where_it_costs_less(dense_model, clips):
    expected = velocity(dense_model, clips)
    table, calibration = calibrate(dense_model, clips, 0.25, **OPTIONS)
    assert table.shape == (3, 2, 3)
    assert len(table.bands.unique()) > 1
    assert same(table, calibration.choose(0.25).table)
    assert torch.equal(velocity(dense_model, clips), expected)
    errors = []
    for tolerance in (1e-6, 0.15, 0.25, 10.0):
        dense_model.set_routing_table(calibration.choose(tolerance).table)
        errors.append(float((velocity(dense_model, clips) - expected).norm() / expected.norm()))
    assert errors[0] < 1e-5
    assert errors == sorted(errors)
    assert errors[3] > 10 * errors[0]
    dense_model.set_routing_table(None)
    assert torch.equal(velocity(dense_model, clips), expected)


def test_every_batch_meets_every_share_of_the_noise_levels(dense_model, clips):
    passes = []
    handle = dense_model.register_forward_pre_hook(lambda _, given: passes.append(given))
    _, calibration = calibrate(dense_model, clips, 0.25, **OPTIONS)
    handle.remove()
    buckets = [(timestep / 1000 * 3).long().tolist() for _, timestep in passes]
    assert buckets == [[0, 0], [1, 1], [2, 2]] * 3
    for index, (noisy, timestep) in enumerate(passes):
        level = timestep.view(-1, 1, 1, 1, 1) / 1000
        noise = (noisy - (1 - level) * clips[index // 3]) / level
        assert float(noise.std()) == pytest.approx(1, abs=0.15)
    assert calibration.errors.shape == (3, 2, 3, 6)
    assert len({tuple(bucket.flatten().tolist()) for bucket in calibration.errors}) == 3


def test_same_seed_same_bits(dense_model, clips):
    errors = [
        calibrate(dense_model, clips[:1], 0.25, **OPTIONS, seed=seed)[1].errors
        for seed in (1, 1, 2)
    ]
    assert torch.equal(errors[0], errors[1])
    assert not torch.equal(errors[0], errors[2])


class Stop(Exception):
    pass


def interrupted(clips, after: int):
    yield from clips[:after]
    raise Stop


@pytest.mark.parametrize("after", [1, 2])
def test_an_interrupted_run_goes_on_to_the_same_bits(dense_model, clips, tmp_path, after, straight):
    table, calibration = straight
    dense_model.train()
    with pytest.raises(Stop):
        calibrate(dense_model, interrupted(clips, after), 0.25, **OPTIONS, state=tmp_path / "state")
    assert dense_model.training
    passes = []
    handle = dense_model.register_forward_pre_hook(lambda *_: passes.append(1))
    again, more = calibrate(dense_model, clips, 0.25, **OPTIONS, state=tmp_path / "state")
    assert len(passes) == 3 * (len(clips) - after)
    assert same(again, table)
    assert torch.equal(more.errors, calibration.errors)
    looser, _ = calibrate(dense_model, clips, 10.0, **OPTIONS, state=tmp_path / "state")
    assert len(passes) == 3 * (len(clips) - after)
    assert (looser.bands != Band.DENSE).all()
    handle.remove()


KILLED = """
import os, signal, sys
from tests.calibration import conftest
from freqformer import FreqFormerConfig, FreqFormerTransformer3DModel
from freqformer._files import locked
from freqformer.calibration import calibrate
from safetensors.torch import load_file

def batches():
    yield from list(load_file(sys.argv[2]).values())[:2]
    os.kill(os.getpid(), signal.SIGKILL)

model = FreqFormerTransformer3DModel.from_pretrained(sys.argv[1])
calibrate(model, batches(), 0.25, candidates=conftest.CANDIDATES, num_buckets=3, progress=False,
state=sys.argv[3])
"""


def test_a_killed_process_leaves_a_state_to_go_on_from(dense_model, clips, tmp_path, straight):
    dense_model.save_pretrained(tmp_path / "model")
    save_file({str(index): clip for index, clip in enumerate(clips)}, tmp_path / "clips")
    command = [
        sys.executable,
        "-c",
        KILLED,
        *(str(tmp_path / name) for name in ("model", "clips", "state")),
    ]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    model = FreqFormerTransformer3DModel.from_pretrained(tmp_path / "model")
    passes = []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    table, calibration = calibrate(model, clips, 0.25, **OPTIONS, state=tmp_path / "state")
    assert len(passes) == 3
    assert same(table, straight[0])
    assert torch.equal(calibration.errors, straight[1].errors)


def test_a_state_that_another_process_writes_is_refused(dense_model, clips, tmp_path):
    """F101."""
    with locked(tmp_path), pytest.raises(ValueError, match=rf"in use by process {os.getpid()} "):
        calibrate(dense_model, clips[:1], 0.25, **OPTIONS, state=tmp_path)


@pytest.mark.parametrize(
    "state", [{}, {"made_with": 3, "batches": []}, {"made_with": {}, "batches": []}]
)
def test_a_checkpoint_of_something_else_is_refused(dense_model, clips, tmp_path, state):
    save_checkpoint(tmp_path, 1, {"energies": {"error": torch.zeros(1)}}, state)
    with pytest.raises(ValueError, match="holds no state of a calibration"):
        calibrate(dense_model, clips[:1], 0.25, **OPTIONS, state=tmp_path)


def test_another_model_refuses_the_table(dense_model, clips):
    """F93."""
    table, _ = calibrate(dense_model, clips[:1], 0.25, **OPTIONS)
    torch.manual_seed(9)
    other = type(dense_model).from_config(dense_model.config)
    with pytest.raises(ValueError, match="made from another model"):
        other.set_routing_table(table)


def test_a_state_of_something_else_is_refused(dense_model, clips, tmp_path):
    calibrate(dense_model, clips[:1], 0.25, **OPTIONS, state=tmp_path)
    other = copy.deepcopy(dense_model)
    with torch.no_grad():
        other.proj_in.bias[0] += 1e-3
    cases = [
        (other, clips, {}, "another weights"),
        (dense_model, clips, {"seed": 1}, "another seed"),
        (dense_model, clips, {"num_buckets": 2}, "another num_buckets"),
        (
            dense_model,
            clips,
            {"candidates": Candidates.usual(CANDIDATES.config)},
            "another band_config and candidates",
        ),
        (dense_model, clips[1:], {}, "other batches from number 0"),
    ]
    for model, batches, options, message in cases:
        with pytest.raises(ValueError, match=message) as error:
            calibrate(model, batches, 0.25, **{**OPTIONS, **options}, state=tmp_path)
        assert "another folder" in str(error.value)


def test_text_reaches_the_model(clips):
    torch.manual_seed(0)
    sizes = {
        "in_channels": 2,
        "patch_size": (1, 2, 2),
        "num_layers": 1,
        "num_attention_heads": 3,
        "attention_head_dim": 8,
        "cross_attention_dim": 10,
    }
    model = FreqFormerTransformer3DModel(**sizes, frequency=dense(CANDIDATES.config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    mask = torch.tensor([[True] * 4, [True, False, False, False]])
    text = torch.randn(2, 4, 10)
    errors = [
        calibrate(model, [batch], 0.25, **OPTIONS)[1].errors
        for batch in ((clips[0], text), (clips[0], text, mask), (clips[0], text, mask))
    ]
    assert torch.equal(errors[1], errors[2])
    with pytest.raises(ValueError, match="encoder_hidden_states is None"):
        calibrate(model, clips[:1], 0.25, **OPTIONS)


def test_what_does_not_fit_is_refused(dense_model, clips):
    cases = [
        ({"tolerance": 0}, "tolerance is 0"),
        ({"tolerance": float("nan")}, "tolerance is nan"),
        ({"num_buckets": 0}, "num_buckets is 0"),
        ({"batches": []}, "batches is empty"),
        ({"batches": [clips[0][0]]}, "batches holds"),
        ({"batches": ["clip"]}, "batches holds str"),
        ({"batches": [clips[0], clips[1][:, :, :3]]}, "one size is allowed"),
        ({"batches": [clips[0] * float("nan")]}, "not finite in layer 0"),
        ({"batches": [clips[0][..., :11]]}, "multiples of patch_size"),
    ]
    for changes, message in cases:
        given = {"batches": clips, "tolerance": 0.25, **OPTIONS, **changes}
        with pytest.raises(ValueError, match=message):
            calibrate(dense_model, given.pop("batches"), given.pop("tolerance"), **given)


def test_only_dense_models_are_calibrated(dense_model, clips):
    table, _ = calibrate(dense_model, clips[:1], 10.0, **OPTIONS)
    dense_model.set_routing_table(table)
    with pytest.raises(ValueError, match="model has a routing table in layer 0"):
        calibrate(dense_model, clips, 0.25, **OPTIONS)
    banded = FreqFormerTransformer3DModel(
        in_channels=2,
        patch_size=(1, 2, 2),
        num_layers=1,
        num_attention_heads=3,
        attention_head_dim=8,
    )
    with pytest.raises(ValueError, match="model has a FreqAttention in layer 0"):
        calibrate(banded, clips, 0.25, **OPTIONS)


def test_banded_layers_with_dense_heads_become_dense_ones_as_documented(clips):
    sizes = {
        "in_channels": 2,
        "patch_size": (1, 2, 2),
        "num_layers": 1,
        "num_attention_heads": 3,
        "attention_head_dim": 8,
    }
    heads = FreqFormerConfig(allocation=(3, 3, 3), routing="fixed", low_branch=False)
    banded = FreqFormerTransformer3DModel(**sizes, frequency=heads)
    with torch.no_grad():
        for parameter in banded.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model = FreqFormerTransformer3DModel.from_config(
        banded.config, frequency=FreqFormerConfig.dense()
    )
    model.load_state_dict(
        {name: x for name, x in banded.state_dict().items() if "summary" not in name}
    )
    torch.testing.assert_close(
        velocity(model, clips), velocity(banded, clips), rtol=1e-4, atol=1e-5
    )
    assert calibrate(model, clips[:1], 0.25, **OPTIONS)[0].shape == (3, 1, 3)
