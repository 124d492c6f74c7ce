"""`freqformer doctor`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from freqformer.cli.console import errors

if TYPE_CHECKING:
    from freqformer.doctor import Check, Machine

CHECK_FAILED = 1
"""Exit code where a result is further from float64 than it may be."""


def doctor(
    device: Annotated[
        str | None,
        typer.Option(help="The device to look at; a GPU where there is one, else the CPU."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the same as JSON.")] = False,
) -> None:
    """Say what will run on this machine and why, and check a result against float64.

    The check is a small call of the default configuration, forward and backward: some seconds, and
    on a GPU the time that its kernels take to compile, once. The exit code is 1 where a result is
    wrong.

    \b
    Examples:
      freqformer doctor
      freqformer doctor --json > machine.json
      freqformer doctor --device cpu
    """
    from freqformer.cli.devices import chosen_device
    from freqformer.doctor import describe_machine, run_check

    chosen = chosen_device(device)
    machine = describe_machine(chosen)
    with errors.status("computing a small call, and the same in float64"):
        check = run_check(chosen)
    typer.echo(_json(machine, check) if as_json else _text(machine, check))
    if not check.good:
        raise typer.Exit(CHECK_FAILED)


def _json(machine: Machine, check: Check) -> str:
    import json
    from dataclasses import asdict

    results = [{**asdict(result), "good": result.good} for result in check.results]
    found = {**asdict(check), "results": results, "good": check.good}
    return json.dumps(_finite({"machine": asdict(machine), "check": found}), indent=2)


def _finite(value: Any) -> Any:
    """The same with None for numbers that JSON has no word for: those of a result that is NaN."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _text(machine: Machine, check: Check) -> str:
    return "\n".join([*_machine_lines(machine), "", *_check_lines(check)])


def _machine_lines(machine: Machine) -> list[str]:
    versions = [f"{name} {found or 'not installed'}" for name, found in machine.versions.items()]
    built = f"built for CUDA or HIP {machine.cuda}" if machine.cuda else "built for CPUs"
    lines = [
        f"FreqFormer   {machine.freqformer}, Python {machine.python}, {machine.system}",
        f"packages     {', '.join(versions)}; torch is {built}",
        f"tested       {machine.tested}",
    ]
    for gpu in machine.gpus:
        lines.append(
            f"GPU          {gpu.name}, {gpu.architecture}, {gpu.memory_gib:.0f} GiB, "
            f"{gpu.free_gib:.0f} free"
        )
    if not machine.gpus:
        lines.append("GPU          none that torch sees")
    choice = machine.choice
    lines.append(f"auto takes   impl={choice.impl!r} on {choice.device}")
    for name, reason in choice.refused.items():
        lines.append(f"  not {name:8} {reason}")
    if choice.block_sizes:
        lines.append(f"block sizes  {choice.block_sizes}")
    return lines


def _check_lines(check: Check) -> list[str]:
    speed = check.speed
    lines = [
        f"check        {check.impl}, {check.dtype}, on {check.device}; the first call took "
        f"{check.first_seconds:.1f} s"
    ]
    for result in check.results:
        mark = "ok  " if result.good else "FAIL"
        lines.append(
            f"  {mark} {result.name:10} error mean {result.error.mean:.2e} of "
            f"{result.allowed.mean:.2e} allowed, max {result.error.max:.2e} of "
            f"{result.allowed.max:.2e}"
        )
    lines += [
        f"speed        {speed.tokens:,} tokens {speed.grid}, {speed.heads} heads of "
        f"{speed.head_dim}",
        f"  forward  {speed.forward_ms:9.2f} ms, {_rate(speed.tokens, speed.forward_ms)}, "
        f"{speed.forward_tflops:.3g} useful TFLOP/s",
        f"  backward {speed.backward_ms:9.2f} ms, {_rate(speed.tokens, speed.backward_ms)}, "
        f"{speed.backward_tflops:.3g} useful TFLOP/s",
        f"result       {'right, within its limits' if check.good else 'WRONG: see FAIL above'}",
    ]
    return lines


def _rate(tokens: int, ms: float) -> str:
    return f"{tokens / ms * 1e3:,.0f} tokens/s"
