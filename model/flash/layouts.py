"""Tensor names of InternVL checkpoints: the Hugging Face layout, its variants, and the original one. Imports no torch.

The names used here are those that stock transformers saves: ``vision_tower.*``, ``multi_modal_projector.*``,
``language_model.model.*`` and ``language_model.lm_head.weight``. The router and the second projector of a Flash
checkpoint are called ``router.pooling.*``, ``router.gating.*`` and ``compressed_projector.*``. Mixtures of Qwen3 keep
every expert apart; those of GPT-OSS are fused, as published.
"""

import re
from typing import NamedTuple

from model.data.errors import InputError

VISION_PREFIXES = ("vision_tower.", "multi_modal_projector.")
FLASH_PREFIXES = ("router.", "compressed_projector.")
LANGUAGE_PREFIXES = ("language_model.",)
HEAD = "language_model.lm_head.weight"
EMBEDDING = "language_model.model.embed_tokens.weight"

# Hugging Face and original; "#" is the number of a layer.
_ORIGINAL = (
    ("vision_tower.embeddings.cls_token", "vision_model.embeddings.class_embedding"),
    ("vision_tower.embeddings.position_embeddings", "vision_model.embeddings.position_embedding"),
    ("vision_tower.embeddings.patch_embeddings.projection.", "vision_model.embeddings.patch_embedding."),
    ("vision_tower.encoder.layer.#.attention.projection_layer.", "vision_model.encoder.layers.#.attn.proj."),
    ("vision_tower.encoder.layer.#.attention.q_norm.", "vision_model.encoder.layers.#.attn.q_norm."),
    ("vision_tower.encoder.layer.#.attention.k_norm.", "vision_model.encoder.layers.#.attn.k_norm."),
    ("vision_tower.encoder.layer.#.lambda_1", "vision_model.encoder.layers.#.ls1"),
    ("vision_tower.encoder.layer.#.lambda_2", "vision_model.encoder.layers.#.ls2"),
    ("vision_tower.encoder.layer.#.layernorm_before.", "vision_model.encoder.layers.#.norm1."),
    ("vision_tower.encoder.layer.#.layernorm_after.", "vision_model.encoder.layers.#.norm2."),
    ("vision_tower.encoder.layer.#.mlp.fc1.", "vision_model.encoder.layers.#.mlp.fc1."),
    ("vision_tower.encoder.layer.#.mlp.fc2.", "vision_model.encoder.layers.#.mlp.fc2."),
    ("multi_modal_projector.layer_norm.", "mlp1.0."),
    ("multi_modal_projector.linear_1.", "mlp1.1."),
    ("multi_modal_projector.linear_2.", "mlp1.3."),
    ("compressed_projector.layer_norm.", "mlp2.0."),
    ("compressed_projector.linear_1.", "mlp2.1."),
    ("compressed_projector.linear_2.", "mlp2.4."),
    ("compressed_projector.linear_3.", "mlp2.7."),
    ("router.pooling.", "pooling_before_gating."),
    ("router.gating.", "gating."),
    ("language_model.", "language_model."),
)
# What transformers names the same tensors inside its model; some tools store them so.
_VARIANTS = (
    ("vision_tower.", "model.vision_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
)
_FUSED = re.compile(r"(vision_model\.encoder\.layers\.\d+\.attn)\.qkv\.(weight|bias)")
_APART = re.compile(r"(vision_tower\.encoder\.layer\.\d+\.attention)\.([qkv])_proj\.(weight|bias)")


class Part(NamedTuple):
    """A tensor's name in another layout, and which third of its rows is meant; None means all of it."""

    name: str
    third: int | None = None


def _translate(name: str, pairs: tuple[tuple[str, str], ...], *, to: int) -> str | None:
    for pair in pairs:
        pattern = re.escape(pair[1 - to]).replace(r"\#", r"(\d+)")
        if match := re.match(pattern, name):
            number = match.group(1) if match.groups() else ""
            return pair[to].replace("#", number) + name[match.end() :]
    return None


def from_stored(name: str, *, original: bool) -> list[tuple[str, int | None]]:
    """The tensors that a stored tensor holds: our name, and which third of the stored rows it is.

    Raises:
        InputError: the name belongs to no InternVL checkpoint.
    """
    if name.endswith(".rotary_emb.inv_freq"):
        return []  # computed, not learned
    if not original:
        ours = _translate(name, _VARIANTS, to=0) or name
        if ours.startswith(VISION_PREFIXES + FLASH_PREFIXES + LANGUAGE_PREFIXES):
            return [(ours, None)]
    elif match := _FUSED.fullmatch(name):
        layer = _translate(match.group(1) + ".proj.", _ORIGINAL, to=0)
        stem = layer.removesuffix("projection_layer.")
        return [(f"{stem}{letter}_proj.{match.group(2)}", third) for third, letter in enumerate("qkv")]
    elif ours := _translate(name, _ORIGINAL, to=0):
        return [(ours, None)]
    raise InputError(f"tensor {name} belongs to no InternVL checkpoint")


def to_original(name: str) -> Part:
    """Where the original layout keeps one of our tensors."""
    if match := _APART.fullmatch(name):
        stem = _translate(match.group(1) + ".projection_layer.", _ORIGINAL, to=1).removesuffix("proj.")
        return Part(f"{stem}qkv.{match.group(3)}", "qkv".index(match.group(2)))
    return Part(_translate(name, _ORIGINAL, to=1))
