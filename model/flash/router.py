"""The Visual Resolution Router: from the patches of one tile to the probability that a quarter of its rows is enough.

Source: InternVL3.5 (arXiv 2508.18265), section 2.3; layers, names and order of the released Flash checkpoints. They
hold four attentions and norms of which the network uses two: ``attn1`` once, then ``attn2`` three times. The others are
kept, so that a checkpoint is saved as it was loaded.
"""

import torch
from torch import Tensor, nn
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
        pooled = self.query_token.expand(len(patches_NPD), 1, -1)
        for attention, norm in [(self.attn1, self.norm1), *[(self.attn2, self.norm2)] * _REPEATS]:
            pooled = norm(attention(pooled, patches_NPD, patches_NPD, need_weights=False)[0])
        return pooled[:, 0]


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
