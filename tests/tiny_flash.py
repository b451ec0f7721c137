"""What a released Flash checkpoint holds beside any InternVL, and tiny random models of that kind."""

D, L = 64, 64  # widths of the tiny tower and language model

# Shapes of a released Flash checkpoint's extra tensors for a tower of width D and a language model of width L.
FLASH = {
    "mlp2.0.weight": [16 * D],
    "mlp2.0.bias": [16 * D],
    "mlp2.1.weight": [2 * L, 16 * D],
    "mlp2.1.bias": [2 * L],
    "mlp2.4.weight": [2 * L, 2 * L],
    "mlp2.4.bias": [2 * L],
    "mlp2.7.weight": [L, 2 * L],
    "mlp2.7.bias": [L],
    "pooling_before_gating.query_token": [1, D],
    **{f"pooling_before_gating.attn{i}.in_proj_weight": [3 * D, D] for i in range(1, 5)},
    **{f"pooling_before_gating.attn{i}.in_proj_bias": [3 * D] for i in range(1, 5)},
    **{f"pooling_before_gating.attn{i}.out_proj.weight": [D, D] for i in range(1, 5)},
    **{f"pooling_before_gating.attn{i}.out_proj.bias": [D] for i in range(1, 5)},
    **{f"pooling_before_gating.norm{i}.{kind}": [D] for i in range(1, 5) for kind in ("weight", "bias")},
    **{f"gating.block{i}.0.weight": [4 * D, D] for i in range(1, 5)},
    **{f"gating.block{i}.3.weight": [D, 4 * D] for i in range(1, 5)},
    **{f"gating.block{i}.5.weight": [D] for i in range(1, 5)},
    **{f"gating.block{i}.{place}.bias": [width] for i in range(1, 5) for place, width in ((0, 4 * D), (3, D), (5, D))},
    "gating.gate.0.weight": [D],
    "gating.gate.0.bias": [D],
    "gating.gate.1.weight": [2, D],
    "gating.gate.1.bias": [2],
}


def random_flash_model(tokenizer, decision=None, seed: int = 0):
    """(network, processor) that routes by ``decision``: by one half where it is None.

    A random router's probabilities lie close together; its last layer is scaled so that tiles of noise differ.
    """
    import numpy as np
    import torch

    from model.flash.decisions import Decision
    from tests.tiny import TILE, random_model

    network, processor = random_model(tokenizer, seed=seed)
    network.add_flash(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in (network.router, network.compressed_projector):
            for parameter in module.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.15)
        # Half of all noise is compressible.
        noise = np.random.default_rng(seed).integers(0, 256, (64, TILE, TILE, 3), dtype=np.uint8)
        patches = network.patches(torch.from_numpy(noise))
        logits = network.router(patches)
        gate = network.router.gating.gate[1]
        margin = logits[:, 0] - logits[:, 1]
        gate.weight.mul_(2 / margin.std())
        gate.bias.mul_(2 / margin.std())
        gate.bias[0] -= 2 * margin.median() / margin.std()
    network.route_by(decision or Decision())
    return network.eval(), processor
