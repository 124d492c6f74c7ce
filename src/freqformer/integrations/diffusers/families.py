"""The transformers that are known, and how they are found in what a user passes."""

from __future__ import annotations

from typing import Any

from torch import nn

from freqformer.integrations.diffusers import (
    cogvideox,
    cosmos,
    framepack,
    helios,
    hunyuan_video,
    hunyuan_video15,
    ltx,
    ltx2,
    minimax_h3,
    skyreels_v2,
    wan,
    wan_animate,
    wan_vace,
)
from freqformer.integrations.diffusers.processor import Family
from freqformer.integrations.diffusers.ulysses import class_name

FAMILIES = {
    "WanTransformer3DModel": wan.FAMILY,
    "WanVACETransformer3DModel": wan_vace.FAMILY,
    "WanAnimateTransformer3DModel": wan_animate.FAMILY,
    "HunyuanVideoTransformer3DModel": hunyuan_video.FAMILY,
    "HunyuanVideo15Transformer3DModel": hunyuan_video15.FAMILY,
    "LTXVideoTransformer3DModel": ltx.FAMILY,
    "LTX2VideoTransformer3DModel": ltx2.FAMILY,
    "MiniMaxH3Transformer3DModel": minimax_h3.FAMILY,
    "CogVideoXTransformer3DModel": cogvideox.FAMILY,
    "CosmosTransformer3DModel": cosmos.FAMILY,
    "HunyuanVideoFramepackTransformer3DModel": framepack.FAMILY,
    "HeliosTransformer3DModel": helios.FAMILY,
    "SkyReelsV2Transformer3DModel": skyreels_v2.FAMILY,
}
WRAPPED = {"module": "a parallel wrapper", "_orig_mod": "a compiled module"}
"""Where other libraries keep a model that they wrap."""
LOAD = "call pipe.load_components() first, which loads what a modular pipeline is made of"
RECIPE = (
    "another family is one file, by the recipe in CONTRIBUTING.md, 'One more family of diffusers "
    "models'"
)


def family_of(transformer: Any) -> Family:
    """How this transformer is read.

    Raises:
        ValueError: for one that is not known.
    """
    return FAMILIES[class_name(transformer)]


def blocks_of(transformer: Any) -> list[nn.Module]:
    """The blocks that hold its self-attention, in order.

    Raises:
        ValueError: for a transformer that is not known.
    """
    names = [name.rpartition(".")[0] for name, _ in family_of(transformer).layers(transformer)]
    return [transformer.get_submodule(name) for name in dict.fromkeys(names)]


def is_pipeline(model: Any) -> bool:
    """Whether it is one of diffusers' pipelines, modular ones included."""
    return isinstance(getattr(model, "components", None), dict)


def transformers_of(model: Any) -> dict[str, nn.Module]:
    """The known transformers of a pipeline by their names in it, or the transformer itself as "".

    Args:
        model: a pipeline or a transformer of diffusers.

    Raises:
        ValueError: where there is none, naming what is supported and the remedy.
    """
    name = class_name(model)
    if name in FAMILIES:
        return {"": model}
    known = ", ".join(FAMILIES)
    if is_pipeline(model):
        found = {
            part: held for part, held in model.components.items() if class_name(held) in FAMILIES
        }
        if found:
            return found
        parts = _modules(model)
        remedies = [_remedy(part, f"pipe.{place}") for place, part in parts.items()]
        unloaded = not parts and hasattr(model, "load_components")
        remedy = next(filter(None, remedies), LOAD if unloaded else RECIPE)
        held = {place: type(part).__name__ for place, part in parts.items()}
        raise ValueError(
            f"pipe_or_transformer is a {name} with {held or 'no model'}; pipelines with one of "
            f"{known} are allowed: {remedy}"
        )
    remedy = _remedy(model, "it") or RECIPE
    raise ValueError(
        f"pipe_or_transformer is a {name}; a pipeline, or one of {known} is allowed: {remedy}"
    )


def _modules(pipeline: Any) -> dict[str, nn.Module]:
    return {
        part: held
        for part, held in pipeline.components.items()
        if isinstance(held, nn.Module) and "transformer" in part
    }


def _remedy(model: Any, place: str) -> str | None:
    """What to do where the model is another library's wrapper, or this library's own."""
    for attribute, what in WRAPPED.items():
        if type(getattr(model, attribute, None)).__name__ in FAMILIES:
            return f"{place} is {what}: pass its .{attribute}, and wrap it afterwards"
    if type(model).__name__ == "FreqFormerTransformer3DModel":
        return "this library's own model takes a table by set_routing_table(table)"
    return None
