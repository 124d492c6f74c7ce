"""Profiles: what ships loads and is plausible, and bad ones are refused by name."""

from __future__ import annotations

import json

import pytest

from freqformer.simulate.model.efficiency import load_efficiency
from freqformer.simulate.model.hardware import load_hardware
from freqformer.simulate.model.profiles import ProfileError, known_profiles, read_profile
from freqformer.simulate.model.transformers import load_model


def test_every_shipped_machine_loads_with_sources():
    assert {"a100", "h100", "h200", "b200", "rtx4090", "rtx5090", "l40s", "mi300x", "cpu"} <= set(
        known_profiles("hardware")
    )
    for name in known_profiles("hardware"):
        machine = load_hardware(name)
        for field in (
            "matrix_flops",
            "memory_bandwidth",
            "memory_bytes",
            "l2_bytes",
            "processors",
            "launch_s",
        ):
            assert machine.sources[field], (name, field)
        # A GPU's matrix units are faster than its vector units, and both than its memory.
        assert machine.matrix_flops > machine.vector_flops > machine.memory_bandwidth / 8


@pytest.mark.parametrize(
    ("name", "grid", "seconds", "tokens"),
    [
        ("wan2.1-14b", "720p", 5, 75_600),  # field-notes: 75.6K tokens
        ("hunyuanvideo", "720p", 129 / 24, 118_800),  # field-notes: 118.8K tokens
        ("wan2.1-1.3b", "480p", 5, 21 * 30 * 52),
        ("cogvideox-5b", "480p", 49 / 8, 13 * 30 * 45),
        ("ltx-video", "480p", 121 / 24, 16 * 15 * 22),
        ("wan2.2-a14b", "720p", 5, 75_600),
        ("wan2.2-5b", "720p", 121 / 24, 31 * 22 * 40),
        ("hunyuanvideo-1.5", "480p", 121 / 24, 31 * 30 * 53),
        ("ltx-2", "512p", 121 / 24, 16 * 16 * 24),
    ],
)
def test_known_videos_have_known_token_counts(name, grid, seconds, tokens):
    assert load_model(name).grid_for_seconds(seconds, grid).num_tokens == tokens


@pytest.mark.parametrize("chunks", [3, 7, 20])
def test_chunks_of_frames_are_counted_on_average(chunks):
    """17 n + 5 frames are 5 n + 2 latents of MiniMax-H3."""
    model = load_model("minimax-h3")
    tokens = model.grid_for_seconds((17 * chunks + 5) / model.fps, "768p").num_tokens
    assert tokens == pytest.approx((5 * chunks + 2) * 24 * 42, rel=0.06)


OUTSIDE = {"hunyuanvideo-1.5": 0.35, "ltx-2": 0.35, "minimax-h3": 0.45}
"""Models of which modulations, or the audio stream, are a large part."""


def test_blocks_hold_most_of_the_published_weights():
    """The shapes' matrices are the models': within 15% of the whole transformer, embeddings and
    modulations left out."""
    for name in known_profiles("models"):
        model = load_model(name)
        blocks = sum(group.count * model.block_weights(group) for group in model.blocks)
        assert 1 - OUTSIDE.get(name, 0.3) < blocks / model.weights <= 1, name


def test_tokens_take_the_nearest_whole_number_of_frames():
    model = load_model("wan2.1-14b")
    assert model.grid_for_tokens(65_536, "720p").shape == (18, 45, 80)
    assert model.grid_for_tokens(1, "720p").shape == (1, 45, 80)


def test_unknown_names_say_what_is_known_and_near():
    with pytest.raises(
        ProfileError, match=r"'h20O' is unknown; the nearest is 'h200'; known are a100, .*h200"
    ):
        load_hardware("h20O")
    with pytest.raises(ProfileError, match=r"nearest is 'wan2.1-14b'"):
        load_model("wan-14b")
    with pytest.raises(ProfileError, match="known are"):
        load_efficiency("")


def _changed(tmp_path, kind, name, **changes):
    _, values = read_profile(kind, name)
    for field, value in changes.items():
        if value is None:
            del values[field]
        else:
            values[field] = value
    path = tmp_path / "own.json"
    path.write_text(json.dumps(values))
    return path


def test_own_profiles_load_from_a_path(tmp_path):
    assert load_hardware(_changed(tmp_path, "hardware", "h100", processors=66)).processors == 66
    assert load_model(str(_changed(tmp_path, "models", "wan2.1-14b", steps=4))).steps == 4


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"memory_bandwidth": None}, "own lacks the field 'memory_bandwidth'"),
        ({"clock": 3}, "unknown field 'clock'"),
        ({"processors": -1}, "processors is -1"),
        ({"matrix_flops": float("nan")}, "own.json can.t be read .a number that is not finite."),
        ({"interconnect": {"node_gpus": 8}}, "lacks the field 'network_bandwidth'"),
        ({"interconnect": 3}, "interconnect is 3"),
        ({"element_size": 3}, "element_size is 3"),
    ],
)
def test_bad_hardware_is_refused_by_field(tmp_path, changes, text):
    path = _changed(tmp_path, "hardware", "h100", **changes)
    with pytest.raises(ProfileError, match=text):
        load_hardware(path)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"heads": 0}, "heads is 0"),
        ({"blocks": []}, "blocks is empty"),
        ({"blocks": [{"count": 2, "ffn": 8}]}, "lacks the field 'text'"),
        ({"blocks": [{"count": 2, "ffn": 8, "text": "sung"}]}, "text is 'sung'"),
        ({"patch": [1, 2]}, "patch is"),
        ({"resolutions": {"720p": [721, 1280]}}, "rows of 720p is 721"),
        ({"resolution": "4k"}, "resolution is '4k'"),
        ({"shift": None}, "lacks the field 'shift'"),
    ],
)
def test_bad_models_are_refused_by_field(tmp_path, changes, text):
    path = _changed(tmp_path, "models", "wan2.1-14b", **changes)
    with pytest.raises(ProfileError, match=text):
        load_model(path)


def test_files_that_are_no_profile_are_refused(tmp_path):
    path = tmp_path / "broken.json"
    path.write_text("{")
    with pytest.raises(
        ProfileError, match=r"broken.json can.t be read .*; give a readable JSON file"
    ):
        load_hardware(path)
    path.write_text("[1]")
    with pytest.raises(ProfileError, match="holds list; an object is allowed"):
        load_hardware(path)
    with pytest.raises(ProfileError, match="can't be read"):
        load_hardware(tmp_path / "absent.json")


def test_machines_without_measurements_say_whose_fractions_they_use():
    assert not load_efficiency(load_hardware("h200")).transferred
    borrowed = load_efficiency(load_hardware("b200"))
    assert borrowed.transferred
    assert borrowed.name == "h200"


def test_every_model_takes_every_length():
    """64K to 1M tokens, and durations at 16 and 24 frames per second at three resolutions."""
    for name in {*known_profiles("models")} - {"freqformer"}:
        model = load_model(name)
        for tokens in (65_536, 131_072, 262_144, 524_288, 1_048_576):
            grid = model.grid_for_tokens(tokens, model.resolution)
            assert abs(grid.num_tokens - tokens) <= grid.num_tokens / grid.num_frames / 2
        for resolution in ("480p", "720p", "1080p"):
            for fps in (16, 24):
                grid = model.grid_for_seconds(5, resolution, fps)
                # Whole latents and patches: at most one of them longer than asked for.
                assert (
                    0 <= model.seconds(grid, fps) - 5 < model.vae[0] * model.patch[0] / fps + 1e-9
                )


@pytest.mark.parametrize("tokens", [0, -5, 1 << 25, 2.5])
def test_absurd_lengths_are_refused(tokens):
    with pytest.raises(ProfileError, match="tokens is"):
        load_model("wan2.1-14b").grid_for_tokens(tokens, "720p")


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 1e7])
def test_absurd_durations_are_refused(seconds):
    with pytest.raises(ProfileError, match=r"seconds is|tokens of this video"):
        load_model("wan2.1-14b").grid_for_seconds(seconds, "720p")


def test_the_own_shape_is_the_models_default():
    from inspect import signature

    from freqformer import FreqFormerTransformer3DModel

    model = load_model("freqformer")
    defaults = {
        name: value.default
        for name, value in signature(FreqFormerTransformer3DModel.__init__).parameters.items()
    }
    assert (model.num_layers, model.heads, model.head_dim) == tuple(
        defaults[name] for name in ("num_layers", "num_attention_heads", "attention_head_dim")
    )
    assert model.patch == tuple(defaults["patch_size"])
