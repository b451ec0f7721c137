"""The peer of ``gspo_iteration``: TRL's ``GRPOTrainer`` configured as GSPO, with transformers' generation.

``InternVLForConditionalGeneration`` and its processor are opened from the directory that we saved. Every answer is a
row of its own, in the generation and in the update: image and prompt are computed once for each.
"""

import io
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Pillow
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import GRPOConfig, GRPOTrainer

from benchmarks.peers.hf_trainer import Clock
from benchmarks.peers.trainer_settings import trainer_settings
from model.data.schema import IMAGE_PLACEHOLDER, Row
from model.objectives.config import GspoObjective
from model.training.config import TrainingConfig
from model.training.policy_config import RolloutConfig

Record = dict[str, Any]


class _Norms(Clock):
    """Seconds of every step, and the norm of its gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.norms: list[float] = []

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        """One more step."""
        if "grad_norm" in logs:
            self.norms.append(float(logs["grad_norm"]))


class _Kept(GRPOTrainer):
    """Keeps the answers and advantages of every rollout."""

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        found = super()._generate_and_score_completions(inputs)
        answers = zip(found["completion_ids"], found["completion_mask"].bool(), strict=True)
        self.kept.append(([ids[mask].tolist() for ids, mask in answers], found["advantages"].tolist()))
        return found


def train(
    directory: Path,
    rows: Sequence[Row],
    config: TrainingConfig,
    objective: GspoObjective,
    rollout: RolloutConfig,
    reward: Callable[[Sequence[int]], float],
    forbidden: Sequence[int],
) -> list[Record]:
    """Train with ``GRPOTrainer`` and return {seconds, grad_norm, answers, advantages} of every iteration.

    Args:
        directory: a saved model.
        rows: queries in the order of the rollouts.
        config: steps, optimiser, precision and attention are taken from it; a step is an iteration.
        objective: the clip range.
        rollout: queries, answers, limit.
        reward: of the token ids of an answer.
        forbidden: ids that are not to be sampled.
    """
    torch.set_num_threads(config.threads)
    network = AutoModelForImageTextToText.from_pretrained(
        directory, local_files_only=True, dtype=torch.float32, attn_implementation=config.attention
    )
    clock = _Norms()
    with tempfile.TemporaryDirectory() as output:
        trainer = _Kept(
            network,
            lambda completion_ids, **_: [reward(ids) for ids in completion_ids],
            _arguments(config, objective, rollout, forbidden, output),
            train_dataset=dataset(rows),
            processing_class=AutoProcessor.from_pretrained(directory, local_files_only=True, padding_side="left"),
            callbacks=[clock],
        )
        trainer.kept = []
        trainer.train()
    names = ("seconds", "grad_norm", "rollout")
    return [dict(zip(names, step, strict=True)) for step in zip(clock.seconds, clock.norms, trainer.kept, strict=True)]


def dataset(rows: Sequence[Row]) -> Dataset:
    """Conversations and images, as TRL takes them; it puts the images before the text."""
    questions = [row["messages"][:-1] for row in rows]
    columns = {
        "prompt": [
            [{**message, "content": message["content"].replace(f"{IMAGE_PLACEHOLDER}\n", "")} for message in asked]
            for asked in questions
        ],
        "images": [[Pillow.open(io.BytesIO(m["bytes"])).convert("RGB") for m in row["media"]] for row in rows],
    }
    message = {"role": Value("string"), "content": Value("string")}
    return Dataset.from_dict(columns, Features({"prompt": List(message), "images": List(Image())}))


def _arguments(
    config: TrainingConfig, objective: GspoObjective, rollout: RolloutConfig, forbidden: Sequence[int], output: str
) -> GRPOConfig:
    return GRPOConfig(
        output_dir=output,
        importance_sampling_level="sequence",
        loss_type="grpo",
        beta=0.0,
        epsilon=objective.epsilon_low,
        epsilon_high=objective.epsilon_high,
        num_generations=rollout.responses,
        max_completion_length=rollout.max_new_tokens,
        temperature=rollout.temperature,
        generation_kwargs={"suppress_tokens": list(forbidden)},
        shuffle_dataset=False,
        steps_per_generation=1,
        **trainer_settings(config),
    )
