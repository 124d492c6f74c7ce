"""The weights that a run trains: what its checkpoints hold, its optimizer moves and its average is
of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn


class TrainedWeights:
    """The parameters of a model that have gradients, where the others come from elsewhere.

    Has those methods of `nn.Module` by which runs are saved, read and averaged.

    Args:
        model: some of whose parameters are frozen.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names, as in the model, and parameters."""
        named = self._model.named_parameters()
        return ((name, parameter) for name, parameter in named if parameter.requires_grad)

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters."""
        return (parameter for _, parameter in self.named_parameters())

    def modules(self) -> Iterator[nn.Module]:
        """All parts of the model."""
        return self._model.modules()

    def state_dict(self) -> dict[str, Tensor]:
        """The parameters by name, without a copy."""
        return {name: parameter.detach() for name, parameter in self.named_parameters()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over the values of all parameters.

        Args:
            state: of the same names and shapes as `state_dict`.
        """
        for name, parameter in self.state_dict().items():
            parameter.copy_(state[name])


def weights_of(model: Any) -> Any:
    """What a run saves of a model: all of it, or its `TrainedWeights` where it has them."""
    return getattr(model, "weights", model)
