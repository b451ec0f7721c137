"""Rollouts from a real vLLM server: the trainer's tokens and probabilities, and the trainer's new weights.

Runs where FOVEA_VLLM_PYTHON names the interpreter of an environment made from requirements/vllm.txt.
"""

import json
import subprocess

import numpy as np
import pytest
import torch

from components.context import StepContext
from components.gspo.config import GspoConfig, RewardConfig
from components.gspo.step import run
from model.data.errors import InputError
from model.data.shards import write_dataset
from model.flash.checkpoint import load_model, load_processor
from model.objectives.config import GspoObjective
from model.training.attention import use_varlen_attention
from model.training.config import TrainingConfig
from model.training.policy_config import RolloutConfig, RolloutServer
from model.training.rollout import Query
from model.training.sampling import Sampling, sampleable_ids
from model.training.trees import Tree, tree_batch
from model.training.vllm_rollout import VllmSampler, VllmServer
from model.training.weight_transfer import DirectoryTransfer, init_info, update_info
from tests.e2e.vllm_process import VLLM_PYTHON, serving_vllm
from tests.tiny import picture, question_row

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not VLLM_PYTHON, reason="NOT CHECKED WITH VLLM: FOVEA_VLLM_PYTHON is not set"),
]
SAMPLING = Sampling(temperature=1.0, max_new_tokens=12)


@pytest.fixture(scope="module")
def queries():
    rng = np.random.default_rng(0)
    images = [[picture(rng)], [picture(rng, 2, 2)], [picture(rng), picture(rng)], []]
    rows = [question_row(f"row-{i}", given, "a", question="how many digits?") for i, given in enumerate(images)]
    return [Query(row) for row in rows] + [Query(rows[0], prefix="I see ")]


@pytest.fixture(scope="module")
def server(tiny_directory, tmp_path_factory):
    options = ["--limit-mm-per-prompt", '{"image": 2, "video": 0}', "--no-enable-prefix-caching"]
    log = tmp_path_factory.mktemp("vllm") / "log"
    with serving_vllm(tiny_directory, log, options, VLLM_SERVER_DEV_MODE="1") as url:
        yield VllmServer(url)


@pytest.fixture
def engine(server, tiny_directory, tmp_path):
    processor = load_processor(tiny_directory)
    text = load_model(tiny_directory).config.text_config
    sizes = (text.vocab_size, text.max_position_embeddings)
    transfer = DirectoryTransfer(tmp_path / "weights", processor)
    return VllmSampler(server, processor, *sizes, transfer, model=str(tiny_directory))


def trained_log_probabilities(network, processor, queries, groups):
    """Of every sampled token under the trainer's own forward pass."""
    trees = []
    for query, group in zip(queries, groups, strict=True):
        trunk = processor.question(query.row)
        prefix = processor.tokenizer.encode(query.prefix, add_special_tokens=False).ids
        trunk.input_ids += prefix
        trees.append(Tree(trunk, [response.token_ids for response in group]))
    batch = tree_batch(trees, [1.0] * sum(map(len, groups)), {})
    with torch.no_grad(), use_varlen_attention(*network.parts().language):
        logits = network.head(network.hidden(batch.inputs).states)
    return logits.log_softmax(-1).gather(1, batch.targets[:, None])[:, 0].tolist()


def assert_same_model(engine, network, queries, groups):
    sampled = [value for group in groups for response in group for value in response.log_probabilities]
    expected = trained_log_probabilities(network, engine.processor, queries, groups)
    assert sampled == pytest.approx(expected, abs=2e-3)


def test_the_server_samples_from_the_trainers_distribution(engine, queries, tiny_directory):
    network = load_model(tiny_directory)
    groups = engine.sample(queries, 4, SAMPLING, seed=1)
    assert [len(group) for group in groups] == [4] * len(queries)
    assert_same_model(engine, network, queries, groups)
    allowed = set(sampleable_ids(engine.processor.tokenizer, engine.processor.eos_token_id, 10**6))
    for response in (response for group in groups for response in group):
        assert set(response.token_ids) <= allowed
        stopped = response.token_ids[-1] == engine.processor.eos_token_id
        assert response.finish_reason == ("stop" if stopped else "length")
        assert len(response.token_ids) <= SAMPLING.max_new_tokens
    assert len({tuple(response.token_ids) for response in groups[0]}) > 1, "answers of a group differ"


def test_new_weights_reach_the_server(engine, queries, tiny_directory):
    network = load_model(tiny_directory)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    engine.refresh(network)
    groups = engine.sample(queries, 4, SAMPLING, seed=2)
    assert_same_model(engine, network, queries, groups)
    old = trained_log_probabilities(load_model(tiny_directory), engine.processor, queries, groups)
    sampled = [value for group in groups for response in group for value in response.log_probabilities]
    assert np.abs(np.subtract(sampled, old)).max() > 0.1, "the weights before would not do"
    engine.refresh(load_model(tiny_directory))


def test_a_server_that_reads_prompts_otherwise_is_refused(engine, queries, monkeypatch):
    processor = engine.processor
    monkeypatch.setattr(engine, "processor", load_processor_with_another_prompt(processor))
    with pytest.raises(InputError, match=r"row-3: vLLM .* reads its prompt as .* does it serve the same model"):
        engine.sample(queries[3:4], 2, SAMPLING, seed=0)


def load_processor_with_another_prompt(processor):
    from dataclasses import replace

    return replace(processor, system_prompt="Answer at length.")


def test_vllm_takes_what_a_transfer_over_nccl_sends(tiny_directory):
    """Its own classes read our requests; the broadcast itself needs GPUs."""
    weights = {"a.weight": torch.zeros(2, 3, dtype=torch.bfloat16), "b": torch.zeros(1)}
    told = {"init": init_info(bytes(range(128)), 2), "update": update_info(weights)}
    code = """
import json, sys
from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferUpdateInfo
told = json.loads(sys.argv[1])
init = NCCLWeightTransferInitInfo(**told["init"])
update = NCCLWeightTransferUpdateInfo(**told["update"])
joined = [list(init.nccl_unique_id_bytes), init.world_size, init.rank_offset]
print(json.dumps([*joined, update.dtype_names, update.shapes]))
"""
    output = subprocess.run(
        [VLLM_PYTHON, "-c", code, json.dumps(told)], capture_output=True, text=True, check=True, timeout=300
    ).stdout
    read = json.loads(output.splitlines()[-1])
    assert read == [list(range(128)), 3, 1, ["bfloat16", "float32"], [[2, 3], [1]]]


def test_a_model_learns_from_a_servers_answers(server, queries, tiny_directory, tmp_path):
    """Four iterations of the step, at a rate at which weights that stay behind would be seen in the probabilities."""
    rows = [query.row for query in queries[:4]]
    write_dataset(tmp_path / "rows", rows, shards=1, rejects=[])
    steps = 4
    config = GspoConfig(
        training=TrainingConfig(
            learning_rate=1e-2, steps=steps, batch_size=16, log_every=1, threads=1, precision="float32"
        ),
        objective=GspoObjective(epsilon_low=3e-4, epsilon_high=4e-4),
        rollout=RolloutConfig(
            prompts=4,
            responses=4,
            max_new_tokens=12,
            max_prompt_tokens=512,
            server=RolloutServer(url=server.url, model=str(tiny_directory)),
            importance_cap=2.0,
        ),
        # Random answers are never right; those that end early lose less.
        reward=RewardConfig(soft_length=0),
        heldout_rows=1,
    )
    context = StepContext(state_dir=tmp_path / "state")
    given = {"rows": tmp_path / "rows", "heldout": tmp_path / "rows", "init": tiny_directory}
    result = run(config, **given, model=tmp_path / "model", context=context)
    assert result.numbers["answers"] == 16 * steps
    learned = [record for record in result.history if record["learning"]]
    assert learned and all(record["mismatch"] < 2e-3 for record in learned)
    start, end = load_model(tiny_directory), load_model(tmp_path / "model")
    moved = (start.head.weight - end.head.weight).abs().max()
    assert moved > 0.01, "the server had to follow"
