"""Attention for packs: every token sees the tokens before it in its own sample, and no other sample.

Registered with transformers under the name ``varlen``. No [T, T] mask is made: transformers builds masks only for names
that it knows, and the borders of the samples come as ``cu_seq_lens_q`` through the keyword arguments of the layers.

On a GPU in half precision torch's variable-length flash kernel takes the whole pack at once; elsewhere samples of
similar length go through SDPA together: one by one, a pack of short samples is thousands of small operations.
Shape suffixes: T tokens of the pack, S samples, L tokens of a sample, H query heads, K key and value heads, E width of
a head.
"""

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

NAME = "varlen"
"""The name under which transformers finds this attention."""
Kernel = Literal["varlen", "groups"]

_MATH_UP_TO = 512
"""Tokens up to which, in bfloat16 on a CPU, plain matrix products are faster than SDPA (0.40 against 0.59 ms for 64
tokens and 4 heads, 6.2 against 10.2 for 512; 42 against 25 for 1024)."""
_PADDED_TO = 1.25
"""Longest over shortest sample of a group."""
_TOGETHER = 4096
"""Positions of a group, so that the logits of short samples stay small."""


def set_attention(network: nn.Module, implementation: str) -> None:
    """Choose transformers' attention (eager, sdpa, flash_attention_2) for every model inside ``network``."""
    from transformers import PreTrainedModel

    for module in network.modules():
        if isinstance(module, PreTrainedModel) and hasattr(module, "set_attn_implementation"):
            # GPT-OSS has learned sinks in its softmax, which PyTorch's kernel has no place for.
            eager = implementation == "sdpa" and not module._supports_sdpa
            module.set_attn_implementation("eager" if eager else implementation)


@contextmanager
def use_varlen_attention(*modules: nn.Module) -> Iterator[None]:
    """Let the language models among ``modules`` (or inside their wrappers) attend within samples; then as before.

    Inside, every forward pass of theirs needs ``cu_seq_lens_q``.

    Raises:
        ValueError: no module of transformers is among them, or one cannot change its attention.
    """
    from transformers import AttentionInterface, PreTrainedModel

    AttentionInterface.register(NAME, varlen_attention)
    models = [m for module in modules if (m := _first(module, PreTrainedModel)) is not None]
    if not models:
        raise ValueError("no transformers model among the modules")
    with ExitStack() as undo:
        for model in models:
            # The previous name is read before it changes; a model that silently kept it would mix the samples.
            undo.callback(model.set_attn_implementation, model.config._attn_implementation)
            model.set_attn_implementation(NAME)
            if model.config._attn_implementation != NAME:
                raise ValueError(f"{type(model).__name__} does not let its attention be chosen")
        yield


def _first(module: nn.Module, kind: type) -> Any:
    return next((m for m in module.modules() if isinstance(m, kind)), None)


def varlen_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention within the samples of a pack, as transformers calls it.

    Args:
        module: the attention layer; not used.
        query: [1, H, T, E].
        key, value: [1, K, T, E]; H is a multiple of K.
        attention_mask: must be None.
        dropout: must be 0; no published recipe of these families drops attention.
        scaling: factor of the logits; E**-0.5 when None.
        sliding_window: a token sees this many tokens, itself included; all before it when None.
        s_aux: [H] attention sinks, a learned logit of each head that takes part in the softmax and has no value
            (GPT-OSS).
        cu_seq_lens_q: int32 [S + 1] borders of the samples, from 0 to T.
        max_length_q: tokens of the longest sample; counted when None.

    Returns:
        [1, T, H, E], and None for the weights.

    Raises:
        ValueError: the borders are missing or do not fit, or an argument is given that a pack cannot have.
    """
    if cu_seq_lens_q is None:
        raise ValueError("packed attention needs cu_seq_lens_q, the borders of the samples; padded rows use sdpa")
    if attention_mask is not None or query.shape[0] != 1 or query.shape[2] != key.shape[2]:
        raise ValueError("a pack is one row without mask and without cached keys")
    if dropout:
        raise ValueError("attention dropout is not supported in packs")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    kind = query.device.type
    if torch.is_autocast_enabled(kind):
        # Norms of queries and keys give float32 under autocast, where values are in half precision.
        query, key, value = (x.to(torch.get_autocast_dtype(kind)) for x in (query, key, value))
    if kind == "cuda" and _kernel(query.device, query.dtype, query.shape[-1]) == "varlen":
        longest = int(cu_seq_lens_q.diff().max() if max_length_q is None else max_length_q)
        window = None if sliding_window is None or sliding_window >= longest else sliding_window
        cu = cu_seq_lens_q.to(query.device, torch.int32)
        q_THE, k_TKE, v_TKE = (x[0].transpose(0, 1) for x in (query, key, value))
        return flash_pack(q_THE, k_TKE, v_TKE, cu, longest, scaling, window, s_aux)[None], None
    return grouped_pack(query, key, value, cu_seq_lens_q, scaling, sliding_window, s_aux), None


def pick_kernel(device: str, dtype: torch.dtype, capability: tuple[int, int], head_dim: int, *, built: bool) -> Kernel:
    """Which kernel attends: torch's variable-length flash attention where it can, else SDPA by groups of samples.

    Args:
        device: ``cpu``, ``cuda``, ...
        dtype: of queries, keys and values.
        capability: compute capability of the GPU; flash attention needs Ampere, (8, 0).
        head_dim: width of a head; flash attention takes multiples of 8 up to 256.
        built: this torch has the kernel.
    """
    half = dtype in (torch.float16, torch.bfloat16)
    fits = head_dim % 8 == 0 and head_dim <= 256
    return "varlen" if built and device == "cuda" and half and fits and capability >= (8, 0) else "groups"


@cache
def _kernel(device: torch.device, dtype: torch.dtype, head_dim: int) -> Kernel:
    return pick_kernel(
        device.type, dtype, torch.cuda.get_device_capability(device), head_dim, built=has_varlen_kernel()
    )


def has_varlen_kernel() -> bool:
    """This torch was built with flash attention and has the interface that we call (windows, grouped heads)."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    parameters = inspect.signature(varlen_attn).parameters
    return torch.backends.cuda.is_flash_attention_available() and {"window_size", "enable_gqa"} <= parameters.keys()


def flash_pack(
    q_THE: Tensor,
    k_TKE: Tensor,
    v_TKE: Tensor,
    cu: Tensor,
    longest: int,
    scaling: float,
    window: int | None,
    sinks_H: Tensor | None,
) -> Tensor:
    """A whole pack through torch's variable-length kernel: [T, H, E]. Arguments as in ``varlen_attention``."""
    from torch.nn.attention.varlen import varlen_attn

    # The kernel counts the tokens to the left, without the token itself.
    span = (-1, 0) if window is None else (window - 1, 0)
    if sinks_H is not None:
        return _FlashWithSinks.apply(q_THE, k_TKE, v_TKE, sinks_H, cu, longest, scaling, span)
    return varlen_attn(q_THE, k_TKE, v_TKE, cu, cu, longest, longest, scale=scaling, window_size=span, enable_gqa=True)


class _FlashWithSinks(torch.autograd.Function):
    """Flash attention whose softmax has one more logit s per head, without a value.

    With l = log-sum-exp of the logits, l' = log(exp(l) + exp(s)) and o' = o * exp(l - l'). The backward kernel makes
    its probabilities as exp(logit - l') and its correction as do . o', so given l' and o' it returns the gradients of
    the attention with the sink; that of the sink itself is -sum_i exp(s - l'_i) (do_i . o'_i).
    """

    @staticmethod
    def forward(
        ctx: Any,
        q_THE: Tensor,
        k_TKE: Tensor,
        v_TKE: Tensor,
        sinks_H: Tensor,
        cu: Tensor,
        longest: int,
        scaling: float,
        span: tuple[int, int],
    ) -> Tensor:
        out, lse_HT, rng = torch.ops.torch_attn._varlen_attn(
            q_THE, k_TKE, v_TKE, cu, cu, longest, longest, span == (-1, 0), scaling, list(span), True
        )
        total_HT = torch.logaddexp(lse_HT, sinks_H.float()[:, None])
        out = (out * (lse_HT - total_HT).exp().T[..., None]).to(q_THE.dtype)
        ctx.save_for_backward(q_THE, k_TKE, v_TKE, sinks_H, out, total_HT, cu, rng)
        ctx.longest, ctx.scaling, ctx.span = longest, scaling, span
        return out

    @staticmethod
    def backward(ctx: Any, grad_THE: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, sinks_H, out, total_HT, cu, rng = ctx.saved_tensors
        grad_THE = grad_THE.contiguous()
        dq, dk, dv = torch.ops.torch_attn._varlen_attn_backward(
            *(grad_THE, q, k, v, out, total_HT, cu, cu, ctx.longest, ctx.longest),
            *(ctx.span == (-1, 0), rng, ctx.scaling, list(ctx.span)),
        )
        correction_HT = (grad_THE.float() * out.float()).sum(-1).T
        dsinks = -((sinks_H.float()[:, None] - total_HT).exp() * correction_HT).sum(-1)
        return dq, dk, dv, dsinks.to(sinks_H.dtype), None, None, None, None


class Plan(NamedTuple):
    """Samples of similar length side by side.

    Attributes:
        shapes: (samples, padded length) of each group.
        taken: positions of the pack that the groups take, one after the other; padding repeats a sample's last token.
            None when they take the pack as it lies.
        places: for each position of the pack, where its result lies.
    """

    shapes: tuple[tuple[int, int], ...]
    taken: Tensor | None
    places: Tensor | None


@lru_cache(maxsize=16)
def plan_groups(lengths: tuple[int, ...], device: torch.device) -> Plan:
    """Group samples so that padding stays below a quarter of a length; every layer of a pack asks for the same plan."""
    starts = np.cumsum([0, *lengths])
    groups: list[list[int]] = []
    for sample in sorted((i for i, length in enumerate(lengths) if length), key=lengths.__getitem__):
        length = lengths[sample]
        last = groups[-1] if groups else []
        if last and length <= _PADDED_TO * lengths[last[0]] and (len(last) + 1) * length <= _TOGETHER:
            last.append(sample)
        else:
            groups.append([sample])
    taken, places, shapes, offset = [], np.empty(starts[-1], np.int64), [], 0
    for group in groups:
        longest = lengths[group[-1]]
        shapes.append((len(group), longest))
        for sample in group:
            start, length = starts[sample], lengths[sample]
            taken.append(start + np.minimum(np.arange(longest), length - 1))
            places[start : start + length] = offset + np.arange(length)
            offset += longest
    flat = np.concatenate(taken)
    if np.array_equal(flat, np.arange(starts[-1])):
        return Plan(tuple(shapes), None, None)
    with torch.inference_mode(False):  # an evaluation may ask first, and a training keep the answer
        return Plan(tuple(shapes), *(torch.from_numpy(x).to(device) for x in (flat, places)))


@torch.compiler.disable
def grouped_pack(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu: Tensor,
    scaling: float,
    window: int | None,
    sinks_H: Tensor | None,
) -> Tensor:
    """The samples of a pack, those of similar length together: [1, T, H, E]. Arguments as in ``varlen_attention``.

    Padding stands behind a sample, where causal attention does not see it.

    Raises:
        ValueError: the borders do not run from 0 to T.
    """
    lengths = tuple(cu.diff().tolist())
    if sum(lengths) != query.shape[2] or min(lengths, default=-1) < 0 or int(cu[0]) or not sum(lengths):
        raise ValueError(f"cu_seq_lens_q does not run from 0 to {query.shape[2]}")
    plan = plan_groups(lengths, query.device)
    sizes = [samples * length for samples, length in plan.shapes]
    # Heads come from a projection of each token: this is how they lie in memory.
    laid = [x[0].transpose(0, 1) for x in (query, key, value)]
    if plan.taken is not None:
        laid = [x.index_select(0, plan.taken) for x in laid]
    outputs = []
    for shape, *parts in zip(plan.shapes, *(x.split(sizes) for x in laid), strict=True):
        q, k, v = (x.unflatten(0, shape).transpose(1, 2) for x in parts)
        outputs.append(_attend(q, k, v, scaling, window, sinks_H).transpose(1, 2).flatten(0, 1))
    together = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
    return (together if plan.places is None else together.index_select(0, plan.places))[None]


def _attend(q: Tensor, k: Tensor, v: Tensor, scaling: float, window: int | None, sinks_H: Tensor | None) -> Tensor:
    """S samples of length L: [S, H, L, E]."""
    length = q.shape[2]
    window = None if window is None or window >= length else window
    short = q.device.type == "cpu" and q.dtype == torch.bfloat16 and length <= _MATH_UP_TO
    if sinks_H is not None or short:
        return _math(q, k, v, scaling, window, sinks_H)
    if window is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)
    seen = _seen(length, window, q.device)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scaling, enable_gqa=True)


def _math(q: Tensor, k: Tensor, v: Tensor, scaling: float, window: int | None, sinks_H: Tensor | None) -> Tensor:
    """Attention in plain operations, softmax in float32; query heads are grouped by the key they share."""
    samples, heads, length, width = q.shape
    groups = k.shape[1]
    q_SGNLE = q.reshape(samples, groups, heads // groups, length, width)
    logits = (q_SGNLE * scaling @ k.unsqueeze(2).mT).float()
    logits = logits.masked_fill(~_seen(length, window, q.device), float("-inf"))
    if sinks_H is not None:
        sinks = sinks_H.float().reshape(groups, heads // groups, 1, 1).expand(samples, -1, -1, length, 1)
        logits = torch.cat([logits, sinks], dim=-1)
    weights = logits.softmax(-1)[..., :length].to(v.dtype)
    return (weights @ v.unsqueeze(2)).reshape(samples, heads, length, width)


def _seen(length: int, window: int | None, device: torch.device) -> Tensor:
    """[L, L], True where the row's token sees the column's."""
    seen = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return seen if window is None else seen.triu(1 - window)
