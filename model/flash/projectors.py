"""From the tower's patches to language embeddings: pixel unshuffle, the projector, and the Flash model's second one.

Source: InternVL3.5 (arXiv 2508.18265), sections 2.1 and 2.3, and the tensors of the released Flash checkpoints.
"""

import torch
from torch import Tensor, nn
from transformers import InternVLConfig
from transformers.activations import ACT2FN

DROPOUT = 0.1
"""Of the released second projector and router."""


def pixel_unshuffle(x_NHWD: Tensor, ratio: float) -> Tensor:
    """Trade resolution for channels: [N, H, W, D] to [N, H * ratio, W * ratio, D / ratio**2].

    Every output vector is the row-major gather of its k x k neighbourhood, k = 1 / ratio.
    """
    n, height, width, depth = x_NHWD.shape
    k = round(1 / ratio)
    x = x_NHWD.reshape(n, height // k, k, width // k, k, depth)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(n, height // k, width // k, k * k * depth)


def unshuffle_patches(patches_NPD: Tensor, ratio: float) -> Tensor:
    """Patches of square tiles [N, P, D] to the rows that a projector takes: [N, P * ratio**2, D / ratio**2]."""
    n, patches, depth = patches_NPD.shape
    side = round(patches**0.5)
    return pixel_unshuffle(patches_NPD.reshape(n, side, side, depth), ratio).flatten(1, 2)


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


class CompressedProjector(nn.Module):
    """LayerNorm and three Linears with GELU and dropout between them: a quarter of the rows, from four times the width.

    A row gathers 4 x 4 patches where the first projector's gathers 2 x 2 (for the published downsample ratio, 0.5).
    """

    def __init__(self, config: InternVLConfig) -> None:
        super().__init__()
        width = config.vision_config.hidden_size * round(2 / config.downsample_ratio) ** 2
        hidden = config.text_config.hidden_size
        self.layer_norm = nn.LayerNorm(width)
        self.linear_1 = nn.Linear(width, 2 * hidden)
        self.linear_2 = nn.Linear(2 * hidden, 2 * hidden)
        self.linear_3 = nn.Linear(2 * hidden, hidden)
        self.act = nn.GELU()
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor) -> Tensor:
        """[..., 4 * width] to [..., hidden]."""
        x = self.dropout(self.act(self.linear_1(self.layer_norm(x))))
        x = self.dropout(self.act(self.linear_2(x)))
        return self.linear_3(x)


@torch.no_grad()
def start_pooled(compressed: CompressedProjector, projector: Projector, side: int) -> None:
    """Set the weights so that a compressed row is about the mean of the four full rows that it stands for.

    A compressed row's patches are 2 x 2 groups of ``side`` x ``side`` patches, each group those of one full row. The
    first half of ``linear_1``'s 2L units is the projector's first layer on the mean of the two upper groups, the second
    half on that of the two lower ones. ``linear_2`` applies the projector's second layer to the mean of both halves.
    Where the four groups are equal the result equals the projector's, up to rounding.
    """
    hidden, gathered = projector.linear_2.in_features, projector.layer_norm.weight.numel()
    width = gathered // side**2

    def spread(of_full: Tensor) -> Tensor:
        """[..., side * side * width] of one group to all four: [..., 2, side, 2, side, width]."""
        apart = of_full.reshape(*of_full.shape[:-1], 1, side, 1, side, width)
        return apart.expand(*of_full.shape[:-1], 2, side, 2, side, width)

    compressed.layer_norm.weight.copy_(spread(projector.layer_norm.weight).reshape(-1))
    compressed.layer_norm.bias.copy_(spread(projector.layer_norm.bias).reshape(-1))
    everywhere = spread(projector.linear_1.weight) / 2
    for half in range(2):
        units = slice(half * hidden, (half + 1) * hidden)
        own = torch.zeros_like(everywhere)
        own[:, half] = everywhere[:, half]
        compressed.linear_1.weight[units] = own.flatten(1)
        compressed.linear_1.bias[units] = projector.linear_1.bias
    _continue_as(compressed, projector, torch.cat([projector.linear_2.weight, projector.linear_2.weight], dim=1) / 2)


@torch.no_grad()
def start_downsampled(compressed: CompressedProjector, projector: Projector, side: int) -> None:
    """Set the weights so that a compressed row is about what the projector makes of features at half the resolution.

    A compressed row's 2 ``side`` x 2 ``side`` patches are averaged in 2 x 2 blocks, and the blocks take the places of
    the ``side`` x ``side`` patches of a full row: a tile then reads like one that shows everything half as large. The
    first L of ``linear_1``'s 2L units do this; the others stay as drawn, and ``linear_2`` does not hear them yet. Where
    the patches of every block are equal the result equals the projector's on the blocks, up to rounding.
    """
    hidden, gathered = projector.linear_2.in_features, projector.layer_norm.weight.numel()
    width = gathered // side**2

    def spread(of_full: Tensor) -> Tensor:
        """[..., side * side * width], a patch each, to blocks of 2 x 2 patches each: [..., 4 * side * side * width]."""
        apart = of_full.reshape(*of_full.shape[:-1], side, 1, side, 1, width)
        return apart.expand(*of_full.shape[:-1], side, 2, side, 2, width).flatten(-5)

    compressed.layer_norm.weight.copy_(spread(projector.layer_norm.weight))
    compressed.layer_norm.bias.copy_(spread(projector.layer_norm.bias))
    compressed.linear_1.weight[:hidden] = spread(projector.linear_1.weight) / 4
    compressed.linear_1.bias[:hidden] = projector.linear_1.bias
    second = projector.linear_2.weight
    _continue_as(compressed, projector, torch.cat([second, torch.zeros_like(second)], dim=1))


def _continue_as(compressed: CompressedProjector, projector: Projector, second: Tensor) -> None:
    """After ``linear_1``: the matrix ``second`` [L, 2L] and the projector's last bias, as GELU layers can be.

    ``linear_2`` applies it once with each sign, and ``linear_3`` subtracts: gelu(z) - gelu(-z) = z, so the additional
    layer passes on what it is given.
    """
    hidden = len(second)
    compressed.linear_2.weight.copy_(torch.cat([second, -second]))
    compressed.linear_2.bias.copy_(torch.cat([projector.linear_2.bias, -projector.linear_2.bias]))
    identity = torch.eye(hidden, dtype=second.dtype, device=second.device)
    compressed.linear_3.weight.copy_(torch.cat([identity, -identity], dim=1))
    compressed.linear_3.bias.zero_()
