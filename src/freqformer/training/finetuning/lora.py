"""Low-rank additions (LoRA) to a transformer's linear layers, by PEFT.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from freqformer._optional import needs
from freqformer.integrations.diffusers.families import family_of
from freqformer.training.pipeline_config import PipelineConfig

ADAPTER = "default"
"""Name of the additions in the model."""
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


def add_lora(transformer: Any, settings: PipelineConfig) -> list[str]:
    """Freeze a transformer and add trained low-rank layers, in float32, that begin at zero.

    Args:
        transformer: of diffusers.
        settings: rank, alpha and targets.

    Returns: the names of the layers that got additions.

    Raises:
        ValueError: for a target that no linear layer's name ends with.
        MissingPackageError: PEFT is not installed.
    """
    with needs("lora"):
        from peft import LoraConfig

    targets = _targets(transformer, settings.targets)
    transformer.requires_grad_(False)
    alpha = settings.rank if settings.alpha is None else settings.alpha
    transformer.add_adapter(
        LoraConfig(
            r=settings.rank,
            lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT says int and takes any number
            target_modules=targets,
            init_lora_weights=True,
        ),
        ADAPTER,
    )
    with torch.no_grad():
        for parameter in transformer.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    return targets


def lora_state(
    transformer: Any, weights: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The additions by the names under which diffusers saves them, and their settings.

    Args:
        transformer: with additions.
        weights: theirs, by name in the transformer.
    """
    with needs("lora"):
        from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(transformer, weights, adapter_name=ADAPTER)
    plain = {name: tensor.contiguous() for name, tensor in state.items()}
    return plain, transformer.peft_config[ADAPTER].to_dict()


def _targets(transformer: nn.Module, endings: tuple[str, ...]) -> list[str]:
    """Whole names of linear layers."""
    linear = [name for name, part in transformer.named_modules() if isinstance(part, nn.Linear)]
    if not endings:
        layers = (name for name, _ in family_of(transformer).layers(transformer))
        wanted = {f"{layer}.{projection}" for layer in layers for projection in PROJECTIONS}
        return [name for name in linear if name in wanted]
    for ending in endings:
        if not any(_ends(name, ending) for name in linear):
            known = sorted({".".join(name.split(".")[2:]) or name for name in linear})
            raise ValueError(
                f"targets holds {ending!r}, and no linear layer's name ends with it; endings of"
                f" {', '.join(known)} are allowed"
            )
    return [name for name in linear if any(_ends(name, ending) for ending in endings)]


def _ends(name: str, ending: str) -> bool:
    return name == ending or name.endswith(f".{ending}")
