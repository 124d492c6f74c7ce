"""The queue of the quality study: what is done and what is skipped, runs that stop and go on bit
for bit, weights that wait for their measurement, and processes that share the work."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.quality import __main__ as command_line
from benchmarks.quality import state, working
from benchmarks.quality import study as quality_study
from benchmarks.quality import trainer as quality_trainer
from benchmarks.quality.building import build
from benchmarks.quality.planning import START_SECONDS, listed, predicted_seconds
from benchmarks.quality.report import RESULTS
from benchmarks.quality.runs import How, Run
from benchmarks.quality.sizes import SIZES, STUDY, Size
from benchmarks.quality.study import execute, stopped_at
from benchmarks.quality.tasks import Task, combined, is_done, read_queue
from benchmarks.quality.trainer import Trainer
from benchmarks.quality.working import Places, work

from freqformer._files import FileError, read_json

TINY = Size(video=(4, 16, 16), layers=1, head_dim=16, batch=2, validation_clips=2)
CPU = torch.device("cpu")
QUEUE = Path(quality_study.__file__).parent / "queue.json"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny size by the name of the usual one, clips of two steps drawn at once, and a look at the
    clock after each."""
    monkeypatch.setattr(quality_trainer, "CHUNK_CLIPS", 4)
    monkeypatch.setattr(quality_trainer, "CHECK_STEPS", 1)
    monkeypatch.setitem(SIZES, "16k", TINY)


def tiny(name: str, seed: int = 0, steps: int = 5) -> Run:
    return Run(name, seed, steps, TINY)


class Clock:
    """The time is up once it was looked at so many times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.looks = 0
        monkeypatch.setattr(How, "over", property(lambda _: self.look()))

    def look(self) -> bool:
        self.looks -= 1
        return self.looks < 0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def without_times(result: dict[str, Any] | None) -> dict[str, Any]:
    assert result is not None
    left_out = ("seconds", "start_seconds", "step_ms", "calls")
    return {name: value for name, value in result.items() if name not in left_out}


@pytest.mark.parametrize("name", ["paper", "soft_routing"])
def test_a_run_that_stops_goes_on_with_the_same_bits(
    name: str, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`paper` draws random numbers at every step, which another user of them disturbs."""
    monkeypatch.setattr(quality_study, "validate", lambda *given: {"losses": {}})
    run, how = tiny(name), How(CPU, folder=tmp_path)
    clock.looks = 99
    whole = execute(run, how, keep=True)
    kept = tmp_path / state.KEPT / f"{run.stem}.safetensors"
    weights = state.read(kept, run.record).tensors
    kept.unlink()
    for steps in (1, 3):
        clock.looks = steps
        assert execute(run, how) is None
        torch.rand(7)
    assert stopped_at(run, tmp_path).exists()
    clock.looks = 99
    last = execute(run, how, keep=True)
    assert without_times(last) == without_times(whole)
    assert last is not None
    assert last["calls"] == 3
    again = state.read(kept, run.record).tensors
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[name], x) for name, x in weights.items())


def test_a_run_that_is_killed_goes_on_from_what_was_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality_study, "validate", lambda *given: {"losses": {}})
    run, how = tiny("paper"), How(CPU, folder=tmp_path)
    whole = execute(run, how)
    advance = Trainer.advance

    def killed(self: Trainer) -> None:
        if int(self.done) == 3:
            raise KeyboardInterrupt
        advance(self)

    monkeypatch.setattr(quality_study, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(Trainer, "advance", killed)
    with pytest.raises(KeyboardInterrupt):
        execute(run, how)
    monkeypatch.setattr(Trainer, "advance", advance)
    assert read_progress(run, tmp_path) == 3
    assert without_times(execute(run, how)) == without_times(whole)


def read_progress(run: Run, folder: Path) -> int:
    """Steps that a stopped run has done."""
    return state.read(stopped_at(run, folder), run.record).record["progress"]["steps"]


def test_what_stopped_is_of_one_run_and_whole(tmp_path: Path, clock: Clock) -> None:
    run, how = tiny("window"), How(CPU, folder=tmp_path)
    clock.looks = 1
    assert execute(run, how) is None
    path = stopped_at(run, tmp_path)
    with pytest.raises(FileError, match=r"is of a run with .*'seed': 0.* not .*'seed': 1.*remove"):
        state.read(path, replace(run, seed=1).record)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(FileError, match=r"can't be read .*: remove it, and the run begins anew"):
        execute(run, how)


def test_the_state_of_a_run_of_the_study_is_small() -> None:
    """Weights and two moments in float32; all else is little."""
    with torch.device("meta"):
        model = build(Run("soft_routing", 0, 1).variant, Size(), 0)
    assert 12 * sum(parameter.numel() for parameter in model.parameters()) < 150e6


def results_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.json"))


def test_a_queue_is_done_once_and_weights_wait_for_their_measurement(
    tmp_path: Path,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    measured = []

    def measure(model: Any, task: Task, how: How) -> dict[str, Any]:
        measured.append({name: x.clone() for name, x in state.weights_of(model).items()})
        return task.run.record

    kept, output = tmp_path / "state", tmp_path / "results"
    monkeypatch.setattr(command_line, "MEASURES", {"generated": measure})
    entry = {"variants": ["window", "gated_plain"], "seeds": [0], "steps": [2]}
    queue = tmp_path / "queue.json"
    measurement = {"do": "generated", "variants": ["window"], "steps": [2]}
    queue.write_text(json.dumps({"tasks": [entry | {"why": "a test"}, measurement]}))
    command = ["--queue", str(queue), "--state", str(kept), "--output", str(output)]
    command += ["--device", "cpu", "--commit", "abc"]
    clock.looks = 4  # before the first run and at its two steps, and before the second run
    assert command_line.main(command) == 0
    assert results_of(output) == ["window-2-0.json"]
    waiting = sorted(path.relative_to(kept).as_posix() for path in kept.rglob("*.safetensors"))
    names = ["stopped/window_and_low-2-0.safetensors", "weights/window-2-0.safetensors"]
    assert waiting == names
    clock.looks = 99
    assert command_line.main(command) == 0
    names = ["generated/window-2-0.json", "window-2-0.json", "window_and_low-2-0.json"]
    assert results_of(output) == names
    assert len(measured) == 1
    assert not list(kept.rglob("*.safetensors"))
    result = read_json(output / "window-2-0.json", remedy="")
    assert result["machine"]["commit"] == "abc"
    assert result["machine"]["command"].endswith(
        "python -m benchmarks.quality --variants window --seeds 0 --steps 2"
    )
    measured_by = read_json(output / "generated" / "window-2-0.json", remedy="")["machine"]
    assert measured_by["command"].endswith("--steps 2 --do generated")
    capsys.readouterr()
    assert command_line.main(command) == 0
    assert "generated of window-2-0 is there already" in capsys.readouterr().out
    assert len(measured) == 1


def test_a_model_without_kept_weights_is_trained_for_its_measurement(tmp_path: Path) -> None:
    task = Task("generated", tiny("window", steps=2))
    how = How(CPU, folder=tmp_path)
    first, again = working.trained_model(task, how), working.trained_model(task, how)
    assert first is not again
    pairs = zip(first.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


def test_results_say_their_rate_and_size_and_so_do_commands(tmp_path: Path) -> None:
    (task,) = combined(
        "train",
        ["window"],
        [1],
        {"steps": [2], "sizes": ["16k"], "learning_rates": [0.002]},
    )
    assert task.run.stem == "window-2-1-rate0.002"
    assert task.command.endswith("--steps 2 --rates 0.002")
    longer = Task("train", Run("window", 0, 10, SIZES["64k"]))
    assert longer.run.stem == "window-64k-10-0"
    assert longer.command.endswith("--steps 10 --tokens 64k")
    assert work([task], How(CPU), Places([tmp_path], {}), {}) == 0
    result = read_json(tmp_path / "window-2-1-rate0.002.json", remedy="")
    assert (result["learning_rate"], result["size"]) == (0.002, "16k")
    assert is_done(task, [tmp_path])
    assert not is_done(replace(task, run=replace(task.run, rate=0.001)), [tmp_path])


def test_old_results_count_by_todays_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "16k", STUDY)
    assert is_done(Task("train", Run("soft_routing", 0, 2800)), [RESULTS])
    assert is_done(Task("train", Run("window_and_low", 0, 450, SIZES["64k"])), [RESULTS])
    assert not is_done(Task("train", Run("soft_routing", 0, 2800, SIZES["64k"])), [RESULTS])
    assert not is_done(Task("generated", Run("soft_routing", 0, 2800)), [RESULTS])


def test_a_failed_run_does_not_stop_the_others_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(working, "execute", _failing("window"))
    tasks = [Task("train", tiny(name)) for name in ("window", "paper")]
    assert work(tasks, How(CPU), Places([tmp_path], {}), {}) == 1
    assert results_of(tmp_path) == ["paper-5-0.json"]
    assert "out of memory" in capsys.readouterr().err


def _failing(name: str) -> Any:
    def fake(run: Run, how: How, *, keep: bool) -> dict[str, Any]:
        if run.name == name:
            raise RuntimeError("out of memory")
        return _result(run)

    return fake


def test_a_result_in_another_folder_counts_as_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(working, "execute", _failing("nothing"))
    tasks = [Task("train", tiny(name)) for name in ("window", "paper")]
    earlier, output = tmp_path / "earlier", tmp_path / "output"
    assert work(tasks[:1], How(CPU), Places([earlier], {}), {}) == 0
    assert work(tasks, How(CPU), Places([output, earlier], {}), {}) == 0
    assert results_of(output) == ["paper-5-0.json"]


def test_processes_with_one_output_folder_share_the_runs_and_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = [Task("train", tiny(name)) for name in ("window", "paper")]
    done: list[str] = []
    places = Places([tmp_path], {}, processes=2)

    def shared(run: Run, how: How, *, keep: bool) -> dict[str, Any]:
        if run.name == "window":  # while it is under way, another process is started
            assert work(tasks, how, places, {}) == 0
        done.append(run.name)
        return _result(run)

    monkeypatch.setattr(working, "execute", shared)
    assert work(tasks, How(CPU), places, {}) == 0
    assert done == ["paper", "window"]
    said = capsys.readouterr().out
    assert "window-5-0 is being made by another process" in said
    assert "paper-5-0 is there already" in said
    assert read_json(tmp_path / "paper-5-0.json", remedy="")["processes"] == 2


def test_nothing_begins_when_the_time_is_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = Task("train", tiny("window"))
    assert work([task], How(CPU, end=0.0, folder=tmp_path), Places([tmp_path], {}), {}) == 0
    assert "window-5-0 waits: the time is up" in capsys.readouterr().out
    assert not results_of(tmp_path)


def test_a_compiled_run_trains_compiled_blocks_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []

    def compile_blocks(_: Any, **options: Any) -> None:
        # A compiler can't trace the type checks of tests.
        given.append(options)

    kind = type(build(tiny("window").variant, TINY, 0))
    monkeypatch.setattr(kind, "compile_repeated_blocks", compile_blocks)
    task = Task("train", tiny("window", steps=2))
    assert work([task], How(CPU, compiled=True), Places([tmp_path], {}), {}) == 0
    assert given == [{"fullgraph": True, "dynamic": False}]
    result = read_json(tmp_path / "window-2-0.json", remedy="")
    assert result["compiled"]
    assert result["machine"]["command"].endswith("--steps 2 --compile")


def test_the_committed_queue_is_by_value_and_has_reasons() -> None:
    written = read_json(QUEUE, remedy="")
    assert all(len(entry["why"]) > 15 for entry in written["tasks"])
    tasks = read_queue(QUEUE)
    assert len(set(tasks)) == len(tasks)
    rates = {task.run.rate for task in tasks if task.run.name == "dense"}
    assert rates == {0.0005, 0.001, 0.002, 0.004}
    assert {task.do for task in tasks} == {"train", "generated", "clips"}
    sizes = {task.run.size for task in tasks}
    assert sizes == {SIZES[name] for name in ("16k", "16k-wide", "64k")}


def test_a_queue_of_another_form_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "queue.json"
    for entry, message in (
        ({"seeds": [0]}, "variants are needed"),
        ({"variants": ["window"], "rate": 1}, "learning_rates are allowed"),
        ({"variants": ["window"], "do": "paint"}, "one of train, generated, clips"),
        ({"variants": ["nothing"]}, "variant is 'nothing'"),
        ({"variants": ["window"], "sizes": ["8k"]}, "sizes has '8k'"),
    ):
        path.write_text(json.dumps({"tasks": [entry]}))
        with pytest.raises(ValueError, match=message):
            read_queue(path)


def _result(run: Run) -> dict[str, Any]:
    losses = {"0.1": 0.5, "0.9": 0.3}
    return run.record | {"losses": losses, "step_ms": 5.0, "seconds": 100.0}


def test_the_predicted_time_is_the_variants_own_else_the_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SIZES, "16k", STUDY)
    results = [_result(Run("window", 0, 10)), _result(Run("soft_routing", 0, 10))]
    results[0]["step_ms"] = 40.0
    long = Task("train", Run("window", 1, 1000))
    assert predicted_seconds(long, results) == START_SECONDS + 40
    assert predicted_seconds(Task("train", Run("radial", 1, 1000)), results) == START_SECONDS + 5
    assert predicted_seconds(Task("train", Run("radial", 1, 9, SIZES["64k"])), results) is None
    for one in results:
        (tmp_path / f"{one['variant']}.json").write_text(json.dumps(one))
    tasks = [long, Task("train", Run("window", 0, 10)), Task("clips", Run("window", 1, 1000))]
    told = listed(tasks, [tmp_path]).splitlines()[1:]
    assert [line.split()[0] for line in told] == ["65", "?"]
    assert told[1].endswith("65 s  clips of window-1000-1")


def test_processes_get_the_same_command_and_their_failure_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []

    class Other:
        def __init__(self, command: list[str]) -> None:
            started.append(command)

        def wait(self) -> int:
            return 1

    monkeypatch.setattr(command_line.subprocess, "Popen", Other)
    monkeypatch.setattr(command_line, "work", lambda *given: 0)
    command = ["--device", "cpu", "--commit", "abc", "--processes", "3", "--state", str(tmp_path)]
    assert command_line.main(command) == 1
    assert [words[1:] for words in started] == [
        ["-m", "benchmarks.quality", *command, "--helper"]
    ] * 2
    assert command_line.main([*command, "--helper"]) == 0
    assert len(started) == 2
    with pytest.raises(SystemExit, match="processes is 0; numbers from 1 to 8"):
        command_line.main([*command, "--processes", "0"])
