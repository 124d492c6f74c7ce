"""The FreqFormer video diffusion transformer.

Shape legend: B batch, C channels, F frames, H rows, W columns of the video; N tokens, L text
tokens.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from freqformer._older import current_settings, takes_old_settings
from freqformer._validate import check_kind
from freqformer.attention import DenseAttention, FreqAttention, make_attention
from freqformer.attention.inputs import check_timestep
from freqformer.config import FreqFormerConfig
from freqformer.distributed import ContextParallel, gather_tokens, shard_tokens
from freqformer.grid import Grid, TileLayout, tile_layout
from freqformer.models.blocks import Conditions, TimestepModulation, TransformerBlock, modulate
from freqformer.models.embeddings import patchify, place_waves, rotary_tables, unpatchify
from freqformer.models.loading import (
    align_parameters,
    check_complete,
    forgive_older,
    own_report,
    readable,
    vouch,
)
from freqformer.models.saved import NUM_TRAIN_TIMESTEPS, check_transformer_sizes
from freqformer.models.settings import check_settings, records_by_layer
from freqformer.ops.backends import ImplChoice
from freqformer.ops.tokens import TokenOrder, reorder
from freqformer.routing import RouterTraining, RoutingTable

LEAST_NOISE = 0.05
"""Noise level below which a predicted clip's velocity is not divided further (arXiv 2511.13720)."""


class FreqFormerTransformer3DModel(ModelMixin, ConfigMixin):
    """A video diffusion transformer whose self-attention heads each use the operator of one
    frequency band.

    It predicts the velocity noise - clip of a noisy clip (1 - t) * clip + t * noise, from pixels or
    from a VAE's latents. Tokens are put in tile order once at the entry and back once at the exit.

    `frequency_config` is the record that its layers were made with; `config`, which is saved, holds
    it as a dict.

    Args:
        in_channels: channels of the video or latent, and of the output.
        patch_size: (frames, rows, columns) that make one token.
        num_layers, num_attention_heads, attention_head_dim: size of the model; attention_head_dim
            even, from 6 up.
        cross_attention_dim: channels of text embeddings; None makes a model without text.
        frequency: what attention layers do, a `FreqFormerConfig` or a dict of its fields; None is
            `FreqFormerConfig()`. It may pin the tile, so that bands mean the same at every video
            size. `FreqFormerConfig.dense()` makes the same model with dense attention: to compare,
            or to be given a routing table after training (docs/calibration.md).
        layer_allocations: the bands of every layer's heads, in place of the record's `allocation`;
            None where all layers are alike.
        absolute_positions: whether a token is told its place in the whole video too. With rotary
            embedding alone it has to infer it from its distance to the borders, which takes long to
            learn. "space" tells the place in the frame alone, so that what a token is told does not
            depend on the video's length.
        prediction_type: what the last layer gives: `velocity`, or the clean `sample`, from which
            the velocity follows. Noise does not fit through a layer narrower than a patch, a clip
            does (Li and He, arXiv 2511.13720): take it for large patches.

    Raises:
        ValueError: for a value that does not fit, naming the argument.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["TransformerBlock"]
    _repeated_blocks: ClassVar[list[str]] = ["TransformerBlock"]
    # A choice steps where rounding differs, so routers keep their precision when a model is loaded
    # in half of it; gains are read in float32 by kernels.
    _keep_in_fp32_modules: ClassVar[list[str]] = ["router", "gains"]

    @takes_old_settings
    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        patch_size: Sequence[int] = (1, 4, 4),
        num_layers: int = 6,
        num_attention_heads: int = 6,
        attention_head_dim: int = 64,
        cross_attention_dim: int | None = None,
        frequency: FreqFormerConfig | dict | None = None,
        layer_allocations: Sequence | None = None,
        absolute_positions: bool | str = False,
        prediction_type: str = "velocity",
    ) -> None:
        super().__init__()
        check_settings(self.config)
        if not isinstance(frequency, FreqFormerConfig):
            frequency = FreqFormerConfig.from_dict(dict(frequency or {}))
        self.frequency_config = frequency
        # What is saved says what ran, whatever later versions take for a default.
        self.register_to_config(frequency=frequency.to_dict())
        self.patch_size = (patch_size[0], patch_size[1], patch_size[2])
        dim = num_attention_heads * attention_head_dim
        patch = in_channels * patch_size[0] * patch_size[1] * patch_size[2]
        self.proj_in = nn.Linear(patch, dim)
        self.time_modulation = TimestepModulation(dim)
        blocks = []
        for record in records_by_layer(frequency, layer_allocations, num_layers):
            layer = make_attention(dim, num_attention_heads, record)
            blocks.append(TransformerBlock(layer, cross_attention_dim))
        self.transformer_blocks = nn.ModuleList(blocks)
        self.proj_out = nn.Linear(dim, patch)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)
        self.gradient_checkpointing = False
        self.context: ContextParallel | None = None

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike | None, **kwargs: Any
    ) -> Any:
        """As diffusers' `ModelMixin.from_pretrained`, from safetensors only; a loaded model repeats
        the saved one's bits.

        Raises:
            ValueError: for files that are missing, damaged, or of another model.
        """
        place, report = pretrained_model_name_or_path, kwargs.pop("output_loading_info", False)
        folder = os.path.join(place, kwargs.get("subfolder") or "") if place is not None else ""
        with readable(place, kwargs.get("subfolder")), own_report():
            if os.path.isdir(folder):
                check_transformer_sizes(folder)
            kwargs |= {"output_loading_info": True, "use_safetensors": True}
            model, info = super().from_pretrained(place, **kwargs)  # type: ignore[misc]
        forgive_older(model, info)
        check_complete(place, info)
        for layer in model.attentions:
            layer.check_bands(layer.allocation, str(place))
        align_parameters(model)
        return (model, info) if report else model

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in diffusers; a config of an older version is taken in today's words, with a
        FutureWarning that names them."""
        return super().extract_init_dict(current_settings(config_dict), **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:  # type: ignore[override]
        """As diffusers' `ModelMixin.save_pretrained`, with a manifest of checksums beside the
        files."""
        super().save_pretrained(save_directory, **kwargs)
        if kwargs.get("is_main_process", True):
            vouch(save_directory, "transformer")

    @property
    def attentions(self) -> list[FreqAttention | DenseAttention]:
        """The self-attention of every layer."""
        return [block.attn1 for block in self.transformer_blocks]  # type: ignore[misc]

    @property
    def routing_logits(self) -> list[Tensor | None]:
        """The last forward pass' router logits (B, heads, 3) per layer; None where no router
        ran."""
        return [layer.router_logits for layer in self.attentions]

    @property
    def allocations(self) -> list[Tensor | None]:
        """The last forward pass' bands, int64 (B, heads), per layer; None before the first."""
        return [layer.allocation_used for layer in self.attentions]

    def set_router_training(self, mode: RouterTraining) -> None:
        """How routers learn in training mode: `off`, or with gradients from `all` branches or one
        `sampled`."""
        for layer in self.attentions:
            layer.set_router_training(mode)

    def set_flop_budget(self, budget: float | None) -> None:
        """Hold every layer's attention to this share of dense attention's FLOPs while routers do
        not learn."""
        for layer in self.attentions:
            layer.set_flop_budget(budget)

    def set_impl(self, impl: ImplChoice) -> None:
        """The code that every layer's attention runs, as in `frequency_attention`; for
        comparisons."""
        for layer in self.attentions:
            layer.set_impl(impl)

    def check_context(self, context: ContextParallel) -> None:
        """Nothing but a layer's heads limits the ranks that share a video."""

    def set_context(self, context: ContextParallel | None) -> None:
        """Share the tokens of every video with other ranks, which all call the model with the same
        video and get the whole result; see `freqformer.distributed.parallelize`, which tells the
        layers too."""
        self.context = context

    def set_dense(self, dense: bool) -> None:
        """Compute exact attention alone in every layer, without routers, gates and LOW branches,
        until set back."""
        for layer in self.attentions:
            layer.set_dense(dense)

    def set_routing_table(self, table: RoutingTable | None) -> None:
        """Use a frozen table in place of the routers; None goes back.

        Raises:
            ValueError: for a table of other layers or heads, of another model, or whose bands mean
                something else.
        """
        if table is not None:
            check_kind(
                "table",
                table,
                RoutingTable,
                "load one with RoutingTable.load, or make one with freeze",
            )
        if table is not None and table.shape[1] != len(self.attentions):
            raise ValueError(
                f"table has {table.shape[1]} layers; the model has {len(self.attentions)}: freeze "
                "a table from this model"
            )
        if table is not None:
            table.check_layers(self.attentions)
        for index, layer in enumerate(self.attentions):
            layer.set_routing_table(table, index)

    def grid_for(self, shape: Sequence[int]) -> Grid:
        """The token grid of an input whose last three extents are (F, H, W).

        Raises:
            ValueError: where the patch does not divide it.
        """
        extents = tuple(int(extent) for extent in shape[-3:])
        if len(extents) != 3 or any(
            e < p or e % p for e, p in zip(extents, self.patch_size, strict=True)
        ):
            raise ValueError(
                f"the input's (frames, height, width) is {extents}; multiples of patch_size "
                f"{self.patch_size} are "
                "allowed: crop or resize the video"
            )
        frames, height, width = (e // p for e, p in zip(extents, self.patch_size, strict=True))
        return _one_grid(frames, height, width)

    def routing_costs(self, grid: Grid) -> tuple[float, float, float, float]:
        """Useful FLOPs of one head as LOW, MID, HIGH and DENSE, for `routing_loss`."""
        return self.attentions[0].band_costs(grid)

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Predict the flow velocity.

        Args:
            hidden_states: noisy video or latent (B, C, F, H, W), of any size that `patch_size`
                divides.
            timestep: (B,) from 0 (clean) to 1000 (noise). The range is checked on the CPU; a GPU
                would have to be waited for.
            encoder_hidden_states: text embeddings (B, L, cross_attention_dim), for a model that has
                one.
            encoder_attention_mask: bool or 0/1 integers (B, L), true where a text token may be
                seen.
            return_dict: whether to return an object with `sample`, or a tuple.

        Returns: the velocity noise - clip, in the shape of hidden_states.

        Raises:
            ValueError: for shapes or dtypes that do not fit, naming the argument.
        """
        self._check(hidden_states, timestep, encoder_hidden_states, encoder_attention_mask)
        grid = self.grid_for(hidden_states.shape)
        layer = self.attentions[0]
        layout = tile_layout(grid, layer.configs[0].tile)
        order: TokenOrder = "raster" if layer.exact and self.context is None else "tile"
        noise_level = timestep.float() / NUM_TRAIN_TIMESTEPS
        modulation, output_modulation = self.time_modulation(noise_level, hidden_states.dtype)
        given = Conditions(
            grid=grid,
            timestep=noise_level,
            modulation=modulation,
            rotary=rotary_tables(
                grid, layout.tile if order == "tile" else None, layer.head_dim, hidden_states.device
            ),
            token_order=order,
            text=encoder_hidden_states,
            text_mask=None if encoder_attention_mask is None else encoder_attention_mask.bool(),
        )
        patches = reorder(patchify(hidden_states, self.patch_size), layout, "raster", order)
        tokens = self.proj_in(self._shared(patches, layout))
        if told := self.config["absolute_positions"]:
            tile = layout.tile if order == "tile" else None
            places = place_waves(grid, tile, layer.dim, hidden_states.device, time=told is True)
            tokens = tokens + self._shared(places[None], layout).to(tokens.dtype)
        for block in self.transformer_blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                tokens = self._gradient_checkpointing_func(block, tokens, given)  # type: ignore[misc]
            else:
                tokens = block(tokens, given)
        patches = self.proj_out(modulate(tokens, *output_modulation.unbind(1)))
        if self.context is not None:
            patches = gather_tokens(patches, layout, self.context)
        sample = unpatchify(reorder(patches, layout, order, "raster"), grid, self.patch_size)
        if self.config["prediction_type"] == "sample":
            noisy, divisor = (
                hidden_states.float(),
                noise_level.clamp_min(LEAST_NOISE)[:, None, None, None, None],
            )
            sample = ((noisy - sample.float()) / divisor).to(sample.dtype)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def _shared(self, tokens: Tensor, layout: TileLayout) -> Tensor:
        """This rank's tokens (B, n, ...) of all (B, N, ...) in tile order; all where none shares
        them."""
        return tokens if self.context is None else shard_tokens(tokens, layout, self.context)

    def _check(
        self, video: Tensor, timestep: Tensor, text: Tensor | None, mask: Tensor | None
    ) -> None:
        channels = self.config["in_channels"]
        text_dim = self.config["cross_attention_dim"]
        check_kind(
            "hidden_states",
            video,
            Tensor,
            "pass a video or latent (batch, channels, frames, height, width)",
        )
        remedy = "make one timestep a sample, torch.full((batch,), t, device=...)"
        check_kind("timestep", timestep, Tensor, remedy)
        if (
            video.ndim != 5
            or video.shape[1] != channels
            or tuple(timestep.shape) != tuple(video.shape[:1])
        ):
            remedy = "expand the timestep over the batch"
            if video.ndim == 5 and video.shape[1] != channels:
                remedy = f"the model's in_channels is {channels}"
                if channels in video.shape[2:]:
                    place = list(video.shape).index(channels, 2)
                    remedy = f"the axes look swapped, movedim({place}, 1) puts channels second"
            elif video.ndim == 4:
                remedy = "unsqueeze(0) makes a batch of one"
            raise ValueError(
                f"hidden_states has shape {tuple(video.shape)} and timestep "
                f"{tuple(timestep.shape)}; (batch, {channels}, "
                f"frames, height, width) and (batch,) are allowed: {remedy}"
            )
        check_timestep(
            timestep, NUM_TRAIN_TIMESTEPS, "pass the scheduler's timesteps, as in diffusers"
        )
        if video.dtype != self.dtype and not torch.is_autocast_enabled(video.device.type):
            raise ValueError(
                f"hidden_states has dtype {video.dtype}; the model's {self.dtype} is allowed: "
                "convert either"
            )
        if (text is None) != (text_dim is None):
            raise ValueError(
                f"encoder_hidden_states is {'None' if text is None else tuple(text.shape)} and the "
                "model's cross_attention_dim "
                f"{text_dim}; both or neither are allowed: pass embeddings, or make the model for "
                "them"
            )
        if text is not None and (
            text.ndim != 3 or text.shape[0] != video.shape[0] or text.shape[2] != text_dim
        ):
            raise ValueError(
                f"encoder_hidden_states has shape {tuple(text.shape)}; ({video.shape[0]}, tokens, "
                f"{text_dim}) is allowed"
            )
        expected = None if text is None else tuple(text.shape[:2])
        if mask is not None and (tuple(mask.shape) != expected or mask.is_floating_point()):
            raise ValueError(
                f"encoder_attention_mask is {mask.dtype} {tuple(mask.shape)}; bool or 0/1 integers "
                f"{expected} are allowed: "
                "true where a text token may be seen"
            )


@lru_cache(maxsize=64)
def _one_grid(frames: int, height: int, width: int) -> Grid:
    """The grid, the same object at every call: a compiled block is compiled again for another
    one."""
    return Grid(frames, height, width)
