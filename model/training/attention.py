"""Attention for packs: every token sees the tokens before it in its own sample, and no other sample.

Registered with transformers under the name ``varlen``. No [T, T] mask is made: transformers builds masks only for names
that it knows, and the borders of the samples come as ``cu_seq_lens_q`` through the keyword arguments of the layers.

On a GPU in half precision torch's variable-length flash kernel takes the whole pack at once; elsewhere samples of
similar length go through SDPA together: one by one, a pack of short samples is thousands of small operations.
Where several answers share a prompt (model/training/trees.py), an answer is a sample whose keys are gathered: first the
prompt's, then its own. Its queries stand at the end of its keys.
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
from torch import Tensor, nn

from model.training.dense_attention import attend

NAME = "varlen"
"""The name under which transformers finds this attention."""
Kernel = Literal["varlen", "groups"]

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
    cu_seq_lens_k: Tensor | None = None,
    max_length_k: int | None = None,
    key_index: Tensor | None = None,
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
        key_index: [U] the tokens whose keys and values the samples see, one sample after the other; the samples' own
            when None.
        cu_seq_lens_k: int32 [S + 1] borders of the samples in ``key_index``, from 0 to U; read with it only.
        max_length_k: keys of the sample with most; read with ``key_index`` only.

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
    borders = Borders(cu_seq_lens_q, max_length_q)
    if key_index is not None:
        key, value = (x.index_select(2, key_index) for x in (key, value))
        borders = Borders(cu_seq_lens_q, max_length_q, cu_seq_lens_k, max_length_k)
    if kind == "cuda" and _kernel(query.device, query.dtype, query.shape[-1]) == "varlen":
        borders = borders.on(query.device)
        window = None if sliding_window is None or sliding_window >= borders.longest_key else sliding_window
        q_THE, k_UKE, v_UKE = (x[0].transpose(0, 1) for x in (query, key, value))
        return flash_pack(q_THE, k_UKE, v_UKE, borders, scaling, window, s_aux)[None], None
    return grouped_pack(query, key, value, borders, scaling, sliding_window, s_aux), None


class Borders(NamedTuple):
    """Where the samples of a pack lie.

    Attributes:
        queries: int32 [S + 1], from 0 to T.
        longest: queries of the longest sample; counted when None.
        keys: int32 [S + 1], from 0 to U; the queries' when None. No sample has fewer keys than queries.
        longest_key: keys of the sample with most.
    """

    queries: Tensor
    longest: int | None = None
    keys: Tensor | None = None
    longest_key: int | None = None

    def on(self, device: torch.device) -> "Borders":
        """Complete, as the kernel takes them."""
        longest = int(self.queries.diff().max()) if self.longest is None else self.longest
        queries = self.queries.to(device, torch.int32)
        if self.keys is None:
            return Borders(queries, longest, queries, longest)
        longest_key = int(self.keys.diff().max()) if self.longest_key is None else self.longest_key
        return Borders(queries, longest, self.keys.to(device, torch.int32), longest_key)


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
    k_UKE: Tensor,
    v_UKE: Tensor,
    borders: Borders,
    scaling: float,
    window: int | None,
    sinks_H: Tensor | None,
) -> Tensor:
    """A whole pack through torch's variable-length kernel: [T, H, E]. Arguments as in ``varlen_attention``.

    The kernel lays the last query of a sample on its last key, which is where the queries of an answer stand.
    """
    from torch.nn.attention.varlen import varlen_attn

    # The kernel counts the tokens to the left, without the token itself.
    span = (-1, 0) if window is None else (window - 1, 0)
    if sinks_H is not None:
        return _FlashWithSinks.apply(q_THE, k_UKE, v_UKE, sinks_H, borders, scaling, span)
    cu_q, longest, cu_k, longest_key = borders
    return varlen_attn(
        q_THE, k_UKE, v_UKE, cu_q, cu_k, longest, longest_key, scale=scaling, window_size=span, enable_gqa=True
    )


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
        k_UKE: Tensor,
        v_UKE: Tensor,
        sinks_H: Tensor,
        borders: Borders,
        scaling: float,
        span: tuple[int, int],
    ) -> Tensor:
        cu_q, longest, cu_k, longest_key = borders
        out, lse_HT, rng = torch.ops.torch_attn._varlen_attn(
            q_THE, k_UKE, v_UKE, cu_q, cu_k, longest, longest_key, span == (-1, 0), scaling, list(span), True
        )
        total_HT = torch.logaddexp(lse_HT, sinks_H.float()[:, None])
        out = (out * (lse_HT - total_HT).exp().T[..., None]).to(q_THE.dtype)
        ctx.save_for_backward(q_THE, k_UKE, v_UKE, sinks_H, out, total_HT, cu_q, cu_k, rng)
        ctx.longest, ctx.scaling, ctx.span = (longest, longest_key), scaling, span
        return out

    @staticmethod
    def backward(ctx: Any, grad_THE: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, sinks_H, out, total_HT, cu_q, cu_k, rng = ctx.saved_tensors
        grad_THE = grad_THE.contiguous()
        dq, dk, dv = torch.ops.torch_attn._varlen_attn_backward(
            *(grad_THE, q, k, v, out, total_HT, cu_q, cu_k, *ctx.longest),
            *(ctx.span == (-1, 0), rng, ctx.scaling, list(ctx.span)),
        )
        correction_HT = (grad_THE.float() * out.float()).sum(-1).T
        dsinks = -((sinks_H.float()[:, None] - total_HT).exp() * correction_HT).sum(-1)
        return dq, dk, dv, dsinks.to(sinks_H.dtype), None, None, None


class Plan(NamedTuple):
    """Samples of similar length side by side.

    Attributes:
        shapes: (samples, padded queries, padded keys) of each group.
        taken: positions of the pack whose queries the groups take, one after the other; padding repeats a sample's last
            token. None when they take the pack as it lies.
        keys: the same of the keys and values.
        places: for each position of the pack, where its result lies.
        offsets: [S] of each group, the key on which a sample's first query stands; None where all are 0.
    """

    shapes: tuple[tuple[int, int, int], ...]
    taken: Tensor | None
    keys: Tensor | None
    places: Tensor | None
    offsets: tuple[Tensor | None, ...]


@lru_cache(maxsize=16)
def plan_groups(lengths: tuple[int, ...], device: torch.device, keys: tuple[int, ...] | None = None) -> Plan:
    """Group samples so that padding stays below a quarter of a length; every layer of a pack asks for the same plan.

    Args:
        lengths: queries of each sample.
        device: of the plan.
        keys: keys of each sample, as many as queries when None.
    """
    keys = lengths if keys is None else keys
    groups: list[list[int]] = []
    fewest = most = 0  # keys of a sample of the last group
    for sample in sorted((i for i, length in enumerate(lengths) if length), key=lambda i: (lengths[i], keys[i])):
        last = groups[-1] if groups else []
        low, high = min(fewest, keys[sample]), max(most, keys[sample])
        alike = last and lengths[sample] <= _PADDED_TO * lengths[last[0]] and high <= _PADDED_TO * low
        if alike and (len(last) + 1) * high <= _TOGETHER:
            last.append(sample)
            fewest, most = low, high
        else:
            groups.append([sample])
            fewest = most = keys[sample]
    queries, seen = ([_laid(sizes, group) for group in groups] for sizes in (lengths, keys))
    starts = np.cumsum([0, *lengths])
    places, offset = np.empty(starts[-1], np.int64), 0
    for group, (_, longest) in zip(groups, queries, strict=True):
        for sample in group:
            places[starts[sample] : starts[sample + 1]] = offset + np.arange(lengths[sample])
            offset += longest
    shapes = tuple((len(g), q[1], k[1]) for g, q, k in zip(groups, queries, seen, strict=True))
    with torch.inference_mode(False):  # an evaluation may ask first, and a training keep the answer
        begins = [torch.tensor([keys[i] - lengths[i] for i in group], device=device) for group in groups]
        offsets = tuple(begin if bool(begin.any()) else None for begin in begins)
        taken, gathered = (
            _index([x for x, _ in laid], sum(sizes), device) for laid, sizes in ((queries, lengths), (seen, keys))
        )
        return Plan(shapes, taken, gathered, _index([places], len(places), device), offsets)


def _laid(lengths: tuple[int, ...], group: list[int]) -> tuple[np.ndarray, int]:
    """Positions of a group's samples, each padded with its last to the longest, and the length of that."""
    longest = max(lengths[sample] for sample in group)
    starts = np.cumsum([0, *lengths])
    return np.concatenate([starts[i] + np.minimum(np.arange(longest), lengths[i] - 1) for i in group]), longest


def _index(parts: list[np.ndarray], size: int, device: torch.device) -> Tensor | None:
    """One index of all parts; None when it takes all ``size`` as they lie (samples without queries leave keys over)."""
    flat = np.concatenate(parts)
    return None if np.array_equal(flat, np.arange(size)) else torch.from_numpy(flat).to(device)


@torch.compiler.disable
def grouped_pack(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    borders: Borders,
    scaling: float,
    window: int | None,
    sinks_H: Tensor | None,
) -> Tensor:
    """The samples of a pack, those of similar length together: [1, T, H, E]. Arguments as in ``varlen_attention``.

    Padding stands behind a sample, where causal attention does not see it.

    Raises:
        ValueError: the borders do not run from 0 to T.
    """
    lengths = _lengths(borders.queries, query.shape[2], "cu_seq_lens_q")
    keys = None if borders.keys is None else _lengths(borders.keys, key.shape[2], "cu_seq_lens_k")
    plan = plan_groups(lengths, query.device, keys)
    # Heads come from a projection of each token: this is how they lie in memory.
    laid = [x[0].transpose(0, 1) for x in (query, key, value)]
    laid = [x if i is None else x.index_select(0, i) for x, i in zip(laid, (plan.taken, *[plan.keys] * 2), strict=True)]
    q_sizes = [samples * queries for samples, queries, _ in plan.shapes]
    k_sizes = [samples * keys for samples, _, keys in plan.shapes]
    parts = zip(*(x.split(sizes) for x, sizes in zip(laid, (q_sizes, k_sizes, k_sizes), strict=True)), strict=True)
    outputs = []
    for (samples, *sizes), part, offsets_S in zip(plan.shapes, parts, plan.offsets, strict=True):
        shapes = [(samples, size) for size in (sizes[0], sizes[1], sizes[1])]
        q, k, v = (x.unflatten(0, shape).transpose(1, 2) for x, shape in zip(part, shapes, strict=True))
        outputs.append(attend(q, k, v, scaling, window, sinks_H, offsets_S).transpose(1, 2).flatten(0, 1))
    together = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
    return (together if plan.places is None else together.index_select(0, plan.places))[None]


def _lengths(cu: Tensor, end: int, name: str) -> tuple[int, ...]:
    lengths = tuple(cu.diff().tolist())
    if sum(lengths) != end or min(lengths, default=-1) < 0 or int(cu[0]) or not sum(lengths):
        raise ValueError(f"{name} does not run from 0 to {end}")
    return lengths
