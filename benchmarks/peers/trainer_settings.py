"""Our training configuration as the arguments that transformers' ``Trainer`` and its descendants in TRL take."""

from typing import Any

import torch

from model.training.config import TrainingConfig


def trainer_settings(config: TrainingConfig) -> dict[str, Any]:
    """Batch, steps, AdamW, cosine schedule and precision of ``config``; nothing saved, reported or dropped."""
    return {
        "per_device_train_batch_size": config.batch_size,
        "max_steps": config.steps,
        "learning_rate": config.learning_rate,
        "weight_decay": config.weight_decay,
        "adam_beta1": config.betas[0],
        "adam_beta2": config.betas[1],
        "adam_epsilon": config.eps,
        "max_grad_norm": config.grad_clip,
        "lr_scheduler_type": "cosine",
        "warmup_steps": round(config.warmup_ratio * config.steps),
        "optim": "adamw_torch_fused",
        "bf16": config.precision == "bfloat16",
        "use_cpu": not torch.cuda.is_available(),
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "seed": config.seed,
    }
