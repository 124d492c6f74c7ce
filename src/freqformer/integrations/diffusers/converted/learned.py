"""What a converted layer has learned: gates and router of its LOW branch, and changes of its
projections.

It lies outside of the model that it was learned for, whose weights and state dict stay as they are.
Shape legend: B batch, N video tokens, C channels, H heads, R rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from torch import Tensor, nn

from freqformer.config import Band
from freqformer.ops.parameters import BranchGates
from freqformer.routing.network import WideLinear
from freqformer.routing.routers import TimestepRouter, branch_weights

Change = Literal["lora", "full"]
OWN = Band.HIGH.value
"""Whose logits weigh the own band, HIGH or MID: all heads of an adapter have the same."""
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
"""Of an attention layer of diffusers, those that its class has."""


class LowRank(nn.Module):
    """What LoRA adds to a linear layer (Hu et al., arXiv 2106.09685): zero at first.

    Its weights have the names that PEFT gives them.

    Args:
        inputs, outputs: of the layer.
        rank: R.
    """

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.lora_A = WideLinear(inputs, rank, bias=False)
        self.lora_B = WideLinear(rank, outputs, bias=False)
        nn.init.zeros_(self.lora_B.weight)

    def projected(self, own: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """The layer with what is added."""

        def adapted(x: Tensor) -> Tensor:
            out = own(x)
            return out + self.lora_B(self.lora_A(x)).to(out.dtype)

        return adapted


class Replacement(WideLinear):
    """A linear layer in place of the model's own, with its weights at first."""

    def projected(self, own: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """Itself."""
        return self


class LearnedLayer(nn.Module):
    """What one converted layer has learned.

    At first its gates are zero, so that the layer computes what its window or tiles alone do.

    Args:
        channels: C, of the layer's input.
        heads: H.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.gates = WideLinear(channels, 2 * heads)
        self.router = TimestepRouter(heads)
        for parameter in (*self.gates.parameters(), *self.router.layers[-1].parameters()):
            nn.init.zeros_(parameter)
        self._changed: list[str] = []

    def change(self, name: str, own: nn.Module, kind: Change, rank: int) -> None:
        """Learn a change of one projection.

        Args:
            name: of the projection in its layer.
            own: the model's own.
            kind: `lora` adds a product of two matrices of that rank, `full` learns the whole
                matrix, from the own one.
            rank: R.
        """
        base: Any = getattr(own, "base_layer", own)  # behind LoRA of PEFT
        if kind == "lora":
            made: nn.Module = LowRank(base.in_features, base.out_features, rank)
        else:
            made = Replacement(base.in_features, base.out_features, base.bias is not None)
            if not base.weight.is_meta:
                made.load_state_dict(
                    {key: x.detach().float() for key, x in base.named_parameters()}
                )
        add_module(self, name, made)
        self._changed.append(name)

    def branch(self, video: Tensor, noise_level: Tensor) -> BranchGates:
        """The gates of the LOW branch.

        Args:
            video: (B, N, C), what the layer was given of the video.
            noise_level: (B,) in [0, 1], 1 is the most noise.
        """
        by_token = self.gates(video).unflatten(2, (2, self.heads))
        logits = self.router(None, noise_level)
        return BranchGates(by_token, branch_weights(logits, (OWN,) * self.heads))

    def view(self, layer: Any) -> Any:
        """The layer as its processor reads it, with the changed projections in place of its own."""
        if not self._changed:
            return layer
        changed = {
            name: self.get_submodule(name).projected(layer.get_submodule(name))  # type: ignore[operator]
            for name in self._changed
        }
        return LayerView(layer, changed)


class LayerView:
    """An attention layer, some of whose projections are others.

    Args:
        layer: of diffusers.
        changed: projections by their names in it.
    """

    def __init__(self, layer: Any, changed: Mapping[str, Callable[[Tensor], Tensor]]) -> None:
        self._layer = layer
        for name, projection in changed.items():
            if name == "to_out.0":
                self.to_out = [projection, *list(layer.to_out)[1:]]
            else:
                setattr(self, name, projection)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)


class LearnedLayers(nn.Module):
    """What the layers of one transformer have learned, by the layers' names.

    Args:
        layers: attention layers of the transformer by name.
        kind: how projections change, see `LearnedLayer.change`.
        rank: of `lora`.
    """

    def __init__(self, layers: Mapping[str, Any], kind: Change, rank: int) -> None:
        super().__init__()
        self._names = tuple(layers)
        for name, layer in layers.items():
            made = LearnedLayer(_inputs(layer), layer.heads)
            for projection in projections_of(layer):
                made.change(projection, layer.get_submodule(projection), kind, rank)
            add_module(self, name, made)

    def items(self) -> Iterator[tuple[str, LearnedLayer]]:
        """Each layer's, by its name, in order."""
        for name in self._names:
            yield name, self.get_submodule(name)  # type: ignore[misc]


def projections_of(layer: Any) -> list[str]:
    """The projections that an attention layer has, of `PROJECTIONS`."""
    return [
        name for name in PROJECTIONS if getattr(layer, name.partition(".")[0], None) is not None
    ]


def _inputs(layer: Any) -> int:
    """Channels that a layer is given."""
    query = layer.to_q
    return getattr(query, "base_layer", query).in_features


def add_module(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module at a dotted path, with plain modules on the way to it.

    Args:
        root: that the path begins in.
        path: like "blocks.0.attn1".
        module: to put there.
    """
    *way, last = path.split(".")
    for part in way:
        if not hasattr(root, part):
            root.add_module(part, nn.Module())
        root = getattr(root, part)
    root.add_module(last, module)
