"""Random tiny models of every architecture that InternVL3.5 is published in."""

from tests.tiny import byte_tokenizer, harmony_tokenizer, tiny_config

QWEN_MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True}
OSS_MIXTURE = {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16, "attention_bias": True}
LARGE_VISION = {"norm_type": "rms_norm", "use_qk_norm": True, "attention_bias": False}
# The smallest published size of each architecture: its language model's keys and its tower's.
ARCHITECTURES = {
    "1b, Qwen3, tied": ({"tie_word_embeddings": True}, {}),
    "8b, Qwen3, untied": ({}, {}),
    "38b, Qwen3 under InternViT-6B": ({}, LARGE_VISION),
    "30b, Qwen3 mixture": ({"model_type": "qwen3_moe", "extra": QWEN_MIXTURE}, {}),
    "241b, Qwen3 mixture under InternViT-6B": ({"model_type": "qwen3_moe", "extra": QWEN_MIXTURE}, LARGE_VISION),
    "20b, GPT-OSS": (
        {
            "model_type": "gpt_oss",
            "rope_theta": 150000,
            "yarn": {"original_max_position_embeddings": 64},
            "extra": {**OSS_MIXTURE, "rms_norm_eps": 1e-5},
        },
        {},
    ),
}


def random_architecture(name: str):
    """(network, processor) whose answers depend on the input."""
    import torch

    from model.flash.build import build_model
    from model.flash.config import YarnConfig

    language, vision = ARCHITECTURES[name]
    if "yarn" in language:
        language = language | {"yarn": YarnConfig(**language["yarn"])}
    config = tiny_config(**language)
    config = config.model_copy(update={"vision": config.vision.model_copy(update=vision)})
    tokenizer = harmony_tokenizer() if language.get("model_type") == "gpt_oss" else byte_tokenizer()
    network, processor = build_model(config, tokenizer, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return network.eval(), processor
