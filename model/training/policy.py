"""The stage of group sequence policy optimisation: the network answers, is rewarded, and learns from its answers.

The objective is that of ``model/objectives/gspo.py``; where the batches come from, ``policy_source.py``.
"""

import math
from functools import partial
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from model.families.interface import Network
from model.objectives.config import GspoObjective
from model.objectives.gspo import gspo_loss, truncated_importance
from model.objectives.log_probability import token_scores
from model.training.config import TrainingConfig
from model.training.engine import Engine
from model.training.policy_config import RolloutConfig
from model.training.policy_memory import PolicyMemory
from model.training.policy_rollouts import Progress, RewardFunction
from model.training.policy_source import RolloutSource
from model.training.rollout import RolloutEngine
from model.training.stage import Stage, trained_parameters
from model.training.trees import TreeBatch


class PolicyStage(NamedTuple):
    """The stage, and the memory that counts over its run."""

    stage: Stage
    memory: PolicyMemory


def no_progress(_label: str, _done: int, _total: int) -> None:
    """Show nothing."""


def policy_stage(
    name: str,
    network: Network,
    engine: RolloutEngine,
    reward: RewardFunction,
    directory: Path,
    *,
    training: TrainingConfig,
    objective: GspoObjective,
    rollout: RolloutConfig,
    progress: Progress = no_progress,
) -> PolicyStage:
    """The stage that ``train`` runs on queries.

    Args:
        name: for progress and messages.
        network: the one that ``train`` is given.
        engine: samples; ``NetworkSampler(network, processor)``, or another that is told of new weights.
        reward: judges answers.
        directory: where rollouts are stored; survives a kill.
        training: as ``train`` is given it.
        objective: the clip range.
        rollout: how answers are sampled.
        progress: told of the queries that are answered.
    """
    memory = PolicyMemory()
    loss = partial(
        policy_loss,
        objective=objective,
        importance_cap=rollout.importance_cap,
        chunk=training.loss_chunk,
        memory=memory,
    )
    source = partial(
        RolloutSource,
        network=network,
        engine=engine,
        reward=reward,
        rollout=rollout,
        directory=directory,
        memory=memory,
        progress=progress,
    )
    parameters = trained_parameters(training)
    return PolicyStage(Stage(name, loss, parameters, source, memory, packed=True, prepare=_prepare), memory)


def _prepare(trainer: Engine, source: RolloutSource) -> None:
    source.prepare(trainer)


def policy_loss(
    network: Network,
    batch: TreeBatch,
    denominator: float,
    *,
    objective: GspoObjective,
    importance_cap: float | None,
    chunk: int,
    memory: PolicyMemory,
) -> Tensor:
    """The share of a micro-batch of answers in the loss of its optimiser step.

    Args:
        network: the one that learns.
        batch: ``given`` holds ``advantages`` [S], ``sampler`` [M] (log-probabilities of the sampling engine),
            ``places`` [S] (of the answers among those of the step) and, where the network has changed since the
            rollout, ``old`` [M].
        denominator: answers of the optimiser step; 0 where none of them has a reward.
        objective: the clip range.
        importance_cap: of ``truncated_importance``; None weighs all answers alike.
        chunk: most positions whose logits exist at the same time.
        memory: told what is to be recorded.
    """
    states, auxiliary = network.hidden(batch.inputs)
    scores = token_scores(states, network.head, batch.targets, chunk, calls=batch.loss_calls)
    given = batch.given
    old = given.get("old")
    before = scores.log_probabilities.detach() if old is None else old
    cap = math.inf if importance_cap is None else importance_cap
    correction = truncated_importance(before, given["sampler"], batch.lengths, cap)
    found = gspo_loss(
        scores.log_probabilities,
        old,
        batch.lengths,
        given["advantages"],
        objective,
        # Of a step without a single reward every advantage is 0, and so is the loss.
        denominator or 1.0,
        weights_S=None if importance_cap is None else correction.weights,
        entropies_M=scores.entropies,
    )
    if given["advantages"].any():  # a stand-in is there to run the modules
        memory.add(found, correction, given["places"].tolist(), batch.lengths)
    if auxiliary is None:
        return found.loss
    return found.loss + auxiliary * (batch.weights.sum() / (denominator or 1.0))
