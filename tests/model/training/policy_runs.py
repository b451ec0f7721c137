"""Small policy runs for tests: an engine that needs no network, a reward that needs no scorer, settings."""

import random
from pathlib import Path

import numpy as np

from model.flash.build import build_model
from model.objectives.config import GspoObjective
from model.training.config import TrainingConfig
from model.training.loop import train
from model.training.policy import policy_stage
from model.training.policy_config import RolloutConfig
from model.training.policy_rollouts import Judgement
from model.training.rollout import NetworkSampler, Response
from tests.tiny import byte_tokenizer, picture, question_row, tiny_config

OBJECTIVE = GspoObjective(epsilon_low=3e-4, epsilon_high=4e-4)


def queries(count=6):
    """Questions about no image, one tile, several tiles, and two images, of two task families."""
    rng = np.random.default_rng(5)
    grids = [[(1, 1)], [], [(2, 1)], [(1, 1), (1, 1)]]
    return [
        question_row(f"q{i}", [picture(rng, *g) for g in grids[i % 4]], "7", task=("read", "count")[i % 2])
        for i in range(count)
    ]


def training(**changes) -> TrainingConfig:
    """Two optimiser steps an iteration of 2 queries x 4 answers."""
    base = {"learning_rate": 1e-3, "steps": 4, "batch_size": 4, "micro_batch_size": 4, "precision": "float32"}
    pace = {"log_every": 1, "checkpoint_every": 100, "threads": 1, "warmup_ratio": 0.0, "loss_chunk": 8}
    return TrainingConfig.model_validate(base | pace | changes)


def rollout(**changes) -> RolloutConfig:
    """2 queries x 4 answers of at most 6 tokens."""
    return RolloutConfig.model_validate(
        {"prompts": 2, "responses": 4, "max_new_tokens": 6, "kept_together": 1} | changes
    )


def even_share(answers):
    """A reward of each answer by itself: how many of its tokens are even, in any group of random answers unequal."""
    return [Judgement(float(np.mean([token % 2 == 0 for token in r.token_ids]))) for _, r in answers]


class Recited:
    """An engine that says what it is told: ``answers(row id, number)`` gives token ids."""

    def __init__(self, answers, log_probability=-5.0):
        self.answers, self.log_probability, self.asked, self.refreshed = answers, log_probability, [], 0

    def refresh(self, network):
        self.refreshed += 1

    def sample(self, asked, count, sampling, seed):
        self.asked.append([query.row["id"] for query in asked])
        return [[self._response(query.row["id"], number, sampling) for number in range(count)] for query in asked]

    def _response(self, row_id, number, sampling):
        ids = self.answers(row_id, number)
        reason = "length" if len(ids) == sampling.max_new_tokens else "stop"
        return Response(ids, [self.log_probability] * len(ids), "", reason)


def babble(row_id, number):
    """Token ids that depend on row and number alone, of one to five tokens."""
    draw = random.Random(f"{row_id}/{number}")
    return [draw.randrange(200) for _ in range(draw.randrange(1, 6))]


def run(
    state_dir: Path,
    *,
    config=None,
    engine=None,
    reward=even_share,
    plan=None,
    rows=None,
    network=None,
    processor=None,
    objective=OBJECTIVE,
    progress=lambda *_: None,
    log=lambda _record: None,
):
    """(network, state, memory) of a run; with the network itself sampling where no engine is given."""
    if network is None:
        network, processor = build_model(tiny_config(), byte_tokenizer(), seed=0)
    config = training() if config is None else config
    stage, memory = policy_stage(
        "gspo",
        network,
        NetworkSampler(network, processor) if engine is None else engine,
        reward,
        state_dir / "rollouts",
        training=config,
        objective=objective,
        rollout=rollout() if plan is None else plan,
        progress=progress,
    )
    state = train(network, processor, queries() if rows is None else rows, stage, config, state_dir, progress, log)
    return network, state, memory
