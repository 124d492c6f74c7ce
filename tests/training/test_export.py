"""Exporting a finished run: rounded weights, a card from the records, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.support.damage import flip_bits

from freqformer.models.pipeline import FreqFormerPipeline
from freqformer.models.transformer import LEAST_NOISE, FreqFormerTransformer3DModel
from freqformer.training.checkpoint import CheckpointError
from freqformer.training.config import DataConfig, RunConfig, TrainConfig
from freqformer.training.export import MOST_BYTES, WEIGHTS, export_model, fresh_loss
from freqformer.training.loop import train
from freqformer.training.objective import sample_timesteps
from freqformer.training.provenance import read_sessions
from freqformer.training.seeding import derive_generator, derive_seed
from freqformer.training.sources import clip_source

ROOT = Path(__file__).parents[2]
PHOTOGRAPHS = ROOT / "benchmarks" / "quality" / "photographs"
CONFIG = ROOT / "configs" / "shipped.json"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a finished run of seconds, in two sessions."""
    config = TrainConfig(
        str(tmp_path_factory.mktemp("runs") / "tiny"),
        model={
            "num_layers": 1,
            "num_attention_heads": 3,
            "attention_head_dim": 8,
            "patch_size": [2, 4, 4],
            "prediction_type": "sample",
            "frequency": {"tile": [1, 2, 2], "mid_tiles": 2, "summary_tokens": 4},
        },
        data=DataConfig(photographs=str(PHOTOGRAPHS), num_frames=4, height=16, width=24, workers=1),
        run=RunConfig(max_steps=4, batch_size=1, device="cpu", progress=False),
    )
    folder = Path(config.output)
    first: list[int] = []
    train(
        replace(config, run=replace(config.run, stop_after_seconds=0.001)),
        on_step=lambda report: first.append(report.step),
    )
    assert first == [1]
    (folder / "train.json").write_text(json.dumps(config.to_dict()))
    with pytest.raises(ValueError, match="is 25% done; a whole run is allowed"):
        export_model(folder, folder / "model")
    train(config)
    return folder


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    return export_model(run, run / "model")


def test_weights_are_the_average_in_bfloat16(run: Path, exported: Path) -> None:
    average, rounded = (load_file(folder / WEIGHTS) for folder in (run / "pipeline", exported))
    assert average.keys() == rounded.keys()
    for name, tensor in average.items():
        # A choice steps where rounding differs, so routers keep their precision.
        kept = "router" in name or not tensor.is_floating_point()
        assert rounded[name].dtype == (tensor.dtype if kept else torch.bfloat16), name
        assert tensor.dtype in (torch.float32, torch.int64)
        assert torch.equal(rounded[name], tensor if kept else tensor.bfloat16()), name


def test_it_loads_and_generates_at_its_size(exported: Path) -> None:
    pipeline = FreqFormerPipeline.from_pretrained(str(exported), dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    frames = pipeline(4, 16, 24, num_inference_steps=2, output_type="uint8").frames
    assert frames.shape == (1, 4, 16, 24, 3)


def test_it_names_no_folder_of_the_machine_that_made_it(run: Path, exported: Path) -> None:
    files = [
        path for path in exported.rglob("*.json") if path.name not in ("train.json", "record.json")
    ]
    assert len(files) >= 3
    for path in files:
        assert str(run) not in path.read_text(encoding="utf-8"), path


def test_the_card_tells_what_the_records_say(run: Path, exported: Path) -> None:
    card, facts = (
        (exported / "README.md").read_text(),
        json.loads((exported / "record.json").read_text()),
    )
    config = TrainConfig.from_dict(json.loads((exported / "train.json").read_text()))
    assert facts["bytes"] == (exported / WEIGHTS).stat().st_size
    assert [vars(session) for session in read_sessions(run)] == facts["sessions"]
    pipeline = FreqFormerPipeline.from_pretrained(str(exported), dtype=torch.float32)
    assert fresh_loss(pipeline, config) == pytest.approx(facts["fresh_loss"], rel=1e-5)
    for session in facts["sessions"]:
        assert f"| {session['first_step']} to {session['last_step']} | {session['clips']} |" in card
        assert f"{session['loss']:.4f}" in card
    for text in (
        f"**{facts['fresh_loss']:.4f}**",
        "danielbuechele",
        "Rachel Michetti",
        "4 frames of 24 x 16",
    ):
        assert text in card
    assert "70%" not in card
    assert "$" not in card
    assert (exported / "samples.png").stat().st_size > 1000


def test_the_fresh_loss_of_a_model_that_says_grey_follows_from_the_clips(exported: Path) -> None:
    config = TrainConfig.from_dict(json.loads((exported / "train.json").read_text()))
    pipeline = FreqFormerPipeline.from_pretrained(str(exported), dtype=torch.float32)
    for parameter in pipeline.transformer.proj_out.parameters():
        parameter.data.zero_()
    seed = derive_seed(config.run.seed, "fresh")
    source = clip_source(config.data, seed)
    timesteps = sample_timesteps(8, 1.0, derive_generator(seed, "timestep")).clamp_min(LEAST_NOISE)
    # x_t / t - (noise - clip) = clip / t.
    expected = (
        sum(float((source.load(i).clip / t).square().mean()) for i, t in enumerate(timesteps)) / 8
    )
    assert fresh_loss(pipeline, config, clips=8) == pytest.approx(expected, rel=1e-4)


def test_only_an_earlier_export_is_replaced(run: Path, exported: Path, tmp_path: Path) -> None:
    """F106: whatever else a folder holds is kept."""
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "wedding.jpg").write_text("x")
    for target, named in ((photos, r"wedding\.jpg"), (run / "pipeline", r"model_index\.json")):
        with pytest.raises(
            CheckpointError,
            match=rf"did not write there as its own export \({named}.* is kept as it is",
        ):
            export_model(run, target)
    assert [path.name for path in photos.iterdir()] == ["wedding.jpg"]
    FreqFormerPipeline.from_pretrained(str(run / "pipeline"))
    shutil.copytree(exported, tmp_path / "model")
    (tmp_path / "model" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"\(notes\.txt\)"):
        export_model(run, tmp_path / "model")
    (tmp_path / "model" / "notes.txt").unlink()
    (tmp_path / "link").symlink_to(tmp_path / "model")
    before = (exported / WEIGHTS).stat().st_ino
    assert export_model(run, tmp_path / "link") == tmp_path / "link"
    assert (tmp_path / "model" / WEIGHTS).stat().st_ino != before
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("count", [22, pytest.param(500, marks=pytest.mark.slow)])
def test_every_flipped_bit_of_an_export_is_named(
    exported: Path, tmp_path: Path, caplog, count: int
) -> None:
    """F107: where loading does not depend on the file, in a warning."""
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    warned = set()
    for path, _ in flip_bits(folder, count):
        caplog.clear()
        if path.suffix in (".md", ".png"):
            FreqFormerPipeline.from_pretrained(str(folder))
            assert f"{path} is damaged" in caplog.text
            warned.add(path.name)
            continue
        with pytest.raises(ValueError) as caught:  # noqa: PT011  the message is looked at below
            FreqFormerPipeline.from_pretrained(str(folder))
        assert path.name in str(caught.value)
    assert warned == {"README.md", "samples.png"}


def test_what_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no run that ended"):
        export_model(tmp_path, tmp_path / "model")
    with pytest.raises(ValueError, match="1,000 at most are allowed"):
        export_model(run, tmp_path / "model", most_bytes=1000)
    assert not (tmp_path / "model").exists()


def test_photographs_need_authors(run: Path, tmp_path: Path) -> None:
    pictures, copy = tmp_path / "pictures", tmp_path / "run"
    pictures.mkdir()
    shutil.copy(PHOTOGRAPHS / "coffee.jpg", pictures)
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("model", "checkpoints"))
    config = json.loads((copy / "train.json").read_text())
    config["data"]["photographs"] = str(pictures)
    (copy / "train.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"ATTRIBUTION\.md is missing"):
        export_model(copy, tmp_path / "model")


def test_the_shipped_config_makes_a_model_that_may_be_shipped(tmp_path: Path) -> None:
    config = TrainConfig.from_dict(json.loads(CONFIG.read_text()))
    assert config.data.photographs is not None
    assert ROOT / config.data.photographs == PHOTOGRAPHS
    # Two calls of 9 minutes each, with time to start and to save.
    assert config.run.max_seconds is not None
    assert config.run.max_seconds <= 2 * 9 * 60 - 60
    model = FreqFormerTransformer3DModel(**config.model)
    model.save_pretrained(tmp_path)
    half = FreqFormerTransformer3DModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    assert (tmp_path / "half" / WEIGHTS.name).stat().st_size <= MOST_BYTES
