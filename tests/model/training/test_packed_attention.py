"""Attention in packs against transformers' own attention on one sample at a time."""

import pytest
import torch
import torch.nn.attention.varlen  # registers the operators
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from model.training.attention import Borders, flash_pack, pick_kernel, use_varlen_attention, varlen_attention

LENGTHS = [9, 1, 14, 5]
SHAPE = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
EXPERTS = {"moe_intermediate_size": 24, "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
SLIDING = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
MODELS = {
    "qwen3": SHAPE,
    "qwen3 with windows": SHAPE | SLIDING | {"use_sliding_window": True},
    "qwen2": SHAPE,
    "qwen3_moe": SHAPE | EXPERTS,
    "gpt_oss": SHAPE | EXPERTS | SLIDING,
}


def language_model(name):
    torch.manual_seed(0)
    config = AutoConfig.for_model(name.split()[0], **MODELS[name])
    # GPT-OSS has no other attention of its own than the eager one.
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager" if name == "gpt_oss" else "sdpa")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def borders(lengths):
    return F.pad(torch.tensor(lengths, dtype=torch.int32).cumsum(0, dtype=torch.int32), (1, 0))


def run_pack(model, ids, lengths):
    """Logits [T, V] of samples end to end."""
    cu = borders(lengths)
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    return model(
        input_ids=ids[None],
        position_ids=positions,
        attention_mask=None,
        use_cache=False,
        cu_seq_lens_q=cu,
        cu_seq_lens_k=cu,
        max_length_q=max(lengths),
        max_length_k=max(lengths),
    ).logits[0]


def logits_and_gradients(model, run):
    model.zero_grad()
    logits = run()
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    return logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", MODELS)
def test_a_pack_gives_the_logits_and_gradients_of_its_samples(name):
    model = language_model(name)
    ids = torch.randint(0, 50, (sum(LENGTHS),))
    expected, expected_gradients = logits_and_gradients(
        model,
        lambda: torch.cat([model(input_ids=part[None], use_cache=False).logits[0] for part in ids.split(LENGTHS)]),
    )
    with use_varlen_attention(model):
        logits, gradients = logits_and_gradients(model, lambda: run_pack(model, ids, LENGTHS))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    assert gradients.keys() == expected_gradients.keys()
    assert name != "gpt_oss" or gradients["model.layers.0.self_attn.sinks"].abs().min() > 0
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[key], rtol=1e-3, atol=1e-4, msg=key)


def test_afterwards_padded_rows_run_as_before():
    model = language_model("qwen3")
    ids = torch.randint(0, 50, (2, 7))
    before = model(input_ids=ids).logits
    with pytest.raises(RuntimeError, match="stop"), use_varlen_attention(model):
        assert model.config._attn_implementation == "varlen"
        raise RuntimeError("stop")
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(model(input_ids=ids).logits, before)


def test_a_wrapped_model_is_found_and_a_head_alone_is_not_a_model():
    model = language_model("qwen2")
    with use_varlen_attention(torch.nn.Sequential(model.model), model.lm_head):
        assert model.config._attn_implementation == "varlen"
    with pytest.raises(ValueError, match="no transformers model"), use_varlen_attention(model.lm_head):
        pass


def test_without_borders_it_says_what_is_missing():
    model = language_model("qwen3")
    with use_varlen_attention(model), pytest.raises(ValueError, match="cu_seq_lens_q"):
        model(input_ids=torch.zeros(1, 4, dtype=torch.long), use_cache=False)


def heads(lengths, dtype=torch.float32, seed=0, width=8):
    """Queries of four heads, keys and values of two: [1, heads, T, width]."""
    generator = torch.Generator().manual_seed(seed)
    shape = sum(lengths), width
    return [torch.randn(1, n, *shape, generator=generator).to(dtype).requires_grad_() for n in (4, 2, 2)]


def dense(query, key, value, lengths, window=None, sinks=None):
    """The oracle: softmax over a [T, T] mask, as GPT-OSS writes sinks."""
    sample = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    place = torch.arange(sum(lengths))
    seen = (sample[:, None] == sample) & (place[:, None] >= place)
    if window is not None:
        seen &= place[:, None] - place < window
    key, value = (x.repeat_interleave(2, dim=1) for x in (key, value))
    logits = (query @ key.mT / query.shape[-1] ** 0.5).masked_fill(~seen, float("-inf"))
    if sinks is not None:
        logits = torch.cat([logits, sinks.view(1, -1, 1, 1).expand(1, -1, sum(lengths), 1)], -1)
    return (logits.softmax(-1)[..., : sum(lengths)] @ value).transpose(1, 2)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any),
    st.none() | st.integers(1, 9),
    st.booleans(),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.integers(0, 1000),
)
def test_any_lengths_windows_and_sinks(lengths, window, sinks, dtype, seed):
    query, key, value = heads(lengths, dtype, seed)
    s_aux = torch.linspace(-1, 2, 4) if sinks else None
    packed, _ = varlen_attention(
        None, query, key, value, None, sliding_window=window, s_aux=s_aux, cu_seq_lens_q=borders(lengths)
    )
    expected = dense(query.float(), key.float(), value.float(), lengths, window, s_aux)
    assert packed.dtype == dtype
    torch.testing.assert_close(packed.float(), expected, **tolerance(dtype))


def tolerance(dtype):
    return {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_poisoned_neighbour_changes_nothing(poison, dtype):
    lengths = [4, 3, 5]
    middle = slice(4, 7)

    def others(poisoned):
        inputs = heads(lengths, dtype)
        if poisoned:
            for x in inputs:
                x.data[:, :, middle] = poison
        out, _ = varlen_attention(None, *inputs, None, cu_seq_lens_q=borders(lengths))
        out.sum().backward()
        rest = [*range(4), *range(7, 12)]
        return [out[:, rest], *(x.grad[:, :, rest] for x in inputs)]

    for poisoned, clean in zip(others(True), others(False), strict=True):
        assert torch.equal(poisoned, clean)


def test_borders_that_do_not_fit_are_refused():
    inputs = heads([4, 3])
    for wrong in ([4, 2], [4, 4], [8, -1]):
        with pytest.raises(ValueError, match="does not run from 0 to 7"):
            varlen_attention(None, *inputs, None, cu_seq_lens_q=borders(wrong))
    with pytest.raises(ValueError, match="dropout"):
        varlen_attention(None, *inputs, None, dropout=0.1, cu_seq_lens_q=borders([4, 3]))


def test_autocast_brings_the_normalised_float32_heads_to_half_precision():
    with torch.autocast("cpu", torch.bfloat16):
        out, _ = varlen_attention(None, *heads([3, 4]), None, cu_seq_lens_q=borders([3, 4]))
    assert out.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("device", "dtype", "capability", "head_dim", "built", "kernel"),
    [
        ("cuda", torch.bfloat16, (9, 0), 128, True, "varlen"),
        ("cuda", torch.float16, (8, 0), 64, True, "varlen"),
        ("cuda", torch.float32, (9, 0), 128, True, "groups"),
        ("cuda", torch.bfloat16, (7, 5), 128, True, "groups"),
        ("cuda", torch.bfloat16, (9, 0), 60, True, "groups"),
        ("cuda", torch.bfloat16, (9, 0), 512, True, "groups"),
        ("cuda", torch.bfloat16, (9, 0), 128, False, "groups"),
        ("cpu", torch.bfloat16, (9, 0), 128, True, "groups"),
    ],
)
def test_the_flash_kernel_is_picked_where_it_runs(device, dtype, capability, head_dim, built, kernel):
    assert pick_kernel(device, dtype, capability, head_dim, built=built) == kernel


@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("window", [None, 3])
def test_the_flash_kernel_is_called_as_torch_declares_it(window, sinks):
    """Without a GPU: torch's own shape functions of the kernel and of its gradient take our arguments."""
    q, k, v = (torch.empty(7, n, 16, device="meta", dtype=torch.bfloat16, requires_grad=True) for n in (4, 2, 2))
    s_aux = torch.empty(4, device="meta", requires_grad=True) if sinks else None
    cu = torch.empty(3, device="meta", dtype=torch.int32)
    out = flash_pack(q, k, v, Borders(cu, 4, cu, 4), 0.25, window, s_aux)
    out.sum().backward()
    assert (out.shape, out.dtype) == ((7, 4, 16), torch.bfloat16)
    for x in (q, k, v, s_aux) if sinks else (q, k, v):
        assert (x.grad.shape, x.grad.dtype) == (x.shape, x.dtype)


@pytest.mark.parametrize("window", [None, 3])
def test_sinks_on_the_flash_kernel_have_the_gradients_of_the_dense_softmax(window, monkeypatch):
    """The kernel and its gradient are replaced by their published formulas on one dense pack."""
    lengths = [4, 6]
    sample = torch.arange(2).repeat_interleave(torch.tensor(lengths))
    place = torch.arange(10)
    seen = (sample[:, None] == sample) & (place[:, None] >= place)

    def logits(q, k, scale, span):
        near = seen if span[0] < 0 else seen & (place[:, None] - place <= span[0])
        return (torch.einsum("ihe,jhe->hij", q, k.repeat_interleave(2, 1)) * scale).masked_fill(~near, float("-inf"))

    def forward(q, k, v, _cu, _ck, _mq, _mk, _causal, scale, span, _gqa):
        s = logits(q, k, scale, span)
        out = torch.einsum("hij,jhe->ihe", s.softmax(-1), v.repeat_interleave(2, 1))
        return out, s.logsumexp(-1), torch.zeros(2)

    def backward(do, q, k, v, out, lse, _cu, _ck, _mq, _mk, _causal, _rng, scale, span):
        # FlashAttention-2 (arXiv 2307.08691), algorithm 2.
        p = (logits(q, k, scale, span) - lse[..., None]).exp()
        dp = torch.einsum("ihe,jhe->hij", do, v.repeat_interleave(2, 1))
        ds = p * (dp - (do * out).sum(-1).T[..., None]) * scale
        dk = torch.einsum("hij,ihe->jhe", ds, q).unflatten(1, (2, 2)).sum(2)
        dv = torch.einsum("hij,ihe->jhe", p, do).unflatten(1, (2, 2)).sum(2)
        return torch.einsum("hij,jhe->ihe", ds, k.repeat_interleave(2, 1)), dk, dv

    monkeypatch.setattr(torch.ops.torch_attn, "_varlen_attn", forward)
    monkeypatch.setattr(torch.ops.torch_attn, "_varlen_attn_backward", backward)
    query, key, value = heads(lengths)
    cu = borders(lengths)
    sinks = torch.linspace(-1, 2, 4).requires_grad_()
    weight = torch.randn(1, 10, 4, 8)
    (dense(query, key, value, lengths, window, sinks) * weight).sum().backward()
    expected = [x.grad.clone() for x in (query, key, value, sinks)]
    for x in (query, key, value, sinks):
        x.grad = None
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    (flash_pack(q, k, v, Borders(cu, 6, cu, 6), 8**-0.5, window, sinks) * weight[0]).sum().backward()
    for x, gradient in zip((query, key, value, sinks), expected, strict=True):
        torch.testing.assert_close(x.grad, gradient, rtol=1e-4, atol=1e-5)
