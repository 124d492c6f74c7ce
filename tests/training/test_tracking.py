"""A run's log in another tracker, which is a module of the same calls here."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.support.tiny_training import changed, losses, tiny_config


def fake(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, Any]]:
    """A module on the path that notes its calls."""
    (tmp_path / f"{name}.py").write_text("", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    calls: list[tuple[str, Any]] = []
    module: Any = ModuleType(name)
    module.__spec__ = __import__("importlib.util").util.find_spec(name)
    module.init = lambda **options: calls.append(("init", options))
    module.log = lambda values, step: calls.append(("log", (step, values)))
    module.finish = lambda: calls.append(("finish", None))
    monkeypatch.setitem(sys.modules, name, module)
    return calls


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_every_step_is_logged_and_a_resumed_run_goes_on(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fake(name, monkeypatch, tmp_path)
    config = changed(tiny_config(tmp_path / "run"), "run", tracker=name)
    first = losses(changed(config, "run", stop_after_seconds=1e-3))
    done = first + losses(config)
    assert [kind for kind, _ in calls] == ["init", "log", "finish", "init", "log", "log", "finish"]
    logged = [told for kind, told in calls if kind == "log"]
    assert [(step, values["loss"]) for step, values in logged] == done
    begun, again = (told for kind, told in calls if kind == "init")
    assert begun == again
    assert (begun["project"], begun["name"], begun["resume"]) == ("freqformer", "run", "allow")
    assert begun["config"]["run"]["max_steps"] == 3
    assert ("id" in begun) == (name == "wandb")


def test_it_ends_with_a_run_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake("wandb", monkeypatch, tmp_path)
    config = changed(tiny_config(tmp_path / "run"), "run", tracker="wandb", log_every=1)

    def fail(_report: Any) -> None:
        raise RuntimeError("stop")

    from freqformer.training.loop import train

    with pytest.raises(RuntimeError, match="stop"):
        train(config, on_step=fail)
    assert [kind for kind, _ in calls] == ["init", "log", "finish"]


def test_one_that_is_not_installed_is_refused_first(tmp_path: Path) -> None:
    config = changed(tiny_config(tmp_path / "run"), "run", tracker="trackio")
    with pytest.raises(ValueError, match="'trackio', which is not installed; pip install trackio"):
        losses(config)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="tracker is 'mlflow'; choose one of wandb, trackio"):
        changed(config, "run", tracker="mlflow")
