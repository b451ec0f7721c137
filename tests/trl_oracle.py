"""TRL's own loss code on a tiny language model, without the data and generation parts of its trainers.

``DPOTrainer._compute_loss`` and ``GRPOTrainer._compute_loss`` are called as they are; a stand-in holds the settings
that they read from a trainer.
"""

from collections import defaultdict
from contextlib import nullcontext
from types import SimpleNamespace

import torch

PAD = 1


def language_model(seed=0):
    """A Qwen3 of two layers whose head gives TRL log-probabilities and entropies."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from trl.trainer.utils import add_fused_lm_head

    shape = {"vocab_size": 23, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}
    config = AutoConfig.for_model("qwen3", **shape, **heads, pad_token_id=PAD, tie_word_embeddings=False)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    return model


def answer_states(model, prompts, answers):
    """Ours: the states [M, D] before the tokens of the answers, one sequence at a time, and those tokens [M]."""
    states = [
        model.model(torch.tensor([prompt + answer])).last_hidden_state[0, len(prompt) - 1 : -1]
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    return torch.cat(states), torch.tensor([token for answer in answers for token in answer])


def dpo_loss(model, prompts, chosen, rejected, reference, loss_types, weights, beta):
    """(loss, metrics) of ``DPOTrainer``; ``reference`` holds the log-probabilities [P] of chosen and rejected."""
    from trl.trainer.dpo_trainer import DPOTrainer

    trainer = _stand_in(
        model,
        loss_types=loss_types,
        loss_weights=weights,
        beta=beta,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        use_weighting=False,
        _total_train_tokens=0,
        _tp_size=1,
    )
    sequences = [
        (prompt, answer) for answers in (chosen, rejected) for prompt, answer in zip(prompts, answers, strict=True)
    ]
    inputs = {
        "input_ids": _right([prompt + answer for prompt, answer in sequences], PAD),
        "attention_mask": _right([[1] * len(prompt + answer) for prompt, answer in sequences], 0),
        "completion_mask": _right([[0] * len(prompt) + [1] * len(answer) for prompt, answer in sequences], 0),
        "ref_chosen_logps": reference[0],
        "ref_rejected_logps": reference[1],
    }
    return DPOTrainer._compute_loss(trainer, model, inputs, False), _metrics(trainer)


def gspo_loss(model, prompts, answers, advantages, old, epsilons, weights=None):
    """(loss, metrics) of ``GRPOTrainer`` set up as GSPO.

    ``old`` holds the log-probabilities of every answer's tokens; ``weights`` [S] are TRL's importance sampling ratios.
    """
    from trl.trainer.grpo_trainer import GRPOTrainer

    trainer = _stand_in(
        model,
        importance_sampling_level="sequence",
        loss_type="grpo",
        beta=0.0,
        epsilon_low=epsilons[0],
        epsilon_high=epsilons[1],
        args=SimpleNamespace(delta=None),
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=weights is not None,
        vllm_importance_sampling_correction=weights is not None,
        current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=False,
    )
    trainer._get_per_token_logps_and_entropies = lambda *given, **named: GRPOTrainer._get_per_token_logps_and_entropies(
        trainer, *given, **named
    )
    inputs = {
        "prompt_ids": _right([prompt[::-1] for prompt in prompts], PAD).flip(1),
        "prompt_mask": _right([[1] * len(prompt) for prompt in prompts], 0).flip(1),
        "completion_ids": _right(answers, PAD),
        "completion_mask": _right([[1] * len(answer) for answer in answers], 0),
        "advantages": advantages,
        "old_per_token_logps": torch.nn.utils.rnn.pad_sequence(list(old), batch_first=True),
    }
    if weights is not None:
        inputs["importance_sampling_ratio"] = weights[:, None]
    return GRPOTrainer._compute_loss(trainer, model, inputs), _metrics(trainer)


def _stand_in(model, **settings):
    accelerator = SimpleNamespace(
        device=torch.device("cpu"),
        is_main_process=True,
        autocast=nullcontext,
        gather=lambda x: x,
        gather_for_metrics=lambda x: x,
        reduce=lambda x, reduction: x,
    )
    metrics = defaultdict(lambda: defaultdict(list))
    return SimpleNamespace(model=model, accelerator=accelerator, aux_loss_enabled=False, _metrics=metrics, **settings)


def _metrics(trainer):
    return {name: values[0] for name, values in trainer._metrics["train" if trainer.model.training else "eval"].items()}


def _right(rows, fill):
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=fill)
