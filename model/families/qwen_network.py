"""The Qwen-VL networks: transformers' vision tower and text model, on padded samples and on packs.

One assembly serves Qwen2-VL, Qwen2.5-VL and Qwen3-VL (dense and mixture of experts): windows of attention belong to the
tower of 2.5, the deep stack of 3 is what its tower gives beside the features. Positions always come from the processor.
Shape suffixes: P patches, I images and videos, R visual rows (merged patches), L deep-stack levels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from model.data.video import Video
from model.families.interface import HiddenStates, Inputs, Parts, Sample
from model.families.qwen_chat import Shown
from model.families.qwen_images import Grid
from model.families.qwen_processor import QwenProcessor
from model.flash.images import read_image
from model.flash.network import joined_media, pack_borders
from model.objectives.load_balancing import load_balancing

PATCHES_AT_ONCE = 65_536
"""Patches that ``media_rows`` sends through the tower together: 16,384 visual rows, the most of one image."""


@dataclass
class VisualFeatures:
    """What the language half needs of one image or video.

    Attributes:
        features: [rows, (1 + deep_stack) * D] in the network's dtype; behind the first D columns stand those of the
            deep-stack levels, as vLLM takes them.
        shown: how the text shows it: its kind, grid and times.
        rows_per_tile: rows of each temporal patch; their sum is ``rows``.
        deep_stack: deep-stack levels; none before Qwen3-VL.
        weights_version: of the vision half that made them.
        key: content address (weights, grid and patches); equal keys mean equal features.
    """

    features: Tensor
    shown: Shown
    rows_per_tile: list[int]
    deep_stack: int
    weights_version: str
    key: str

    @property
    def grid(self) -> Grid:
        """Patches along time, height and width."""
        return self.shown.grid


class QwenNetwork(nn.Module):
    """Vision tower with its mergers, text model and head of one Qwen-VL.

    Args:
        whole: transformers' network of the generation; its parts are taken over.
        processor: prepares what ``encode`` is given.
        weights_version: of the vision half, for features.
    """

    def __init__(self, whole: PreTrainedModel, processor: QwenProcessor, weights_version: str = "") -> None:
        super().__init__()
        self.config: PreTrainedConfig = whole.config
        self.processor = processor
        self.weights_version = weights_version
        # Parameters keep the names that transformers gives them.
        self.model: PreTrainedModel = whole.model
        self.lm_head: nn.Linear = whole.lm_head
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.language_model.get_input_embeddings().weight

    @property
    def vision_tower(self) -> PreTrainedModel:
        """Patch embedding, blocks and mergers."""
        return self.model.visual

    @property
    def language_model(self) -> PreTrainedModel:
        """The text model without its head."""
        return self.model.language_model

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.lm_head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.lm_head.weight.dtype

    @property
    def head(self) -> nn.Module:
        """Hidden states to logits."""
        return self.lm_head

    @property
    def deep_stack(self) -> int:
        """Deep-stack levels L."""
        return len(getattr(self.config.vision_config, "deepstack_visual_indexes", ()))

    @property
    def merged(self) -> int:
        """Patches that become one visual row."""
        return self.config.vision_config.spatial_merge_size**2

    def parts(self) -> Parts:
        """Patch embedding and blocks; mergers; text model and head."""
        projector = {"merger", "deepstack_merger_list"}
        children = dict(self.vision_tower.named_children())
        # A tied head holds no parameter of its own.
        head = () if self.config.tie_word_embeddings else (self.lm_head,)
        return Parts(
            vision=tuple(module for name, module in children.items() if name not in projector),
            projector=tuple(module for name, module in children.items() if name in projector),
            language=(self.language_model, *head),
        )

    def visual_rows(self, patches_PC: Tensor, grids_I3: Tensor) -> Tensor:
        """Patches [P, channels * time * height * width] of all images and videos, in one pass, to rows
        [R, (1 + L) * D]: the features, then those of each deep-stack level."""
        output = self.vision_tower(patches_PC.to(self.vision_tower.dtype), grid_thw=grids_I3)
        levels = getattr(output, "deepstack_features", None) or []
        return torch.cat([output.pooler_output, *levels], dim=-1)

    def language_inputs(self, ids_BT: Tensor, rows: Tensor | None) -> dict[str, object]:
        """What the text model takes: embeddings with visual rows [R, (1 + L) * D] laid over the placeholders in order,
        and the rows of the deep stack, which it adds after its first layers.

        Raises:
            ValueError: rows and placeholders differ in number.
        """
        embeds = self.language_model.get_input_embeddings()(ids_BT)
        shown = (ids_BT == self.config.image_token_id) | (ids_BT == self.config.video_token_id)
        given = 0 if rows is None else len(rows)
        if int(shown.sum()) != given:
            raise ValueError(f"{given} visual rows for {int(shown.sum())} image and video tokens")
        if rows is None:
            return {"inputs_embeds": embeds}
        first, *levels = rows.to(embeds.dtype).split(embeds.shape[-1], dim=-1)
        inputs: dict[str, object] = {"inputs_embeds": embeds.masked_scatter(shown.unsqueeze(-1), first)}
        if levels:
            inputs |= {"visual_pos_masks": shown, "deepstack_visual_embeds": levels}
        return inputs

    def hidden(self, inputs: Inputs) -> HiddenStates:
        """Final hidden states at the kept positions of padded samples or of a pack.

        Raises:
            ValueError: visual rows and placeholders differ in number.
        """
        rows, unseen = None, None
        grids = inputs.media.get("grids")
        if grids is not None and len(grids):
            rows = self.visual_rows(inputs.media["patches"], grids)
            if inputs.blank:
                last = int(grids[-1].prod()) // self.merged
                rows, unseen = rows[:-last], rows[-last:]
        given = self.language_inputs(inputs.ids, rows)
        if unseen is not None:
            # Every output of the tower takes part, so that its gradient is made on every rank.
            given["inputs_embeds"] = given["inputs_embeds"] + 0 * unseen.sum().to(given["inputs_embeds"].dtype)
        output = self.language_model(
            **given,
            attention_mask=inputs.mask,
            position_ids=inputs.positions,
            use_cache=False,
            **pack_borders(inputs),
            **({"output_router_logits": True} if self._balances else {}),
        )
        return HiddenStates(output.last_hidden_state.flatten(0, 1)[inputs.keep], self._auxiliary(output, inputs.mask))

    @property
    def _balances(self) -> bool:
        """A mixture of experts that trains with its auxiliary loss."""
        return self.training and getattr(self.config.text_config, "router_aux_loss_coef", 0.0) > 0

    def _auxiliary(self, output: ModelOutput, mask_BT: Tensor | None) -> Tensor | None:
        if not self._balances:
            return None
        text = self.config.text_config
        return text.router_aux_loss_coef * load_balancing(output.router_logits, text.num_experts_per_tok, mask_BT)

    def prepare(self, samples: Sequence[Sample]) -> list[Sample]:
        """The samples as they are: these networks decide nothing before text is laid out."""
        return list(samples)

    def show(self, samples: Sequence[Sample]) -> tuple[list[Sample], Tensor | None]:
        """The samples as they are, and the visual rows [R, (1 + L) * D] of all of them."""
        return list(samples), self.media_rows(joined_media(samples))

    def media_rows(self, media: dict[str, Tensor]) -> Tensor | None:
        """Visual rows [R, (1 + L) * D] of the media of ``Sample.media``, in parts of bounded size; None of none."""
        grids_I3, patches_PC = media["grids"].to(self.device), media["patches"]
        rows, taken, patches = [], 0, 0
        sizes = grids_I3.prod(-1).tolist()
        for number, size in enumerate(sizes, start=1):
            patches += size
            if number == len(sizes) or patches + sizes[number] > PATCHES_AT_ONCE:
                part, patches_PC = patches_PC[:patches], patches_PC[patches:]
                rows.append(self.visual_rows(part.to(self.device), grids_I3[taken:number]))
                taken, patches = number, 0
        return torch.cat(rows) if rows else None

    def encode(self, media: Sequence[Image.Image | bytes | Video]) -> list[VisualFeatures]:
        """Visual features of the images and videos of one request.

        Raises:
            InputError: an image cannot be read or prepared.
        """
        return self.encode_batch([media])[0]

    @torch.inference_mode()
    def encode_batch(self, requests: Sequence[Sequence[Image.Image | bytes | Video]]) -> list[list[VisualFeatures]]:
        """Visual features of the images and videos of several requests, in one pass.

        Raises:
            InputError: an image cannot be read or prepared.
        """
        prepared = [
            (number, *self.processor.prepare(read_image(item) if isinstance(item, bytes) else item))
            for number, items in enumerate(requests)
            for item in items
        ]
        results: list[list[VisualFeatures]] = [[] for _ in requests]
        if not prepared:
            return results
        grids = torch.tensor([shown.grid for _, shown, _ in prepared])
        patches = torch.from_numpy(np.concatenate([patches for *_, patches in prepared]))
        rows = self.media_rows({"patches": patches, "grids": grids})
        parts = rows.split([shown.tokens for _, shown, _ in prepared])
        for (number, shown, own), features in zip(prepared, parts, strict=True):
            tiles = [shown.tokens // shown.grid.time] * shown.grid.time
            key = sha256(f"{self.weights_version}|{tuple(shown.grid)}|".encode() + own.tobytes()).hexdigest()
            results[number].append(VisualFeatures(features, shown, tiles, self.deep_stack, self.weights_version, key))
        return results
