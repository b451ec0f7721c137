"""Causal attention of samples side by side, with windows, sinks, and queries that begin behind the first key.

Shape suffixes: S samples, L queries or keys of a sample, H query heads, K key and value heads, E width of a head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_MATH_UP_TO = 512
"""Keys up to which, in bfloat16 on a CPU, plain matrix products are faster than SDPA (0.40 against 0.59 ms for 64
tokens and 4 heads, 6.2 against 10.2 for 512; 42 against 25 for 1024)."""


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scaling: float,
    window: int | None,
    sinks_H: Tensor | None,
    offsets_S: Tensor | None = None,
) -> Tensor:
    """What every query gets: [S, H, Lq, E].

    Args:
        q: [S, H, Lq, E].
        k, v: [S, K, Lk, E]; H is a multiple of K.
        scaling: factor of the logits.
        window: a query sees this many keys, its own included; all before it when None.
        sinks_H: attention sinks; none when None.
        offsets_S: the key that stands where the first query of a sample stands; 0 when None, and then Lq is Lk.
    """
    keys = k.shape[2]
    window = None if window is None or window >= keys else window
    short = q.device.type == "cpu" and q.dtype == torch.bfloat16 and keys <= _MATH_UP_TO
    if sinks_H is not None or short:
        return _math(q, k, v, scaling, window, sinks_H, offsets_S)
    if window is None and offsets_S is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)
    seen = _seen(q.shape[2], keys, window, offsets_S, q.device)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scaling, enable_gqa=True)


def _math(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scaling: float,
    window: int | None,
    sinks_H: Tensor | None,
    offsets_S: Tensor | None,
) -> Tensor:
    """Attention in plain operations, softmax in float32; query heads are grouped by the key they share."""
    samples, heads, length, width = q.shape
    groups, keys = k.shape[1], k.shape[2]
    q_SGNLE = q.reshape(samples, groups, heads // groups, length, width)
    logits = (q_SGNLE * scaling @ k.unsqueeze(2).mT).float()
    seen = _seen(length, keys, window, offsets_S, q.device)
    logits = logits.masked_fill(~(seen if seen.ndim == 2 else seen.unsqueeze(1)), float("-inf"))
    if sinks_H is not None:
        sinks = sinks_H.float().reshape(groups, heads // groups, 1, 1).expand(samples, -1, -1, length, 1)
        logits = torch.cat([logits, sinks], dim=-1)
    weights = logits.softmax(-1)[..., :keys].to(v.dtype)
    return (weights @ v.unsqueeze(2)).reshape(samples, heads, length, width)


def _seen(queries: int, keys: int, window: int | None, offsets_S: Tensor | None, device: torch.device) -> Tensor:
    """[Lq, Lk], or [S, 1, Lq, Lk] with offsets; True where the row's query sees the column's key."""
    if offsets_S is None:
        seen = torch.ones(queries, keys, dtype=torch.bool, device=device).tril()
        return seen if window is None else seen.triu(1 - window)
    place_SL = offsets_S[:, None] + torch.arange(queries, device=device)
    key = torch.arange(keys, device=device)
    seen = key <= place_SL[..., None]
    if window is not None:
        seen = seen & (key > place_SL[..., None] - window)
    return seen.unsqueeze(1)
