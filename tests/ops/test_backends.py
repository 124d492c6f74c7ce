"""Which backend a call takes, what it says about it, and why one can't run."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch

from freqformer.attention import frequency_attention
from freqformer.config import FreqFormerConfig
from freqformer.grid import Grid
from freqformer.ops import backends
from freqformer.ops.backends import (
    BACKENDS,
    IMPLS,
    Launches,
    PlainImpl,
    Tensors,
    resolve,
    uses_triton,
)
from freqformer.ops.parameters import AttentionParameters

GRID = Grid(1, 2, 3)
ROWS = {backend.name: backend for backend in BACKENDS}


def make_tensors(
    device: str = "cpu", dtype: torch.dtype = torch.float32, head_dim: int = 16
) -> Tensors:
    """Query, key and value; those on the meta device stand for a GPU's."""
    query, key, value = torch.zeros(3, 1, GRID.num_tokens, 2, head_dim, dtype=dtype, device=device)
    return query, key, value


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton, in its interpreter, whether this run has one or not, and no newer backend before
    it."""
    rows = tuple(ROWS[name] for name in ("triton", "eager", "reference"))
    monkeypatch.setattr(backends, "BACKENDS", rows)
    monkeypatch.setattr(backends, "_triton_installed", lambda: True)
    monkeypatch.setattr(backends, "_triton_interprets", lambda: True)


def test_every_backend_is_a_row_and_a_choice() -> None:
    names = [backend.name for backend in BACKENDS]
    assert len(set(names)) == len(names)
    assert set(IMPLS) == {"auto", *names}
    plain = [backend.plain for backend in BACKENDS if not backend.fused]
    assert set(plain) == set(get_args(PlainImpl))


@pytest.mark.usefixtures("interpreted")
def test_auto_picks_by_capability_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    backends._tell_once.__wrapped__.cache_clear()
    wide = make_tensors("meta", torch.float64)
    with caplog.at_level(logging.INFO, logger="freqformer.ops.backends"):
        assert resolve("auto", make_tensors()).name == "eager"
        assert resolve("auto", make_tensors(dtype=torch.float64)).name == "eager"
        assert resolve("auto", make_tensors("meta")).name == "triton"
        with pytest.warns(
            UserWarning,
            match="meta runs impl='eager', many times slower, since impl='triton' can't run: "
            "the tensors are float64: convert",
        ):
            resolve("auto", wide)
        # Warnings are errors here, and this reason has had its own.
        assert resolve("auto", wide).name == "eager"
        with pytest.warns(UserWarning, match="head_dim is 320"):
            resolve("auto", make_tensors("meta", head_dim=320))
        assert resolve("auto", make_tensors("meta", head_dim=72)).name == "triton"
        assert resolve("auto", make_tensors("meta")).name == "triton"
    assert [record.getMessage() for record in caplog.records] == [
        "frequency_attention on cpu runs impl='eager'",
        "frequency_attention on meta runs impl='triton'",
        "frequency_attention on meta runs impl='eager'",
        "frequency_attention on meta runs impl='eager'",
    ]


@pytest.mark.usefixtures("interpreted")
def test_one_more_row_is_one_more_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    triton, *plain = backends.BACKENDS
    only_half = replace(
        triton,
        name="half",
        unsupported_reason=lambda tensors, parameters: (
            None if tensors[0].dtype == torch.float16 else "the tensors are not float16"
        ),
    )
    monkeypatch.setattr(backends, "BACKENDS", (only_half, triton, *plain))
    backends._tell_once.__wrapped__.cache_clear()
    assert resolve("auto", make_tensors("meta", torch.float16)).name == "half"
    assert resolve("auto", make_tensors()).name == "eager"
    # The next fused backend is no cause for a warning, which would be an error here.
    assert resolve("auto", make_tensors("meta")).name == "triton"
    with pytest.warns(
        UserWarning,
        match="impl='half' can't run: the tensors are not float16; impl='triton' can't run: ",
    ):
        resolve("auto", make_tensors("meta", torch.float64))
    with pytest.raises(ValueError, match="impl is 'half', which can't run: the tensors are not"):
        resolve("half", make_tensors())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("dtype", "head_dim", "hopper", "chosen"),
    [
        (torch.bfloat16, 128, True, "gluon"),
        (torch.float16, 64, True, "gluon"),
        (torch.bfloat16, 128, False, "triton"),
        (torch.float32, 128, True, "triton"),
        (torch.bfloat16, 32, True, "triton"),
        (torch.bfloat16, 40, True, "gluon"),
        (torch.bfloat16, 96, True, "gluon"),
        (torch.bfloat16, 192, True, "triton"),
        (torch.bfloat16, 257, True, "eager"),
        (torch.float64, 128, True, "eager"),
    ],
)
def test_auto_takes_the_kernel_for_hopper_there(
    dtype: torch.dtype, head_dim: int, hopper: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "_triton_installed", lambda: True)
    monkeypatch.setattr(backends, "_triton_interprets", lambda: False)
    monkeypatch.setattr(backends, "_is_hopper", lambda device: hopper)
    backends._tell_once.__wrapped__.cache_clear()
    told = (
        pytest.warns(UserWarning, match="many times slower, since impl='gluon' can't run")
        if chosen == "eager"
        else nullcontext()
    )
    with told:
        assert resolve("auto", make_tensors("meta", dtype, head_dim)).name == chosen


@pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning")
@pytest.mark.parametrize("deterministic", [True, False])
def test_a_row_names_what_is_launched(deterministic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward of the attention launch are the row's, and are told what the config
    says."""
    triton = ROWS["triton"]
    assert triton.launches is not None
    real, told = triton.launches(), []

    def attend(*given: Any, **named: Any) -> Any:
        told.append("forward")
        return real.attend(*given, **named)

    def attend_backward(*given: Any, **named: Any) -> Any:
        told.append(named["deterministic"])
        return real.attend_backward(*given, **named)

    row = replace(triton, launches=lambda: Launches(attend, attend_backward))
    monkeypatch.setattr(backends, "BACKENDS", (row,))
    query, key, value = (x.requires_grad_() for x in make_tensors())
    config = FreqFormerConfig(deterministic=deterministic)
    out = frequency_attention(query, key, value, grid=GRID, config=config, impl="triton")
    assert told == ["forward"]
    out.sum().backward()
    assert told == ["forward", deterministic]


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    ("dtype", "head_dim", "message"),
    [
        (torch.float64, 16, "the tensors are float64"),
        (torch.float32, 257, "head_dim is 257, and 1 to 256 are allowed: make the heads narrower"),
    ],
)
def test_an_explicit_choice_that_cannot_run_says_why(
    dtype: torch.dtype, head_dim: int, message: str
) -> None:
    tensors = make_tensors(dtype=dtype, head_dim=head_dim)
    said = f"impl is 'triton', which can't run: .*{message}.*choose impl='eager'"
    with pytest.raises(ValueError, match=said):
        uses_triton(tensors, "triton")
    with pytest.raises(ValueError, match=said):
        frequency_attention(
            *tensors, grid=GRID, allocation=[3, 3], config=FreqFormerConfig(), impl="triton"
        )


@pytest.mark.usefixtures("interpreted")
def test_float32_on_an_amd_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve("triton", make_tensors()).fused
    monkeypatch.setattr(torch.version, "hip", "7.0")
    with pytest.raises(ValueError, match=r"doesn't compile for AMD GPUs: convert them to bfloat16"):
        resolve("triton", make_tensors())
    assert resolve("triton", make_tensors(dtype=torch.bfloat16)).fused


@pytest.mark.usefixtures("interpreted")
def test_rotary_tables_that_want_a_gradient() -> None:
    cos, sin = torch.ones(2, GRID.num_tokens, 8)
    parameters = AttentionParameters(rotary=(cos.requires_grad_(), sin))
    with pytest.raises(ValueError, match=r"gives the rotary tables no gradient.*detach them"):
        resolve("triton", make_tensors(), parameters)
    with torch.no_grad():
        assert resolve("triton", make_tensors(), parameters).fused


def test_no_triton_and_no_gpu_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda name: object())
    monkeypatch.setattr(backends, "_triton_interprets", lambda: False)
    with pytest.raises(ValueError, match="on the CPU: move them to a GPU"):
        resolve("triton", make_tensors())
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="Triton is not installed"):
        resolve("triton", make_tensors())


def test_the_interpreter_is_asked() -> None:
    triton = pytest.importorskip("triton")
    assert backends._triton_interprets() is triton.knobs.runtime.interpret


@pytest.mark.usefixtures("interpreted")
def test_what_surrounds_a_call_launches_where_the_call_does() -> None:
    assert uses_triton(make_tensors(), "triton")
    assert uses_triton(make_tensors("meta"), "auto")
    for impl in ("auto", "eager", "reference"):
        assert not uses_triton(make_tensors(), impl)
