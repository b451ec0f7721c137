"""The InternVL3.5 network, assembled from transformers' vision model and any transformers causal LM.

Source: InternVL3.5 (arXiv 2508.18265), section 2.1. Parameter names are those of the published Hugging Face
checkpoints: ``vision_tower.*``, ``multi_modal_projector.*``, ``language_model.model.*``, ``language_model.lm_head.*``.
Shape suffixes: B batch, T tokens, D hidden, N tiles, P patches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, InternVLConfig, InternVLVisionModel, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.utils import ModelOutput

from model.families.interface import HiddenStates, Inputs, Parts
from model.flash.images import Tiling, choose_grid, read_image, tile_image
from model.flash.processor import IMAGENET_MEAN, IMAGENET_STD
from model.objectives.load_balancing import load_balancing

TILES_AT_ONCE = 64
"""Tiles that ``encode_batch`` sends through the tower together: 64 rows of large images have 832 of them."""


def pixel_unshuffle(x_NHWD: Tensor, ratio: float) -> Tensor:
    """Trade resolution for channels: [N, H, W, D] to [N, H * ratio, W * ratio, D / ratio**2].

    Every output vector is the row-major gather of its k x k neighbourhood, k = 1 / ratio.
    """
    n, height, width, depth = x_NHWD.shape
    k = round(1 / ratio)
    x = x_NHWD.reshape(n, height // k, k, width // k, k, depth)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(n, height // k, width // k, k * k * depth)


def normalise(tiles_NSSC: Tensor) -> Tensor:
    """uint8 tiles [N, S, S, 3] to float pixel values [N, 3, S, S], ImageNet mean and deviation."""
    mean = torch.tensor(IMAGENET_MEAN, device=tiles_NSSC.device)
    std = torch.tensor(IMAGENET_STD, device=tiles_NSSC.device)
    return ((tiles_NSSC.float() / 255 - mean) / std).permute(0, 3, 1, 2)


class Projector(nn.Module):
    """LayerNorm, Linear, GELU, Linear: from unshuffled ViT features to language embeddings."""

    def __init__(self, config: InternVLConfig) -> None:
        super().__init__()
        width = config.vision_config.hidden_size * round(1 / config.downsample_ratio) ** 2
        hidden = config.text_config.hidden_size
        self.layer_norm = nn.LayerNorm(width)
        self.linear_1 = nn.Linear(width, hidden)
        self.act = ACT2FN[config.projector_hidden_act]
        self.linear_2 = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] to [..., hidden]."""
        return self.linear_2(self.act(self.linear_1(self.layer_norm(x))))


@dataclass
class ImageFeatures:
    """What the language half needs of one image.

    Attributes:
        features: [rows, D] in the model's dtype.
        rows_per_tile: rows of each tile, thumbnail last; their sum is ``rows``.
        grid: (columns, rows) of the tile grid, the thumbnail not counted.
        weights_version: of the vision half that made them.
        key: content address (weights, tiling and image bytes); equal keys mean equal features.
    """

    features: Tensor
    rows_per_tile: list[int]
    grid: tuple[int, int]
    weights_version: str
    key: str


class FlashModel(nn.Module):
    """ViT, pixel unshuffle, projector and language model; either half may be absent.

    Args:
        config: transformers' configuration of the whole.
        tiling: how images become tiles.
        part: which half to build.

    Attributes:
        flash_tensors: router and second projector of a Flash checkpoint, saved as they were loaded.
    """

    def __init__(self, config: InternVLConfig, tiling: Tiling, part: str = "all", weights_version: str = "") -> None:
        super().__init__()
        self.config = config
        self.tiling = tiling
        self.weights_version = weights_version
        self.flash_tensors: dict[str, Tensor] = {}
        self.vision_tower: nn.Module | None = None
        self.multi_modal_projector: Projector | None = None
        self.language_model: PreTrainedModel | None = None
        if part in ("all", "vision"):
            self.vision_tower = InternVLVisionModel._from_config(config.vision_config)
            self.multi_modal_projector = Projector(config)
        if part in ("all", "language"):
            self.language_model = AutoModelForCausalLM.from_config(config.text_config)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def tile_features(self, tiles_NSSC: Tensor) -> Tensor:
        """uint8 tiles [N, S, S, 3] to features [N, rows per tile, D]."""
        pixels = normalise(tiles_NSSC.to(self.device)).to(self.dtype)
        patches_NPD = self.vision_tower(pixel_values=pixels).last_hidden_state[:, 1:]
        n, patches, depth = patches_NPD.shape
        side = round(patches**0.5)
        unshuffled = pixel_unshuffle(patches_NPD.reshape(n, side, side, depth), self.config.downsample_ratio)
        return self.multi_modal_projector(unshuffled.flatten(1, 2))

    def embed(self, ids_BT: Tensor, features_RD: Tensor | None) -> Tensor:
        """Token embeddings [B, T, D] with visual rows laid over the ``<IMG_CONTEXT>`` positions in order.

        Raises:
            ValueError: rows and positions differ in number.
        """
        embeds = self.language_model.get_input_embeddings()(ids_BT)
        mask = ids_BT == self.config.image_token_id
        rows = 0 if features_RD is None else len(features_RD)
        if int(mask.sum()) != rows:
            raise ValueError(f"{rows} visual rows for {int(mask.sum())} image tokens")
        if not rows:
            return embeds
        return embeds.masked_scatter(mask.unsqueeze(-1), features_RD.to(embeds.dtype))

    def language_inputs(self, ids_BT: Tensor, rows_RD: Tensor | None) -> dict[str, Tensor]:
        """What the language model takes: ``embed``'s token embeddings with the visual rows over their placeholders."""
        return {"inputs_embeds": self.embed(ids_BT, rows_RD)}

    def media_rows(self, media: dict[str, Tensor]) -> Tensor | None:
        """Visual rows [R, D] of the media of ``Sample.media``, in parts of bounded size; None of none."""
        tiles_NSSC = media["tiles"]
        if not len(tiles_NSSC):
            return None
        return torch.cat([self.tile_features(part) for part in tiles_NSSC.split(TILES_AT_ONCE)]).flatten(0, 1)

    def hidden(self, inputs: Inputs) -> HiddenStates:
        """Final hidden states at the kept positions of padded samples or of a pack.

        Raises:
            ValueError: visual rows and image tokens differ in number.
        """
        tiles = inputs.media.get("tiles")
        features_NRD = self.tile_features(tiles) if tiles is not None and len(tiles) else None
        unseen = None
        if features_NRD is not None and inputs.blank:
            features_NRD, unseen = features_NRD[:-1], features_NRD[-1]
        embeds = self.embed(inputs.ids, None if features_NRD is None else features_NRD.flatten(0, 1))
        if unseen is not None:
            embeds = embeds + 0 * unseen.sum().to(embeds.dtype)
        output = self.language_model.base_model(
            inputs_embeds=embeds,
            attention_mask=inputs.mask,
            position_ids=inputs.positions,
            use_cache=False,
            **pack_borders(inputs),
            **self._routing(),
        )
        return HiddenStates(output.last_hidden_state.flatten(0, 1)[inputs.keep], self._auxiliary(output, inputs.mask))

    def _routing(self) -> dict[str, bool]:
        """Ask a mixture of experts for its router logits while it trains with an auxiliary loss."""
        coefficient = getattr(self.config.text_config, "router_aux_loss_coef", 0.0)
        return {"output_router_logits": True} if self.training and coefficient > 0 else {}

    def _auxiliary(self, output: ModelOutput, mask_BT: Tensor | None) -> Tensor | None:
        text = self.config.text_config
        if not self._routing():
            return None
        return text.router_aux_loss_coef * load_balancing(output.router_logits, text.num_experts_per_tok, mask_BT)

    @property
    def head(self) -> nn.Module:
        """Hidden states to logits."""
        return self.language_model.get_output_embeddings()

    def parts(self) -> Parts:
        """Tower, projector and language model."""
        return Parts((self.vision_tower,), (self.multi_modal_projector,), (self.language_model,))

    def forward(self, ids_BT: Tensor, mask_BT: Tensor, tiles_NSSC: Tensor | None = None) -> Tensor:
        """Logits [B, T, V] of padded samples; ``tiles_NSSC`` are all tiles of the batch, in order."""
        media = {} if tiles_NSSC is None else {"tiles": tiles_NSSC}
        keep = torch.arange(ids_BT.numel(), device=ids_BT.device)
        inputs = Inputs(ids_BT, mask_BT, None, None, media, False, keep)
        return self.head(self.hidden(inputs).states).view(*ids_BT.shape, -1)

    def encode(self, images: Sequence[Image.Image | bytes]) -> list[ImageFeatures]:
        """Visual features of the images of one request; needs the vision half alone.

        Raises:
            InputError: an image cannot be read.
        """
        return self.encode_batch([images])[0]

    @torch.inference_mode()
    def encode_batch(self, requests: Sequence[Sequence[Image.Image | bytes]]) -> list[list[ImageFeatures]]:
        """Visual features of the images of several requests, in one pass; images share tiles within a request only.

        Raises:
            InputError: an image cannot be read.
        """
        cut = []
        for number, images in enumerate(requests):
            tiling = self.tiling.shared_by(len(images))
            for given in images:
                image = read_image(given) if isinstance(given, bytes) else given
                cut.append((number, image, tiling, tile_image(image, tiling)))
        results: list[list[ImageFeatures]] = [[] for _ in requests]
        if not cut:
            return results
        tiles_NSSC = torch.from_numpy(np.concatenate([tiles for *_, tiles in cut]))
        rows_NRD = torch.cat([self.tile_features(part) for part in tiles_NSSC.split(TILES_AT_ONCE)])
        start = 0
        for number, image, tiling, tiles in cut:
            rows = rows_NRD[start : start + len(tiles)]
            start += len(tiles)
            results[number].append(
                ImageFeatures(
                    rows.flatten(0, 1),
                    [rows.shape[1]] * len(tiles),
                    choose_grid(image.width, image.height, tiling),
                    self.weights_version,
                    self._key(image, tiling),
                )
            )
        return results

    def _key(self, image: Image.Image, tiling: Tiling) -> str:
        head = f"{self.weights_version}|{tiling}|{image.size}|".encode()
        return sha256(head + image.tobytes()).hexdigest()


def pack_borders(inputs: Inputs) -> dict[str, Tensor | int]:
    """What transformers' language models hand down to attention about the borders of a pack's samples."""
    borders = inputs.cu_seqlens
    if borders is None:
        return {}
    longest = int(borders.diff().max())
    if inputs.keys is None:
        return {"cu_seq_lens_q": borders, "cu_seq_lens_k": borders, "max_length_q": longest, "max_length_k": longest}
    keys = inputs.key_cu_seqlens
    return {
        "cu_seq_lens_q": borders,
        "cu_seq_lens_k": keys,
        "max_length_q": longest,
        "max_length_k": int(keys.diff().max()),
        "key_index": inputs.keys,
    }
