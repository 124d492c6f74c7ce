"""Every Triton launch compiles for every architecture of `ops/architectures.py`, fits in its shared
memory, and spills no more than is stated here. No GPU is needed, and nothing runs.

What is short runs in `make test`: the attention's kernels in the default configuration, and those
that a compiler once refused. The marker `slow` has the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product
from typing import Any

import pytest
from tests.support.compilers import Compilers

pytest.importorskip("triton")

from freqformer.ops.architectures import ROWS

ATTENTION = ("attention_kernel", "query_grads_kernel", "video_grads_kernel", "extra_grads_kernel")
FORWARD = ("prepare_tiles", "finish_rows", "select_tiles", "attention_kernel", "merge_kernel")
PROLOGUE = (
    "token_scales",
    "prepare_tiles",
    "finish_rows",
    "tile_grads",
    "text_grads",
    "finish_norm_grads",
)
HEAD_DIMS = (64, 128)
NAMES = tuple(ROWS)
LATER = {("sm_86", 128), *((name, 64) for name in NAMES if name != "sm_90")}
"""What `make test` leaves to the marker `slow`: sm_86, whose settings sm_89 has too, and shorter
vectors, but for the architecture that was measured."""
SPILLED: dict[tuple[str, int], dict[str, dict[str, int]]] = {
    ("gradients", 128): {
        "attention_kernel": {"sm_90": 184},
        "extra_grads_kernel": {"sm_90": 48},
    },
    ("gradients", 96): {
        "attention_kernel": {"sm_90": 184},
        "extra_grads_kernel": {"sm_90": 48},
    },
    ("gradients", 256): {"attention_kernel": {"sm_90": 32}, "merge_kernel": {"sm_100": 184}},
    ("everything", 256): {
        "prepare_tiles": {
            "sm_80": 16,
            "sm_86": 16,
            "sm_89": 16,
            "sm_90": 16,
            "sm_100": 48,
            "sm_120": 32,
        },
        "join_extra_grads_kernel": {
            "sm_80": 24,
            "sm_86": 32,
            "sm_89": 32,
            "sm_90": 32,
            "sm_100": 64,
            "sm_120": 64,
        },
        "pool_slopes": {
            "sm_80": 16,
            "sm_86": 24,
            "sm_89": 24,
            "sm_90": 24,
            "sm_100": 16,
            "sm_120": 80,
        },
        "tile_grads": {
            "sm_80": 896,
            "sm_86": 704,
            "sm_89": 704,
            "sm_90": 792,
            "sm_100": 736,
            "sm_120": 728,
        },
        "attention_kernel": {"sm_90": 88},
        "query_grads_kernel": {"sm_90": 64},
        "video_grads_kernel": {"sm_90": 232},
        "select_tiles": {"sm_100": 24},
        "merge_kernel": {"sm_100": 184},
    },
    ("features", 256): {
        "prepare_tiles": {"sm_80": 32, "sm_86": 24, "sm_89": 24},
        "tile_grads": {
            "sm_80": 464,
            "sm_86": 264,
            "sm_89": 264,
            "sm_90": 296,
            "sm_100": 320,
            "sm_120": 240,
        },
    },
    ("layer", 64): {
        "score_heads": {
            "sm_80": 32,
            "sm_86": 32,
            "sm_89": 32,
            "sm_90": 32,
            "sm_100": 32,
            "sm_120": 32,
        }
    },
    ("layer", 128): {
        "sum_tiles": {"sm_120": 16},
        "score_heads": {
            "sm_80": 32,
            "sm_86": 32,
            "sm_89": 32,
            "sm_90": 32,
            "sm_100": 32,
            "sm_120": 32,
        },
        "attention_kernel": {"sm_90": 168},
    },
    ("everything", 128): {
        "prepare_tiles": {"sm_86": 8, "sm_89": 8},
        "tile_grads": {"sm_80": 8, "sm_100": 56, "sm_120": 48},
        "attention_kernel": {"sm_90": 256},
        "video_grads_kernel": {"sm_90": 24},
        "extra_grads_kernel": {"sm_90": 56},
    },
    ("halved", 128): {
        "tile_grads": {"sm_80": 48, "sm_86": 8, "sm_89": 8, "sm_100": 8, "sm_120": 32}
    },
    ("features", 128): {
        "attention_kernel": {"sm_90": 152},
        "video_grads_kernel": {"sm_90": 16},
        "extra_grads_kernel": {"sm_90": 48},
    },
}
"""Most bytes of a thread's registers in memory, by case, head_dim, kernel and architecture; 0 where
it isn't named. sm_90's are those of the kernels that were measured."""


COMPILERS = Compilers("tests.support.compile_pipeline")


@pytest.fixture(scope="module", autouse=True)
def _end_compilers() -> Iterator[None]:
    yield
    COMPILERS.close()


@cache
def compiled(
    case: str, head_dim: int, kernels: tuple[str, ...], name: str, disassembled: bool = False
) -> list[dict[str, Any]]:
    """Facts about the kernels of a case for an architecture."""
    return COMPILERS.ask(case, head_dim, kernels, [name], disassembled)[name]


def attention(name: str, head_dim: int) -> list[dict[str, Any]]:
    """Those of the attention in the default configuration, with their instructions."""
    return compiled("gradients", head_dim, ATTENTION, name, True)


def check(case: str, head_dim: int, name: str, kernels: list[dict[str, Any]]) -> None:
    """Raise AssertionError unless all compiled, fit, and keep their registers."""
    assert kernels
    allowed = SPILLED.get((case, head_dim), {})
    for kernel in kernels:
        told = f"{kernel['name']} for {name}, {case}, head_dim {head_dim}"
        assert "error" not in kernel, f"{told}: {kernel['error']}"
        assert kernel["shared"] <= ROWS[name].shared_memory, told
        most = allowed.get(kernel["name"], {}).get(name, 0)
        assert kernel["spilled"] <= most, f"{told}: {kernel['spilled']} bytes spilled"


@pytest.mark.parametrize(
    ("name", "head_dim"),
    [
        pytest.param(name, head_dim, marks=pytest.mark.slow if (name, head_dim) in LATER else ())
        for head_dim, name in product(HEAD_DIMS, NAMES)
    ],
)
def test_the_attention_compiles_everywhere(name: str, head_dim: int) -> None:
    kernels = attention(name, head_dim)
    assert [kernel["name"] for kernel in kernels] == list(ATTENTION)
    check("gradients", head_dim, name, kernels)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_hopper_multiplies_by_warp_groups_and_copies_by_descriptors(head_dim: int) -> None:
    for kernel in attention("sm_90", head_dim):
        instructions = kernel["instructions"]
        assert instructions["HGMMA"] >= 16, kernel["name"]
        assert instructions["UTMALDG"] >= 4, kernel["name"]
        assert "HMMA" not in instructions, kernel["name"]  # no product of single warps


@pytest.mark.parametrize(
    ("name", "product", "copy"),
    [
        ("sm_80", "HMMA", "LDGSTS"),
        ("sm_89", "HMMA", "LDGSTS"),
        ("sm_100", "UTCHMMA", "UTMALDG"),
        ("sm_120", "HMMA", "UTMALDG"),
        ("gfx942", "v_mfma_f32_32x32x8_bf16", "buffer_load_dwordx4"),
    ],
)
def test_every_architecture_has_its_matrix_units(name: str, product: str, copy: str) -> None:
    for kernel in attention(name, 128):
        assert kernel["instructions"].get(product, 0) >= 16, kernel["name"]
        assert kernel["instructions"].get(copy, 0) >= 4, kernel["name"]


@pytest.mark.parametrize(
    ("case", "name", "kernels"),
    [
        ("everything", "gfx942", ("gather_grads_kernel", "select_tiles")),
        ("everything", "sm_100", ("pool_tiles",)),
        # Both by Triton 3.6, which `make test-versions` has.
        ("turned features", "sm_90", ("prepare_tiles",)),
        ("summaries across heads", "sm_90", ("prepare_tiles",)),
        ("summaries for no cell", "sm_90", ("finish_rows",)),
    ],
)
def test_what_a_compiler_once_refused(case: str, name: str, kernels: tuple[str, ...]) -> None:
    check(case, 128, name, compiled(case, 128, kernels, name))


@pytest.mark.slow
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("case", ["layer", "gradients", "everything", "features"])
@pytest.mark.parametrize("name", NAMES)
def test_every_launch_compiles_everywhere(name: str, case: str, head_dim: int) -> None:
    kernels = compiled(case, head_dim, (), name)
    assert {"prepare_tiles", "attention_kernel", "merge_kernel"} <= {
        kernel["name"] for kernel in kernels
    }
    check(case, head_dim, name, kernels)


def test_the_pooling_multiplies_by_warp_groups_on_hopper() -> None:
    """A band's keys of a tile take one product, whose factors lie in shared memory."""
    kernels = compiled("everything", 128, ("pool_tiles",), "sm_90", True)
    check("everything", 128, "sm_90", kernels)
    for kernel in kernels:
        assert kernel["instructions"]["HGMMA"] == 128 // 16
        assert "HMMA" not in kernel["instructions"]


@pytest.mark.parametrize("name", ["sm_80", "sm_120"])
def test_the_pooling_of_halved_pairs_keeps_its_registers(name: str) -> None:
    """Channels of a pair come from two loads there, whose places take registers too."""
    kernels = compiled("summaries across heads", 128, ("pool_tiles",), name)
    check("summaries across heads", 128, name, kernels)


def test_nothing_is_compiled_anew_for_another_size() -> None:
    """Of the attention's kernels, which take integers one by one for it."""
    kernels = compiled("sizes", 64, ATTENTION, "sm_80")
    assert [kernel["name"] for kernel in kernels] == 3 * list(ATTENTION)
    for name in ATTENTION:
        assert len({kernel["hash"] for kernel in kernels if kernel["name"] == name}) == 1, name


def test_nothing_is_compiled_anew_for_lists_of_other_lengths() -> None:
    """Of the whole forward: a calibration runs tables with all of them."""
    kernels = compiled("lengths", 64, FORWARD, "sm_90")
    for name in FORWARD:
        hashes = [kernel["hash"] for kernel in kernels if kernel["name"] == name]
        assert len(hashes) == 4, name
        assert len(set(hashes)) == 1, name


@pytest.mark.parametrize("name", ["sm_90", "gfx942"])
def test_the_prologue_of_other_models_compiles(name: str) -> None:
    """A norm across heads and its own two launches; the marker `slow` has the rest."""
    kernels = compiled("across heads", 128, PROLOGUE, name)
    assert {kernel["name"] for kernel in kernels} == set(PROLOGUE)
    check("across heads", 128, name, kernels)


@pytest.mark.slow
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("case", ["across heads", "halved"])
def test_the_prologue_of_other_models_compiles_everywhere(case: str, head_dim: int) -> None:
    for name in NAMES:
        kernels = compiled(case, head_dim, PROLOGUE, name)
        assert {"prepare_tiles", "tile_grads"} <= {kernel["name"] for kernel in kernels}
        check(case, head_dim, name, kernels)


def test_a_head_dim_that_is_padded() -> None:
    """Hopper's attention at head_dim 96, whose stores are masked."""
    kernels = attention("sm_90", 96)
    assert [kernel["name"] for kernel in kernels] == list(ATTENTION)
    check("gradients", 96, "sm_90", kernels)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "kernels"),
    [("gradients", ()), ("everything", ()), ("features", ("prepare_tiles", "tile_grads"))],
)
@pytest.mark.parametrize("name", NAMES)
def test_the_largest_head_dim(name: str, case: str, kernels: tuple[str, ...]) -> None:
    """What those are compiled for that are padded to 256."""
    check(case, 256, name, compiled(case, 256, kernels, name))
