"""Mixed preference optimisation as a stage of training: what ``mpo_loss`` is given, and what it keeps."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from model.families.interface import Network
from model.objectives.config import MpoObjective
from model.objectives.log_probability import segment_sums, token_log_probabilities
from model.objectives.mpo import PairLogProbabilities, RunningMean, mpo_loss
from model.training.config import TrainingConfig
from model.training.pairs import PairReader, Reference
from model.training.references import ReferenceCache, ReferenceCopy
from model.training.stage import Stage, SumFunction, trained_parameters
from model.training.trees import TreeBatch

_SUMS = ("pairs", "preference", "quality", "generation", "chosen_reward", "rejected_reward", "correct")


class RewardMemory:
    """delta, and what the micro-batches of a step add up to.

    Attributes:
        shift: the mean of the rewards of all steps before; every rank has the same one.
    """

    def __init__(self) -> None:
        self.shift = RunningMean()
        self._sums: dict[str, Tensor] = {}

    def add(self, sums: Mapping[str, Tensor]) -> None:
        """``MpoLoss.sums`` of a micro-batch."""
        self._sums = {name: self._sums.get(name, 0) + sums[name].double() for name in _SUMS}

    def step_done(self, sum_over_ranks: SumFunction) -> dict[str, Any]:
        """The step's means over all its pairs, and the delta that it used; then its rewards move delta.

        ``preference``, ``quality`` and ``generation`` are the terms without their weights; ``margin`` is the chosen
        reward above the rejected one; ``accuracy`` the share of pairs whose chosen reward is the higher one.
        """
        totals = sum_over_ranks([float(self._sums[name]) for name in _SUMS])
        self._sums = {}
        added = dict(zip(_SUMS, totals, strict=True))
        means = {name: total / added["pairs"] for name, total in added.items() if name != "pairs"}
        accuracy = means.pop("correct")
        margin = means["chosen_reward"] - means["rejected_reward"]
        record = {**means, "margin": margin, "accuracy": accuracy, "delta": self.shift.mean}
        self.shift = self.shift.add_rewards(added)
        return record

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return self.shift.state()

    def load(self, state: Mapping[str, Any]) -> None:
        """Put back what ``state`` gave."""
        self.shift = RunningMean.from_state(state)


def preference_loss(
    network: Network,
    batch: TreeBatch,
    denominator: float,
    *,
    objective: MpoObjective,
    memory: RewardMemory,
    reference: Callable[[Network, TreeBatch], Reference],
    chunk: int,
) -> Tensor:
    """The share of a pack of pairs in a step's loss; its sums go to ``memory``.

    The auxiliary loss of a mixture of experts is weighted as the micro-batch is in the optimiser step.

    Args:
        network: learns.
        batch: of ``PairReader``: the branches are the chosen and the rejected answer of each pair in turn.
        denominator: pairs of the step, over micro-batches and ranks, divided by the ranks.
        objective: weights and beta.
        memory: holds delta.
        reference: log pi_0(y | x) of the batch's answers.
        chunk: most positions whose logits exist at the same time.
    """
    states, auxiliary = network.hidden(batch.inputs)
    log_probabilities_M = token_log_probabilities(states, network.head, batch.targets, chunk, batch.loss_calls)
    answers_S = segment_sums(log_probabilities_M, batch.lengths)
    found = mpo_loss(
        PairLogProbabilities(answers_S[0::2], answers_S[1::2]),
        PairLogProbabilities(*reference(network, batch)),
        batch.lengths[0::2],
        objective,
        memory.shift.mean,
        denominator,
    )
    memory.add(found.sums)
    if auxiliary is None:
        return found.loss
    return found.loss + auxiliary * (batch.weights.sum() / denominator)


def given_reference(_network: Network, batch: TreeBatch) -> Reference:
    """What ``PairReader`` looked up."""
    return Reference(batch.given["chosen"], batch.given["rejected"])


def preference_stage(
    name: str, config: TrainingConfig, objective: MpoObjective, reference: ReferenceCache | ReferenceCopy
) -> Stage:
    """The stage of mixed preference optimisation on rows with ``chosen`` and ``rejected``.

    Args:
        name: for progress and messages.
        config: ``batch_size`` counts pairs, ``micro_batch_size`` the pairs of a forward pass, which always are a pack.
        objective: weights and beta.
        reference: the network that training starts from.
    """
    memory = RewardMemory()
    cached = isinstance(reference, ReferenceCache)
    loss = partial(
        preference_loss,
        objective=objective,
        memory=memory,
        reference=given_reference if cached else reference,
        chunk=config.loss_chunk,
    )
    return Stage(
        name,
        loss,
        trained_parameters(config),
        source=partial(PairReader, look_up=reference.look_up) if cached else PairReader,
        memory=memory,
        packed=True,
        prepare=reference.fill if cached else None,
    )
