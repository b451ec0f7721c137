"""The Visual Resolution Router: from the patches of one tile to the probability that a quarter of its rows is enough.

Source: InternVL3.5 (arXiv 2508.18265), section 2.3; layers, names and order of the released Flash checkpoints. They
hold four attentions and norms of which the network uses two: ``attn1`` once, then ``attn2`` three times. The others are
kept, so that a checkpoint is saved as it was loaded.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import InternVLConfig

from model.flash.projectors import DROPOUT

RELEASED_HEADS = 16
COMPRESS = 0
"""The column of the router's two outputs that says: compress."""
_REPEATS = 3
_BLOCKS = 4


def router_heads(config: InternVLConfig) -> int:
    """Heads of the router's attention: those of the released checkpoints, or the tower's where its width is no multiple
    of them."""
    vision = config.vision_config
    return vision.num_attention_heads if vision.hidden_size % RELEASED_HEADS else RELEASED_HEADS


class Pooling(nn.Module):
    """A learned query that gathers a tile's patches by attention, four times."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.query_token = nn.Parameter(torch.empty(1, width))
        nn.init.normal_(self.query_token, std=width**-0.5)
        for number in range(1, _BLOCKS + 1):
            self.add_module(f"attn{number}", nn.MultiheadAttention(width, heads, batch_first=True))
            self.add_module(f"norm{number}", nn.LayerNorm(width))

    def forward(self, patches_NPD: Tensor) -> Tensor:
        """[N, P, D] to [N, D]; tiles do not see each other."""
        pooled = self.query_token.expand(len(patches_NPD), -1)
        for attention, norm in [(self.attn1, self.norm1), *[(self.attn2, self.norm2)] * _REPEATS]:
            pooled = norm(_attend(attention, pooled, patches_NPD))
        return pooled


def _attend(attention: nn.MultiheadAttention, query_ND: Tensor, patches_NPD: Tensor) -> Tensor:
    """``attention`` of one query [N, D] on the patches of its tile [N, P, D], without a key or value of any patch.

    A head's score q . (K x + b) is (K^T q) . x, and a term that is the same for all patches; its result is V applied to
    the mean of the patches under its weights. This takes D / H times fewer multiplications: otherwise a router costs
    more than half as much as a layer of the tower.
    """
    heads, depth = attention.num_heads, attention.head_dim
    weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    query_NHC = functional.linear(query_ND, weights[0], biases[0]).unflatten(-1, (heads, depth)) * depth**-0.5
    key_HCD, value_HCD = (weight.unflatten(0, (heads, depth)) for weight in weights[1:])
    scores_NHP = torch.einsum("nhc,hcd->nhd", query_NHC, key_HCD) @ patches_NPD.transpose(1, 2)
    mean_NHD = scores_NHP.softmax(-1) @ patches_NPD
    value_ND = torch.einsum("nhd,hcd->nhc", mean_NHD, value_HCD).flatten(1) + biases[2]
    return attention.out_proj(value_ND)


class Gating(nn.Module):
    """Four residual blocks and a linear layer: logits of "compress" and "keep"."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for number in range(1, _BLOCKS + 1):
            layers = (
                nn.Linear(width, 4 * width),
                nn.GELU(),
                nn.Dropout(DROPOUT),
                nn.Linear(4 * width, width),
                nn.Dropout(DROPOUT),
                nn.LayerNorm(width),
            )
            self.add_module(f"block{number}", nn.Sequential(*layers))
        self.gate = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2))

    def forward(self, pooled_ND: Tensor) -> Tensor:
        """[N, D] to logits [N, 2]."""
        for block in (self.block1, self.block2, self.block3, self.block4):
            pooled_ND = pooled_ND + block(pooled_ND)
        return self.gate(pooled_ND)


class Router(nn.Module):
    """Pooling and gating.

    Args:
        config: transformers' configuration of the whole.
    """

    def __init__(self, config: InternVLConfig) -> None:
        super().__init__()
        width = config.vision_config.hidden_size
        self.pooling = Pooling(width, router_heads(config))
        self.gating = Gating(width)

    def forward(self, patches_NPD: Tensor) -> Tensor:
        """Logits [N, 2] of the tiles with these patches [N, P, D]; column ``COMPRESS`` says: compress."""
        return self.gating(self.pooling(patches_NPD))
