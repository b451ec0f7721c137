"""Auxiliary loss of a mixture of experts: keep the experts equally busy.

Source: Switch Transformers (arXiv 2101.03961), equations 4 to 6, over all layers together as transformers computes it:
E * sum_e f_e * P_e, where f_e is the number of choices of expert e over the number of routed tokens (their sum is
``top_k``) and P_e the mean probability of expert e. It is ``top_k`` when all experts are equally busy.

It is a mean over the tokens of one micro-batch, padding left out: packed and padded rows give the same value. A
training step weighs the micro-batch's value by its share of the step's loss weights, so that the values of a step have
weights that sum to one, however it is cut into micro-batches and ranks. The balance itself is asked of every
micro-batch, as in transformers: experts that are busy with one half of a step and idle in the other are not balanced.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def load_balancing(router_logits: Sequence[Tensor], top_k: int, mask_BT: Tensor | None = None) -> Tensor:
    """The auxiliary loss, without its coefficient, in float32.

    Args:
        router_logits: of every layer with experts, [B * T, E] or [B, T, E].
        top_k: experts that a token goes to.
        mask_BT: 1 for real tokens; None when all are.

    Returns:
        a scalar; its gradient reaches the routers through the probabilities.
    """
    experts = router_logits[0].shape[-1]
    device = router_logits[0].device
    chosen_E = torch.zeros(experts, device=device)
    probability_E = torch.zeros(experts, device=device)
    weights_T = None if mask_BT is None else mask_BT.flatten().to(device, torch.float32)
    rows = torch.zeros((), device=device)
    for logits in router_logits:
        probabilities_TE = logits.reshape(-1, experts).float().softmax(-1)
        best_TK = probabilities_TE.detach().topk(top_k, -1).indices
        chosen_TE = torch.zeros_like(probabilities_TE, requires_grad=False).scatter_(-1, best_TK, 1.0)
        weights = probabilities_TE.new_ones(len(probabilities_TE)) if weights_T is None else weights_T
        chosen_E = chosen_E + weights @ chosen_TE
        probability_E = probability_E + weights @ probabilities_TE
        rows = rows + weights.sum()
    return experts * (chosen_E / rows * (probability_E / rows)).sum()
