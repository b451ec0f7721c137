"""The auxiliary loss of a mixture of experts against transformers' own, and under packing and accumulation."""

import pytest
import torch
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from model.families.interface import Inputs
from model.objectives.load_balancing import load_balancing
from tests.tiny import random_model

LAYERS, ROWS, LENGTH, EXPERTS, TOP = 3, 2, 7, 5, 2
MIXTURES = {
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16, "attention_bias": True},
}


@pytest.fixture
def router_logits():
    generator = torch.Generator().manual_seed(0)
    shape = (ROWS * LENGTH, EXPERTS)
    return tuple(torch.randn(shape, generator=generator, requires_grad=True) for _ in range(LAYERS))


@pytest.mark.parametrize("padded", [False, True])
def test_value_and_gradient_are_those_of_transformers(router_logits, padded):
    mask = torch.ones(ROWS, LENGTH)
    mask[1, 4:] = 0
    given = mask if padded else None
    ours = load_balancing(router_logits, TOP, given)
    theirs = load_balancing_loss_func(router_logits, EXPERTS, TOP, given)
    torch.testing.assert_close(ours, theirs)
    gradients = zip(torch.autograd.grad(ours, router_logits), torch.autograd.grad(theirs, router_logits), strict=True)
    for one, other in gradients:
        torch.testing.assert_close(one, other)
        assert one.any()


def test_equally_busy_experts_cost_the_number_of_choices():
    routes = torch.eye(EXPERTS) * 20 + torch.eye(EXPERTS).roll(1, 1) * 20
    assert load_balancing([routes], TOP).item() == pytest.approx(TOP, rel=1e-5)
    assert load_balancing([routes[:1].expand(EXPERTS, -1)], TOP).item() == pytest.approx(EXPERTS, rel=1e-5)


def test_padding_costs_nothing(router_logits):
    real = [logits.reshape(ROWS, LENGTH, EXPERTS)[:, :4] for logits in router_logits]
    mask = (torch.arange(LENGTH) < 4).expand(ROWS, -1)
    torch.testing.assert_close(load_balancing(router_logits, TOP, mask), load_balancing(real, TOP))


def inputs_of(ids, mask=None):
    return Inputs(ids, mask, None, None, {}, False, torch.arange(ids.numel()))


@pytest.mark.parametrize("kind", MIXTURES)
def test_the_network_gives_its_mixtures_loss_with_the_coefficient_while_it_trains(tokenizer, kind):
    network, _ = random_model(tokenizer, model_type=kind, extra={**MIXTURES[kind], "router_aux_loss_coef": 0.5})
    ids = torch.arange(24).reshape(2, 12) + 30
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    assert network.eval().hidden(inputs_of(ids, mask)).auxiliary is None
    with torch.no_grad():
        stock = network.language_model(input_ids=ids, attention_mask=mask, output_router_logits=True)
    auxiliary = network.train().hidden(inputs_of(ids, mask)).auxiliary
    torch.testing.assert_close(auxiliary, 0.5 * stock.aux_loss)
    auxiliary.backward()
    routers = [p for name, p in network.named_parameters() if "mlp.gate.weight" in name or "mlp.router.weight" in name]
    assert len(routers) == 2
    assert all(p.grad is not None and p.grad.any() for p in routers)


@pytest.mark.parametrize("extra", [{}, {**MIXTURES["qwen3_moe"], "router_aux_loss_coef": 0.0}])
def test_no_coefficient_or_no_experts_means_no_auxiliary_loss(tokenizer, extra):
    network, _ = random_model(tokenizer, model_type="qwen3_moe" if extra else "qwen3", extra=extra)
    assert network.train().hidden(inputs_of(torch.arange(8)[None])).auxiliary is None


def test_checkpointed_layers_give_the_routers_the_same_gradient(tokenizer):
    gradients = []
    for checkpointed in (False, True):
        extra = {**MIXTURES["qwen3_moe"], "router_aux_loss_coef": 1.0}
        network, _ = random_model(tokenizer, model_type="qwen3_moe", extra=extra)
        if checkpointed:
            network.language_model.gradient_checkpointing_enable({"use_reentrant": False})
        network.train().hidden(inputs_of(torch.arange(16)[None])).auxiliary.backward()
        gradients.append(network.language_model.model.layers[0].mlp.gate.weight.grad)
    assert torch.equal(*gradients)


def test_accumulated_micro_batches_weigh_as_their_loss_tokens(tokenizer):
    from model.training.batches import Batch
    from model.training.loop import supervised_loss

    extra = {**MIXTURES["qwen3_moe"], "router_aux_loss_coef": 100.0}
    network, _ = random_model(tokenizer, model_type="qwen3_moe", extra=extra)
    network.train()
    parts, total = [], 0.0
    for length, weights in ((12, torch.tensor([1.0, 2.0])), (20, torch.tensor([5.0]))):
        inputs = inputs_of(torch.arange(length)[None] + 40)
        inputs.keep = torch.arange(len(weights))
        targets = torch.zeros(len(weights), dtype=torch.long)
        batch = Batch(inputs, targets, weights, row_ids=["r"], tokens=length, units=0)
        with torch.no_grad():
            auxiliary = network.hidden(inputs).auxiliary
            network.eval()
            plain = supervised_loss(network, batch, 8.0)
            network.train()
            parts.append(supervised_loss(network, batch, 8.0) - plain)
            total += auxiliary * weights.sum() / 8.0
    torch.testing.assert_close(sum(parts), total)
