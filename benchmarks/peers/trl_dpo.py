"""The peer of ``mpo_step``: TRL's ``DPOTrainer`` with the three losses of MPO, as its documentation has it.

``InternVLForConditionalGeneration`` and its processor are opened from the directory that we saved, a second time as
the frozen reference, which ``DPOTrainer`` runs in every step (it cannot compute it beforehand for rows with images).
Prompts and answers are given as rendered text: from conversations TRL takes the line end behind an answer for a part of
it.
"""

import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Image
from PIL import Image as Pillow
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import DPOConfig, DPOTrainer

from benchmarks.peers.hf_trainer import Clock, conversation
from benchmarks.peers.trainer_settings import trainer_settings
from model.data.schema import TURN_END, Row
from model.objectives.config import MpoObjective
from model.training.config import TrainingConfig

Record = dict[str, Any]


def train(directory: Path, rows: Sequence[Row], config: TrainingConfig, objective: MpoObjective) -> list[Record]:
    """Train with ``DPOTrainer`` and return {seconds, loss} of every step.

    Args:
        directory: a saved model.
        rows: one pair after the other, as the steps take them.
        config: batch size, steps, optimiser, precision and attention are taken from it.
        objective: weights and beta.
    """
    torch.set_num_threads(config.threads)
    network, reference = (
        AutoModelForImageTextToText.from_pretrained(
            directory, local_files_only=True, dtype=torch.float32, attn_implementation=config.attention
        )
        for _ in range(2)
    )
    processor = AutoProcessor.from_pretrained(directory, local_files_only=True)
    clock = Clock()
    with tempfile.TemporaryDirectory() as output:
        trainer = _InOrder(
            network,
            reference,
            _arguments(config, objective, output),
            train_dataset=dataset(rows, processor),
            processing_class=processor,
            callbacks=[clock],
        )
        trainer.train()
    names = ("seconds", "loss")
    return [dict(zip(names, step, strict=True)) for step in zip(clock.seconds, trainer.losses, strict=True)]


class _InOrder(DPOTrainer):
    """Takes the rows in the order in which they are given, and keeps the loss of every step to its last digit."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.losses: list[float] = []

    def _get_train_sampler(self, dataset: Any = None) -> torch.utils.data.Sampler:
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def compute_loss(self, *given: Any, **named: Any) -> torch.Tensor:
        loss = super().compute_loss(*given, **named)
        self.losses.append(loss.item())
        return loss


def dataset(rows: Sequence[Row], processor: Any) -> Dataset:
    """Rendered prompts and answers with their images, as TRL takes them."""
    render = processor.apply_chat_template
    columns = {
        "images": [[Pillow.open(io.BytesIO(m["bytes"])).convert("RGB") for m in row["media"]] for row in rows],
        "prompt": [render(conversation(row)[:-1], add_generation_prompt=True) for row in rows],
        "chosen": [row["chosen"] + TURN_END for row in rows],
        "rejected": [row["rejected"] + TURN_END for row in rows],
    }
    return Dataset.from_dict(columns).cast_column("images", [Image()])


def _arguments(config: TrainingConfig, objective: MpoObjective, output: str) -> DPOConfig:
    return DPOConfig(
        output_dir=output,
        loss_type=["sigmoid", "bco_pair", "sft"],
        loss_weights=[objective.preference_weight, objective.quality_weight, objective.generation_weight],
        beta=objective.beta,
        max_length=None,
        **trainer_settings(config),
    )
