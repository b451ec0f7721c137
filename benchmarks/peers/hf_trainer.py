"""The peer of ``train_step``: supervised fine-tuning as transformers' documentation has it, nothing added.

``InternVLForConditionalGeneration`` and its processor are opened from the directory that we saved. ``Trainer`` trains
on conversations that the collator renders, tiles, tokenises and pads to the longest; labels are the tokens of the
assistant's turn. No packing, no chunks, no checkpointing of activations.
"""

import io
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from benchmarks.peers.trainer_settings import trainer_settings
from model.data.schema import IMAGE_PLACEHOLDER, Row
from model.training.config import TrainingConfig

Record = dict[str, Any]


class Collator:
    """Rows to one padded batch; counts the real tokens of each, and those that carry loss."""

    def __init__(self, directory: Path) -> None:
        self.processor = AutoProcessor.from_pretrained(directory, local_files_only=True)
        self.processor.tokenizer.padding_side = "right"
        self.tokens: list[int] = []
        self.targets: list[int] = []

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        render = self.processor.apply_chat_template
        texts = [render(conversation(row)) for row in rows]
        prompts = [render(conversation(row)[:-1], add_generation_prompt=True) for row in rows]
        images = [[Image.open(io.BytesIO(m["bytes"])).convert("RGB") for m in row["media"]] for row in rows]
        batch = self.processor(text=texts, images=images, padding=True, return_tensors="pt")
        asked = [len(ids) for ids in self.processor(text=prompts, images=images)["input_ids"]]
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        for label, length in zip(labels, asked, strict=True):
            label[:length] = -100
        # The line end behind an answer belongs to the template, not to the answer.
        lengths = batch["attention_mask"].sum(-1)
        labels[torch.arange(len(rows)), lengths - 1] = -100
        self.tokens.append(int(lengths.sum()))
        self.targets.append(int((labels != -100).sum()))
        return {**batch, "labels": labels}


def conversation(row: Row) -> list[dict[str, Any]]:
    """A row's messages with typed parts; the template puts each image on a line of its own."""
    messages = []
    for message in row["messages"]:
        parts: list[dict[str, str]] = []
        for number, text in enumerate(message["content"].split(f"{IMAGE_PLACEHOLDER}\n")):
            parts += [{"type": "image"}] if number else []
            parts += [{"type": "text", "text": text}] if text else []
        messages.append({"role": message["role"], "content": parts})
    return messages


class Clock(TrainerCallback):
    """Seconds from the end of a step to the end of the next, data included, and the losses."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self._began = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Start."""
        self._began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """One more step."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds.append(now - self._began)
        self._began = now

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        """A loss, averaged over the tokens of its step."""
        if "loss" in logs:
            self.losses.append(logs["loss"])


def train(directory: Path, rows: Sequence[Row], config: TrainingConfig) -> list[Record]:
    """Train with ``Trainer`` and return {tokens, targets, seconds, loss} of every step.

    Args:
        directory: a saved model.
        rows: the dataset, at least one batch.
        config: batch size, steps, optimiser, precision and attention are taken from it.
    """
    torch.set_num_threads(config.threads)
    network = AutoModelForImageTextToText.from_pretrained(
        directory, local_files_only=True, dtype=torch.float32, attn_implementation=config.attention
    )
    collator, clock = Collator(directory), Clock()
    with tempfile.TemporaryDirectory() as output:
        arguments = TrainingArguments(
            output_dir=output,
            **trainer_settings(config),
        )
        Trainer(network, arguments, data_collator=collator, train_dataset=rows, callbacks=[clock]).train()
    names = ("tokens", "targets", "seconds", "loss")
    values = (collator.tokens, collator.targets, clock.seconds, clock.losses)
    # Trainer fetches one batch ahead.
    return [dict(zip(names, step, strict=True)) for step in zip(*(v[: config.steps] for v in values), strict=True)]
