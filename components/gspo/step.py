"""Group sequence policy optimisation: the model answers, is rewarded, and learns from its answers."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from components.context import StepContext, StepResult
from components.gspo.config import GspoConfig
from components.training_step import finish, run_stage
from model.data.errors import InputError
from model.data.schema import Row
from model.data.shards import open_dataset
from model.families.interface import Network, Processor
from model.families.opening import load_network, load_processor
from model.training.policy import policy_stage
from model.training.policy_rollouts import Judgement
from model.training.rollout import NetworkSampler, Response, RolloutEngine
from model.training.vllm_rollout import VllmSampler, VllmServer
from model.training.weight_transfer import DirectoryTransfer, NcclTransfer
from scoring.reward import Answered, Reward, RewardOutcome, RewardRule


def run(config: GspoConfig, *, rows: Path, heldout: Path, init: Path, model: Path, context: StepContext) -> StepResult:
    """Train ``init`` on its own answers to ``rows``.

    Args:
        config: training, objective, rollouts, rewards.
        rows: dataset of queries (select_queries).
        heldout: dataset; its first rows per family are scored at the end.
        init: the model directory to start from.
        model: the model directory to write.
        context: state directory and progress.

    Raises:
        InputError: a row or ``init`` cannot be used, or a scorer that rows name.
    """
    dataset = list(open_dataset(rows).rows())
    with closing(Reward(_rule(config), workers=config.reward.workers, seconds=config.reward.seconds)) as reward:
        check_scorers(dataset, reward)
        network, processor = load_network(init), load_processor(init)
        with _engine(config, network, processor, context.state_dir / "gspo" / "served") as engine:
            stage, memory = policy_stage(
                "gspo",
                network,
                engine,
                lambda answers: judged(reward, answers),
                context.state_dir / "gspo" / "rollouts",
                training=config.training,
                objective=config.objective,
                rollout=config.rollout,
                progress=context.progress,
            )
            result = run_stage(network, processor, dataset, stage, config.training, context)
    result.numbers["queries_left_out"] = memory.left_out
    result.numbers |= {f"answers_{name}": number for name, number in memory.counts.items() if name != "answers"}
    result.numbers["answers"] = memory.counts["answers"]
    result.values["reward_failures"] = memory.failures
    base = init if config.training.lora else None
    return finish(network, processor, heldout, config.heldout_rows, model, context, result, adapter_of=base)


@contextmanager
def _engine(config: GspoConfig, network: Network, processor: Processor, directory: Path) -> Iterator[RolloutEngine]:
    """What samples; ``directory`` is where a server reads weights. Its connections are closed at the end."""
    server = config.rollout.server
    if server is None:
        yield NetworkSampler(network, processor, config.rollout.cache_tokens)
        return
    with closing(VllmServer(server.url, server.timeout_s)) as connected:
        yield VllmSampler(
            connected,
            processor,
            network.config.text_config.vocab_size,
            network.config.text_config.max_position_embeddings,
            NcclTransfer() if server.transfer == "nccl" else DirectoryTransfer(directory, processor),
            model=server.model,
            concurrency=server.concurrency,
        )


def check_scorers(rows: Sequence[Row], reward: Reward) -> None:
    """Every scorer that rows name can judge the reference of one of them at least.

    A row that cannot be judged costs its answers, and is counted. A scorer that cannot (a name that is none, a library
    that is not installed) would cost all of them, and a run that learns nothing.

    Raises:
        InputError: names the first row of such a scorer.
    """
    of_scorer: dict[str, list[Row]] = {}
    for row in rows:
        of_scorer.setdefault(row["scorer"]["name"], []).append(row)
    for name, asked in of_scorer.items():
        reasons = (_why_unjudged(row, reward) for row in asked)
        first = next(reasons)
        if first is not None and None not in reasons:
            raise InputError(f"row {asked[0]['id']}: {first}; so it is with all {len(asked)} rows of {name}")


def _why_unjudged(row: Row, reward: Reward) -> str | None:
    judge = row["scorer"]
    return reward([Answered(judge["name"], judge["parameters"], row["answers"], row["answers"][0])])[0].failed


def judged(reward: Reward, answers: Sequence[tuple[Row, Response]]) -> list[Judgement]:
    """Rewards of answers to rows; an answer that the row's scorer could not judge has none."""
    asked = [
        Answered(
            row["scorer"]["name"],
            row["scorer"]["parameters"],
            row["answers"],
            response.text,
            tokens=len(response.token_ids),
            cut=response.finish_reason == "length",
        )
        for row, response in answers
    ]
    return [_judgement(outcome) for outcome in reward(asked)]


def _judgement(outcome: RewardOutcome) -> Judgement:
    if outcome.failed is not None:
        return Judgement(None, failure=outcome.failed)
    return Judgement(outcome.value, float(outcome.right), float(outcome.well_formed))


def _rule(config: GspoConfig) -> RewardRule:
    reward = config.reward
    return RewardRule(
        reward.accuracy_weight,
        reward.format_weight,
        soft_length=reward.soft_length,
        max_length=config.rollout.max_new_tokens,
        length_penalty=reward.length_penalty,
    )
