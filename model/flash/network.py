"""The InternVL3.5 network, assembled from transformers' vision model and any transformers causal LM.

Source: InternVL3.5 (arXiv 2508.18265), section 2.1, and 2.3 for Flash. Parameter names are those of the published
Hugging Face checkpoints: ``vision_tower.*``, ``multi_modal_projector.*``, ``language_model.model.*``,
``language_model.lm_head.*``; a Flash model also has ``compressed_projector.*`` and ``router.*``.
Shape suffixes: B batch, T tokens, D hidden, N tiles, P patches.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, InternVLConfig, InternVLVisionModel, PreTrainedModel
from transformers.utils import ModelOutput

from model.data.errors import InputError
from model.families.interface import HiddenStates, Inputs, Parts, Sample
from model.flash.decisions import COMPRESSION, FLASH_KEYS, Decision
from model.flash.encoding import TILES_AT_ONCE, ImageFeatures, encode_requests, route_samples, show_samples
from model.flash.images import Tiling
from model.flash.processor import IMAGENET_MEAN, IMAGENET_STD
from model.flash.projectors import CompressedProjector, Projector, start_downsampled, start_pooled, unshuffle_patches
from model.flash.router import COMPRESS, Router
from model.objectives.load_balancing import load_balancing


def normalise(tiles_NSSC: Tensor) -> Tensor:
    """uint8 tiles [N, S, S, 3] to float pixel values [N, 3, S, S], ImageNet mean and deviation."""
    mean = torch.tensor(IMAGENET_MEAN, device=tiles_NSSC.device)
    std = torch.tensor(IMAGENET_STD, device=tiles_NSSC.device)
    return ((tiles_NSSC.float() / 255 - mean) / std).permute(0, 3, 1, 2)


class FlashModel(nn.Module):
    """ViT, pixel unshuffle, projector and language model; either half may be absent.

    Args:
        config: transformers' configuration of the whole.
        tiling: how images become tiles.
        part: which half to build.
        weights_version: of the vision half.
        flash: build the router and the second projector too.

    Attributes:
        compressed_projector, router: of a Flash model; None in any other, and without the vision half.
        decision: how tiles are routed; None shows every tile at its full resolution.
    """

    def __init__(
        self,
        config: InternVLConfig,
        tiling: Tiling,
        part: str = "all",
        weights_version: str = "",
        *,
        flash: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.tiling = tiling
        self.weights_version = weights_version
        self.decision: Decision | None = None
        self.vision_tower: nn.Module | None = None
        self.multi_modal_projector: Projector | None = None
        self.language_model: PreTrainedModel | None = None
        if part in ("all", "vision"):
            self.vision_tower = InternVLVisionModel._from_config(config.vision_config)
            self.multi_modal_projector = Projector(config)
        self.compressed_projector: CompressedProjector | None = None
        self.router: Router | None = None
        if flash and part in ("all", "vision"):
            self._build_flash()
        if part in ("all", "language"):
            self.language_model = AutoModelForCausalLM.from_config(config.text_config)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def _build_flash(self) -> None:
        vision = self.config.vision_config
        side = _side(vision.image_size) // _side(vision.patch_size)
        if side % round(2 / self.config.downsample_ratio):
            raise InputError(f"a tile of {side} x {side} patches cannot be compressed: no multiple of 4 x 4 pixels")
        self.compressed_projector = CompressedProjector(self.config)
        self.router = Router(self.config)

    def add_flash(self, seed: int, init: Literal["pooled", "downsampled", "random"] = "pooled") -> None:
        """Give a network that has none a router and a second projector; it goes on showing tiles in full.

        Args:
            seed: of the random weights.
            init: of the second projector. ``pooled``: a compressed row starts as about the mean of the full rows that
                it stands for (``start_pooled``). ``downsampled``: as about what the first projector makes of half the
                resolution (``start_downsampled``). ``random``: as torch draws it.

        Raises:
            InputError: it has them already, or no vision half, or its tiles cannot be compressed.
        """
        if self.vision_tower is None or self.router is not None:
            raise InputError("the network has a router already" if self.router else "the network has no vision half")
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self._build_flash()
        if init != "random":
            start = start_pooled if init == "pooled" else start_downsampled
            start(self.compressed_projector, self.multi_modal_projector, round(1 / self.config.downsample_ratio))
        for module in (self.compressed_projector, self.router):
            module.to(self.device, self.dtype).train(self.training)

    def route_by(self, decision: Decision | None) -> None:
        """Choose how tiles are routed from now on, and what a saved directory says of it; None: no tile is compressed.

        Raises:
            InputError: routing is asked of a network that has no router.
        """
        if decision is not None and self.router is None:
            raise InputError("the network has no router: tiles can only be shown at their full resolution")
        self.decision = decision
        for key in FLASH_KEYS:
            if hasattr(self.config, key):
                delattr(self.config, key)
        self.config.update({"flash_mode": False} if decision is None else decision.keys())

    @property
    def rows_per_tile(self) -> int:
        """Visual tokens of a tile that is not compressed."""
        return self.config.image_seq_length

    def patches(self, tiles_NSSC: Tensor) -> Tensor:
        """uint8 tiles [N, S, S, 3] to the tower's output without its class token [N, P, D]."""
        pixels = normalise(tiles_NSSC.to(self.device)).to(self.dtype)
        return self.vision_tower(pixel_values=pixels).last_hidden_state[:, 1:]

    def compress_probabilities(self, patches_NPD: Tensor) -> Tensor:
        """The router's P(compress) [N], in float32; tiles do not see each other."""
        return self.router(patches_NPD).float().softmax(-1)[:, COMPRESS]

    def project(self, patches_NPD: Tensor, compressed_N: Tensor | None = None) -> Tensor:
        """Rows [R, D] in tile order; each tile goes through one projector: the second where ``compressed_N`` is True.

        Raises:
            InputError: a tile is to be compressed by a network that has no second projector.
        """
        ratio = self.config.downsample_ratio
        if compressed_N is None or not bool(compressed_N.any()):
            return self.multi_modal_projector(unshuffle_patches(patches_NPD, ratio)).flatten(0, 1)
        if self.compressed_projector is None:
            raise InputError("the network has no second projector: tiles can only be shown at their full resolution")
        compressed_N = compressed_N.to(patches_NPD.device)
        small = self.compressed_projector(unshuffle_patches(patches_NPD[compressed_N], ratio / 2)).flatten(0, 1)
        if bool(compressed_N.all()):
            return small
        full = self.multi_modal_projector(unshuffle_patches(patches_NPD[~compressed_N], ratio)).flatten(0, 1)
        rows_N = torch.where(compressed_N, self.rows_per_tile // COMPRESSION, self.rows_per_tile)
        compressed_R = compressed_N.repeat_interleave(rows_N)
        place_R = torch.empty(len(compressed_R), dtype=torch.long, device=full.device)
        place_R[~compressed_R] = torch.arange(len(full), device=full.device)
        place_R[compressed_R] = torch.arange(len(full), len(full) + len(small), device=full.device)
        return torch.cat([full, small])[place_R]

    def tile_features(self, tiles_NSSC: Tensor) -> Tensor:
        """uint8 tiles [N, S, S, 3] to features at full resolution [N, rows per tile, D]."""
        return self.project(self.patches(tiles_NSSC)).unflatten(0, (len(tiles_NSSC), -1))

    @torch.inference_mode()
    def prepare(self, samples: Sequence[Sample]) -> list[Sample]:
        """Samples with the placeholders that their tiles will fill: routed where the network routes, each by itself.

        A sample that says already which of its tiles are compressed stays as it is.

        Raises:
            InputError: names the row whose tiles cannot meet the budget of tokens.
        """
        return list(samples) if self.decision is None else route_samples(self, samples)

    @torch.no_grad()
    def show(self, samples: Sequence[Sample]) -> tuple[list[Sample], Tensor | None]:
        """``prepare`` and the visual rows [R, D] of all samples; every tile goes through the tower once.

        Raises:
            InputError: as ``prepare``.
        """
        if self.decision is None:
            return list(samples), self.media_rows(joined_media(samples))
        return show_samples(self, samples)

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
        tiles_NSSC, compressed_N = media["tiles"], media.get("compressed")
        if not len(tiles_NSSC):
            return None
        rows = []
        for start in range(0, len(tiles_NSSC), TILES_AT_ONCE):
            part = slice(start, start + TILES_AT_ONCE)
            chosen = None if compressed_N is None else compressed_N[part]
            rows.append(self.project(self.patches(tiles_NSSC[part]), chosen))
        return torch.cat(rows)

    def hidden(self, inputs: Inputs) -> HiddenStates:
        """Final hidden states at the kept positions of padded samples or of a pack.

        Raises:
            ValueError: visual rows and image tokens differ in number.
        """
        rows_RD, unseen = self._visual(inputs)
        embeds = self.embed(inputs.ids, rows_RD)
        if unseen is not None:
            embeds = embeds + 0 * unseen.to(embeds.dtype)
        output = self.language_model.base_model(
            inputs_embeds=embeds,
            attention_mask=inputs.mask,
            position_ids=inputs.positions,
            use_cache=False,
            **pack_borders(inputs),
            **self._routing(),
        )
        return HiddenStates(output.last_hidden_state.flatten(0, 1)[inputs.keep], self._auxiliary(output, inputs.mask))

    def _visual(self, inputs: Inputs) -> tuple[Tensor | None, Tensor | None]:
        """Rows [R, D] that tokens show, and a sum of what has to be computed but is shown by none."""
        tiles, compressed_N = inputs.media.get("tiles"), inputs.media.get("compressed")
        if tiles is None or not len(tiles):
            return None, None
        patches_NPD = self.patches(tiles)
        shown_NPD = patches_NPD[:-1] if inputs.blank else patches_NPD
        if inputs.blank and compressed_N is not None:
            compressed_N = compressed_N[: len(shown_NPD)]
        chosen = torch.zeros(len(shown_NPD), dtype=torch.bool) if compressed_N is None else compressed_N
        unseen = []
        both = self._runs_both()
        if both and not bool(chosen.any()):
            unseen.append(self.project(patches_NPD[:1], torch.ones(1, dtype=torch.bool)).sum())
        rows_RD = self.project(shown_NPD, compressed_N) if len(shown_NPD) else None
        if inputs.blank or (both and bool(chosen.all())):
            unseen.append(self.project(patches_NPD[-1:]).sum())
        return rows_RD, sum(unseen) if unseen else None

    def _runs_both(self) -> bool:
        """Whether a projector that no tile takes has to run too: the second trains, or several processes train.

        Those wait for each other's weights and gradients, in the order in which they come: on every one of them the
        second projector runs first.
        """
        second = self.compressed_projector
        trains = second is not None and self.training and second.linear_1.weight.requires_grad
        return trains or (second is not None and torch.distributed.is_initialized())

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
        """Tower, projector and language model; second projector and router of a Flash model."""
        return Parts(
            (self.vision_tower,),
            (self.multi_modal_projector,),
            (self.language_model,),
            () if self.compressed_projector is None else (self.compressed_projector,),
            () if self.router is None else (self.router,),
        )

    def forward(
        self,
        ids_BT: Tensor,
        mask_BT: Tensor,
        tiles_NSSC: Tensor | None = None,
        compressed_N: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, T, V] of padded samples; ``tiles_NSSC`` are all tiles of the batch, in order.

        ``compressed_N`` (bool, as ``prepare`` decides) says which have a quarter of the placeholders; None: none has,
        of a network that does not route.

        Raises:
            ValueError: the network routes, and nothing says which tiles are compressed; or visual rows and image tokens
                differ in number.
        """
        if tiles_NSSC is not None and compressed_N is None and self.decision is not None:
            raise ValueError(
                "the network routes its tiles: give compressed_N, as prepare() decides it, or ask for full resolution "
                "with route_by(None)"
            )
        media = {"tiles": tiles_NSSC, "compressed": compressed_N}
        media = {name: given for name, given in media.items() if given is not None}
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
            InputError: an image cannot be read, or a request cannot meet the budget of tokens.
        """
        return encode_requests(self, requests)


def joined_media(samples: Sequence[Sample]) -> dict[str, Tensor]:
    """The media of several samples (one at least) of one family, in order."""
    return {name: torch.from_numpy(np.concatenate([s.media[name] for s in samples])) for name in samples[0].media}


def _side(size: int | Sequence[int]) -> int:
    return size if isinstance(size, int) else size[0]


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
