"""Compiled blocks of models whose videos ranks share, against the same models as they are: errors
and numbers of graphs go to FOLDER/compiled-RANK.json. A script of `tests.support.ranks`, with the
backend's name."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from typing import Any

import torch
from tests.support.ranks import join
from tests.support.shared_layers import PAPER, SOFT, errors_of, gradients
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor.utils import run_fw_bw_and_get_code

from freqformer import FreqFormerConfig
from freqformer.distributed import exchange, make_mesh, parallelize
from freqformer.models.transformer import FreqFormerTransformer3DModel
from freqformer.routing import RoutingTable

CALLS = {
    torch.ops._c10d_functional.all_to_all_single.default: "start",
    torch.ops._c10d_functional.wait_tensor.default: "wait",
    torch.ops.aten.mm.default: "product",
    torch.ops.aten.addmm.default: "product",
}
TIMESTEPS = ((100.0, 900.0), (500.0, 40.0))
MODELS: dict[str, Any] = {
    "default": {"frequency": SOFT},
    "paper": {"frequency": PAPER},
    "mixed bands": {"frequency": replace(SOFT, routing="fixed", allocation=(0, 1, 2))},
    "table": {"frequency": SOFT},
    "dense": {"frequency": FreqFormerConfig.dense()},
}


def make(name: str, mesh: Any) -> Any:
    torch.manual_seed(0)
    model = FreqFormerTransformer3DModel(
        patch_size=(1, 2, 2), num_layers=2, num_attention_heads=3, attention_head_dim=8,
        **MODELS[name],
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    if name == "table":
        bands = torch.tensor([[[0, 1, 2], [2, 2, 1]], [[2, 2, 2], [0, 0, 2]]])
        model.set_routing_table(RoutingTable(bands, torch.full_like(bands, 2), SOFT.for_plan()))
    return parallelize(model.train(), mesh)


def output(model: Any, draw: torch.Generator, timesteps: tuple[float, ...]) -> torch.Tensor:
    clip = torch.randn(2, 3, 5, 8, 14, generator=draw)
    return model(clip, torch.tensor(timesteps), return_dict=False)[0]


def run(model: Any) -> dict[str, Any]:
    """Outputs at several timesteps, and all gradients."""
    draw = torch.Generator().manual_seed(1)
    found: dict[str, Any] = {}
    for count, timesteps in enumerate(TIMESTEPS):
        out = output(model, draw, timesteps)
        (out * torch.randn(out.shape, generator=draw)).sum().backward()
        found[f"output {count}"] = out.detach()
    # Compiled code gives zeros where eager code gives no gradient.
    wanted = {name: torch.zeros(()) if x is None else x for name, x in gradients(model).items()}
    return found | wanted


class Recorded:
    """A backend that runs graphs as they are, counts them, and notes what they call in order."""

    def __init__(self) -> None:
        self.graphs = 0
        self.calls: list[str] = []
        self._compile = aot_autograd(fw_compiler=self._note)

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.graphs += 1
        return self._compile(graph, inputs)

    def _note(self, graph: Any, inputs: Any) -> Any:
        self.calls.append(
            " ".join(CALLS[node.target] for node in graph.graph.nodes if node.target in CALLS)
        )
        return graph


def inductor_calls(model: Any) -> list[str]:
    """What Inductor's code calls in order, forward and backward."""
    _, codes = run_fw_bw_and_get_code(lambda: output(model, torch.Generator(), TIMESTEPS[0]))
    words = re.compile(
        r"(all_to_all_single|wait_tensor)[.]default\(|extern_kernels[.](?:add)?(mm)\("
    )
    names = {"all_to_all_single": "start", "wait_tensor": "wait", "mm": "product"}
    return [" ".join(names[x or y] for x, y in words.findall(code)) for code in codes]


def results_of(name: str, mesh: Any, backend: str) -> dict[str, Any]:
    expected = run(make(name, mesh))
    model = make(name, mesh)
    recorded: Any = Recorded() if backend == "aot" else CompileCounterWithBackend(backend)
    model.compile_repeated_blocks(backend=recorded, fullgraph=True, dynamic=False)
    error = max(errors_of(run(model), expected).values())
    if backend == "aot":
        return {"graphs": recorded.graphs, "calls": recorded.calls, "error": error}
    again = make(name, mesh)
    again.compile_repeated_blocks(backend=backend, fullgraph=True, dynamic=False)
    return {"graphs": recorded.frame_count, "calls": inductor_calls(again), "error": error}


if __name__ == "__main__":
    folder, rank, ranks = join()
    exchange.SPLIT_TOKENS = 40  # the output comes back in two messages
    mesh = make_mesh(cp=ranks, device_type="cpu")
    found = {name: results_of(name, mesh, sys.argv[4]) for name in sys.argv[5:]}
    (folder / f"compiled-{rank}.json").write_text(json.dumps(found), encoding="utf-8")
