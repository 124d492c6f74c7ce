"""The measured profile of this processor is one that loads and makes sense."""

from __future__ import annotations

from freqformer.simulate import scenario, simulate
from freqformer.simulate.model import processor
from freqformer.simulate.model.hardware import load_hardware


def test_the_measured_profile_loads_and_simulates(tmp_path, monkeypatch):
    monkeypatch.setattr(processor, "REPEATS", 1)
    path = tmp_path / "mine.json"
    path.write_text(processor.cpu_profile_text(), encoding="utf-8")
    machine = load_hardware(path)
    assert machine.element_size == 4
    assert machine.interconnect is None
    assert machine.memory_bytes > 1e9
    assert all(
        machine.sources[name]
        for name in ("matrix_flops", "vector_flops", "memory_bandwidth", "launch_s")
    )
    found = simulate(scenario("freqformer", path, 4096))
    assert found.scenario.machine.efficiency.transferred
    assert found.layer.seconds > 0
