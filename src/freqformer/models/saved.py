"""What a saved pipeline says of itself, checked before diffusers acts on it.

diffusers imports the classes that `model_index.json` names, and builds a model of any size that
`config.json` asks for. Here a folder may name known classes alone, and sizes that its weights have.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from freqformer._files import FileError, read_json
from freqformer._older import current_settings
from freqformer.models.loading import check_complete
from freqformer.models.text import ENCODERS

INDEX_NAME = "model_index.json"
CONFIG_NAME = "config.json"
SCHEDULER_CONFIG = "scheduler_config.json"
TRANSFORMER = ["freqformer.models.transformer", "FreqFormerTransformer3DModel"]
SCHEDULER = ["diffusers", "FlowMatchEulerDiscreteScheduler"]
TOKENIZER = r"\w*Tokenizer(s?Backend|Fast)?"
"""Names of tokenizers' classes."""
RUNS_CODE = ("custom_pipeline", "custom_revision", "trust_remote_code")
"""Arguments of diffusers that let a folder or repository run code of its own."""
HUB_ARGUMENTS = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "proxies",
    "revision",
    "token",
    "variant",
)
NUM_TRAIN_TIMESTEPS = 1000
"""Timesteps of pure noise, as diffusers' schedulers count them."""
SWITCHES = (
    "invert_sigmas",
    "stochastic_sampling",
    "use_beta_sigmas",
    "use_exponential_sigmas",
    "use_karras_sigmas",
)
"""Fields of a scheduler that are true or false."""
MOST_SHIFT = 1000.0
"""Largest timestep shift; models have 1 to 17."""
MOST_CHANNELS = 1 << 20
"""Largest number in the config of a VAE."""
REMEDY = "give a folder that FreqFormerPipeline.save_pretrained wrote, or save it again"


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments of `from_pretrained` that would run code from a folder, or read a pickle.

    Raises:
        ValueError: naming the argument.
    """
    for name in RUNS_CODE:
        if arguments.get(name):
            raise ValueError(
                f"{name} is {arguments[name]!r}; it is not allowed, since loading a model runs no "
                "code "
                "from its folder: leave it out"
            )
    if not arguments.get("use_safetensors", True):
        raise ValueError(
            f"use_safetensors is {arguments['use_safetensors']!r}; True is allowed, since pickled "
            "weights can run code: convert them to safetensors"
        )


def check_pipeline_folder(
    folder: str | os.PathLike, class_names: set[str], passed: set[str]
) -> None:
    """Refuse a pipeline folder that names other classes than this library's and diffusers' own.

    Args:
        folder: as `save_pretrained` writes it.
        class_names: of the pipeline that may be asked for.
        passed: components that the caller has made and passes.

    Raises:
        ValueError: naming the file, what it holds and what is allowed.
    """
    path = Path(folder) / INDEX_NAME
    index = read_json(path, remedy=REMEDY)
    name = index.get("_class_name")
    if not isinstance(name, str) or name not in class_names:
        raise FileError(
            f"{path}: _class_name is {name!r}; {' or '.join(sorted(class_names))} is allowed: "
            f"{REMEDY}"
        )
    parts = {key: value for key, value in index.items() if not key.startswith("_")}
    known = {
        "transformer": TRANSFORMER,
        "scheduler": SCHEDULER,
        "vae": ["diffusers", "a video VAE"],
        "text_encoder": ["transformers", "a text encoder"],
        "tokenizer": ["transformers", "a tokenizer"],
    }
    for key, value in parts.items():
        absent = value == [None, None] and (key in OPTIONAL or key in passed)
        fits = key in OPTIONAL and OPTIONAL[key](value)
        if key in known and (absent or value == known[key] or fits):
            continue
        wanted = known.get(key, "no such component")
        raise FileError(
            f"{path}: {key} is {value!r}; {wanted} is allowed: {REMEDY}, or load parts of other "
            "classes "
            "yourself and make FreqFormerPipeline(transformer, scheduler, vae) of them"
        )
    missing = sorted({"transformer", "scheduler"} - set(parts) - passed)
    if missing:
        raise FileError(f"{path} names no {' and no '.join(missing)}: {REMEDY}")
    if "scheduler" not in passed:
        path = Path(folder) / "scheduler" / SCHEDULER_CONFIG
        try:
            check_schedule(read_json(path, remedy=REMEDY))
        except ValueError as error:
            raise FileError(f"{path}: {error}") from error
    if "vae" in parts and parts["vae"] != [None, None] and "vae" not in passed:
        check_vae_sizes(Path(folder) / "vae")


def check_schedule(config: Mapping[str, Any]) -> None:
    """Refuse a scheduler whose timesteps aren't those that the model was trained at.

    Args:
        config: of a `FlowMatchEulerDiscreteScheduler`.

    Raises:
        ValueError: naming the field.
    """
    steps, dynamic = (
        config.get("num_train_timesteps", 1000),
        config.get("use_dynamic_shifting", False),
    )
    if steps != NUM_TRAIN_TIMESTEPS or dynamic is not False:
        raise ValueError(
            f"scheduler has num_train_timesteps={steps} and use_dynamic_shifting={dynamic}; "
            f"{NUM_TRAIN_TIMESTEPS} and False are allowed: set `shift` instead"
        )
    for name in SWITCHES:
        if not isinstance(config.get(name, False), bool | None):
            raise ValueError(f"scheduler has {name}={config[name]!r}; true and false are allowed")
    terminal = config.get("shift_terminal")
    if terminal is not None and not (_is_number(terminal) and 0 <= terminal < 1):
        raise ValueError(
            f"scheduler has shift_terminal={terminal!r}; null and numbers from 0 to below 1 are "
            "allowed"
        )
    shift = config.get("shift", 1.0)
    if not _is_number(shift) or not 0 < shift <= MOST_SHIFT:
        raise ValueError(
            f"scheduler has shift={shift!r}; numbers above 0 and up to {MOST_SHIFT:g} are allowed"
        )


def _is_vae(value: Any) -> bool:
    """Whether an entry of the index names a VAE that diffusers itself defines."""
    if (
        not isinstance(value, list)
        or len(value) != 2
        or not all(isinstance(part, str) for part in value)
    ):
        return False
    library, name = value
    if library != "diffusers" or not re.fullmatch(r"(Asymmetric)?Autoencoder\w*", name, re.ASCII):
        return False
    import diffusers

    return isinstance(getattr(diffusers, name, None), type)


def _is_text_encoder(value: Any) -> bool:
    """Whether an entry of the index names a text encoder of transformers."""
    return isinstance(value, list) and value in [["transformers", one] for one in ENCODERS.values()]


def _is_tokenizer(value: Any) -> bool:
    """Whether an entry of the index names a tokenizer of transformers, which finds its class by the
    folder itself."""
    if not isinstance(value, list) or len(value) != 2 or value[0] != "transformers":
        return False
    return isinstance(value[1], str) and bool(re.fullmatch(TOKENIZER, value[1], re.ASCII))


OPTIONAL = {"vae": _is_vae, "text_encoder": _is_text_encoder, "tokenizer": _is_tokenizer}
"""Parts that a pipeline may lack, and whether an entry of the index names one."""


def check_transformer_sizes(folder: str | os.PathLike) -> None:
    """Refuse a transformer's config that asks for another size than its weights have.

    Without this, a wrong number would make a model of any size before the weights are looked at.

    Args:
        folder: with `config.json` and safetensors files.

    Raises:
        ValueError: naming the file, what it says and what the weights have.
    """
    path = Path(folder) / CONFIG_NAME
    config = current_settings(read_json(path, remedy=REMEDY), warn=False)
    shapes = tensor_shapes(Path(folder))
    layers = {name.split(".")[1] for name in shapes if re.match(r"transformer_blocks\.\d+\.", name)}
    told = {"num_layers": config.get("num_layers", len(layers))}
    found = {"num_layers": len(layers)}
    if len(entry := shapes.get("proj_in.weight", ())) == 2:
        width, patch = entry
        sizes = (config.get("num_attention_heads", 6), config.get("attention_head_dim", 64))
        told["num_attention_heads * attention_head_dim"] = _product(sizes)
        found["num_attention_heads * attention_head_dim"] = width
        sides = config.get("patch_size", [1, 4, 4])
        if isinstance(sides, list):
            told["in_channels * patch_size"] = _product((config.get("in_channels", 3), *sides))
            found["in_channels * patch_size"] = patch
    for name, value in told.items():
        # What is no number, the model's own constructor refuses.
        if isinstance(value, int) and shapes and value != found[name]:
            raise FileError(
                f"{path}: {name} is {value}, and the folder holds weights of another model with "
                f"{found[name]}: keep config.json and the weights that were saved with it together"
            )


def check_vae_sizes(folder: Path) -> None:
    """Refuse a VAE's config with numbers that no VAE has, or more layers than its weights.

    Raises:
        ValueError: naming the file and the field.
    """
    path = folder / CONFIG_NAME
    tensors = len(tensor_shapes(folder))
    for name, value in read_json(path, remedy=REMEDY).items():
        counts = name.startswith("num_") or name.endswith("layers_per_block")
        most = tensors if counts and tensors else MOST_CHANNELS
        for number in _numbers(value):
            if not abs(number) <= most:
                raise FileError(
                    f"{path}: {name} holds {number}; {most} at most is allowed: {REMEDY}"
                )


def check_vae_weights(folder: Path, vae: nn.Module) -> None:
    """Refuse a loaded VAE some of whose weights its folder lacks; diffusers would leave them empty
    or random.

    Raises:
        ValueError: naming the folder and weights.
    """
    found, wanted = set(tensor_shapes(folder)), set(vae.state_dict())
    check_complete(folder, {"missing_keys": wanted - found, "unexpected_keys": found - wanted})


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in a folder's safetensors files, by name; nothing of it is loaded.

    Raises:
        ValueError: for a file that can't be read as safetensors.
    """
    from safetensors import safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118  it is no mapping
                    shapes[name] = tuple(file.get_slice(name).get_shape())
        except Exception as error:  # safetensors raises its own error, and what its parser raises
            raise FileError(f"{path} can't be loaded ({error}): {REMEDY}") from error
    return shapes


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _product(numbers: tuple[Any, ...]) -> int | None:
    """The product of integers, None where one isn't."""
    if any(isinstance(number, bool) or not isinstance(number, int) for number in numbers):
        return None
    return math.prod(numbers)


def _numbers(value: Any) -> list[float]:
    """All numbers in a value of JSON."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return []
    if isinstance(value, int | float):
        return [value]
    inner = value.values() if isinstance(value, dict) else value
    return [number for part in inner for number in _numbers(part)]
