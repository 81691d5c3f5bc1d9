"""Models of Hugging Face transformers with ``attn_implementation="fusednn"`` against their eager attention.

Models are built from small configurations; nothing is loaded from anywhere.
"""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch.overrides import TorchFunctionMode

import fusednn.integrations as integrations
from numerics import assert_numerics

transformers = pytest.importorskip(
    "transformers", minversion="4.53", reason="needs Hugging Face transformers 4.53 or newer: pip install transformers"
)
VERSION = tuple(int(part) for part in transformers.__version__.split(".")[:2])
T, LAYERS, VOCABULARY = 9, 2, 61
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.3,  # large enough for attention to tell positions apart
}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}

# name: (class of the model, of the configuration, its arguments, first version whose code asks the registry)
MODELS = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}, (4, 53)),
    "llama": ("LlamaForCausalLM", "LlamaConfig", {"num_key_value_heads": 2}, (4, 53)),
    "bert": ("BertForMaskedLM", "BertConfig", NO_DROPOUT, (5, 0)),
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        {
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 40,
            "num_layers": LAYERS,
            "dropout_rate": 0.0,
            "decoder_start_token_id": 0,
        },
        (5, 15),
    ),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", {"head_dim": 8, "num_key_value_heads": 2}, (4, 53)),
    "gpt_oss": (
        "GptOssForCausalLM",
        "GptOssConfig",
        {"head_dim": 8, "num_key_value_heads": 2, "num_local_experts": 2, "num_experts_per_tok": 1},
        (4, 55),
    ),
}
WINDOWS = {"gemma2": {"sliding_window": 4, "attn_logit_softcapping": 2.0}, "gpt_oss": {"sliding_window": 4}}


class Fp64(TorchFunctionMode):
    """What models compute in fp32 on purpose (norms, softmax, rotations) becomes fp64, for the truth."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        wide = [torch.float64 if x is torch.float32 else x for x in args]
        return func(*wide, **{k: torch.float64 if x is torch.float32 else x for k, x in (kwargs or {}).items()})


def build(name: str, attention: str, dtype: torch.dtype = torch.float32):
    """A model of random weights, the same for every attention and dtype."""
    model, config, arguments, since = MODELS[name]
    if since > VERSION:
        pytest.skip(f"{name} takes no attention function from the registry before transformers {since[0]}.{since[1]}")
    torch.manual_seed(1)
    config = getattr(transformers, config)(**COMMON | arguments | WINDOWS.get(name, {}))
    model = getattr(transformers, model)._from_config(config, attn_implementation=attention)
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # the default has no fp64
    return model.to(dtype).train()  # train: no dropout is configured, and nothing depends on it


def batch(side: str, tokens: int = T) -> tuple[torch.Tensor, torch.Tensor]:
    """Two sequences, one of them padded by 3: tokens, and a mask that is 1 on what is not padding."""
    ids = torch.randint(3, VOCABULARY, (2, tokens))
    mask = torch.ones_like(ids)
    padding = slice(0, 3) if side == "left" else slice(tokens - 3, tokens)
    if side != "none":
        mask[0, padding] = 0
        ids[0, padding] = 0
    return ids, mask


def arguments(name: str, ids: torch.Tensor, mask: torch.Tensor) -> dict:
    inputs = {"input_ids": ids, "attention_mask": mask}
    return inputs | {"decoder_" + key: x for key, x in inputs.items()} if name == "t5" else inputs


def results(model, name: str, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """Logits of what is not padding and the gradient of every parameter."""
    logits = model(**arguments(name, ids, mask), use_cache=False).logits[mask.bool()]
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))
    (logits * weights.to(logits.dtype)).sum().backward()
    found = {"logits": logits.detach()}
    found |= {parameter: x.grad for parameter, x in model.named_parameters() if x.grad is not None}
    for bias in [key for key in found if key.endswith("key.bias")]:  # zero in truth: measured beside the query's
        found[bias] = torch.cat([found[bias], found[bias.replace("key", "query")]])
    return found


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", MODELS)
def test_logits_and_gradients_meet_the_rule(name, side):
    ids, mask = batch(side)
    ours, torchs = (results(build(name, attention), name, ids, mask) for attention in ("fusednn", "eager"))
    with Fp64():
        truth = results(build(name, "eager", torch.float64), name, ids, mask)
    assert ours.keys() == truth.keys()
    for what in truth:
        assert_numerics(ours[what], torchs[what], truth[what], what)


@pytest.mark.parametrize("side", ["left", "none"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "gemma2", "gpt_oss"])
def test_generates_the_tokens_of_eager(name, cache, side):
    ids, mask = batch(side)
    options = {"min_new_tokens": 8, "max_new_tokens": 8, "do_sample": False}
    options["no_repeat_ngram_size"] = 1  # random models like to repeat one token
    if cache == "static":
        options["cache_implementation"] = cache
    ours, eager = (
        build(name, attention).eval().generate(input_ids=ids, attention_mask=mask, **options)
        for attention in ("fusednn", "eager")
    )
    assert ours.tolist() == eager.tolist()


@pytest.mark.parametrize(
    "name, side",
    [(name, "left") for name in ("gpt2", "llama", "bert", "t5", "gemma2")] + [("bert", "right"), ("t5", "right")],
)
def test_padding_is_not_seen(name, side):
    """The mask function is registered: without one, models build no mask, and padding counts."""
    ids, mask = batch(side)
    model = build(name, "fusednn").eval()
    other = torch.where(mask.bool(), ids, 7)
    with torch.no_grad():
        before, after = (model(**arguments(name, x, mask)).logits[mask.bool()] for x in (ids, other))
        unmasked = model(**arguments(name, other, torch.ones_like(mask))).logits[mask.bool()]
    assert torch.equal(before, after)
    assert not torch.allclose(before, unmasked, atol=1e-3), "padding makes no difference here anyway"


@pytest.mark.parametrize("side", ["left", "none"])
def test_prompt_in_pieces_equals_the_whole(side):
    """Several queries behind a cache stand at the last keys, not at the first."""
    ids, mask = batch(side)
    model = build("llama", "fusednn").eval()
    with torch.no_grad():
        whole = model(input_ids=ids, attention_mask=mask).logits
        pieces, cache = [], transformers.DynamicCache()
        for start, end in ((0, 4), (4, 8), (8, 9)):
            positions = torch.arange(start, end)[None]
            out = model(
                input_ids=ids[:, start:end], attention_mask=mask[:, :end], position_ids=positions, past_key_values=cache
            )
            pieces.append(out.logits)
    torch.testing.assert_close(torch.cat(pieces, 1)[mask.bool()], whole[mask.bool()])


@pytest.fixture
def calls(monkeypatch):
    """What our attention is called with."""
    seen = []

    def spy(*args, **kwargs):
        seen.append(SimpleNamespace(key=args[1], mask=args[3], causal=args[5], **kwargs))
        return fusednn_attention(*args, **kwargs)

    fusednn_attention = integrations.scaled_dot_product_attention
    monkeypatch.setattr(integrations, "scaled_dot_product_attention", spy)
    return seen


@pytest.mark.parametrize("name, expected", [("gpt2", LAYERS), ("llama", LAYERS), ("bert", LAYERS), ("t5", 3 * LAYERS)])
def test_every_layer_runs_ours(name, expected, calls):
    ids, mask = batch("left")
    build(name, "eager")(**arguments(name, ids, mask))
    assert not calls
    build(name, "fusednn")(**arguments(name, ids, mask))
    assert len(calls) == expected


def test_plain_causal_needs_no_mask_and_heads_stay_shared(calls):
    ids, mask = batch("none")
    build("llama", "fusednn")(input_ids=ids, attention_mask=mask)
    assert all(call.mask is None and call.causal and call.key.shape[1] == 2 for call in calls)


def test_modifiers_reach_the_kernel(calls):
    ids, _ = batch("none", 3)
    build("gemma2", "fusednn")(input_ids=ids)
    assert [call.softcap for call in calls] == [2.0, 2.0]


def qkv(queries: int, keys: int):
    query, key, value = torch.randn(2, 4, queries, 8), torch.randn(2, 2, keys, 8), torch.randn(2, 2, keys, 8)
    return query, key, value


@pytest.mark.parametrize("queries", [1, 7])
def test_window_without_a_mask(queries):
    query, key, value = qkv(queries, 7)
    module = torch.nn.Identity()
    i, j = torch.arange(7 - queries, 7)[:, None], torch.arange(7)
    mask = ((j <= i) & (j > i - 3))[None, None]
    out, weights = integrations.attention_forward(module, query, key, value, None, sliding_window=3)
    assert weights is None and out.shape == (2, queries, 4, 8) and out.is_contiguous()
    torch.testing.assert_close(out, integrations.attention_forward(module, query, key, value, mask)[0])


def test_keys_that_only_the_mask_has_are_ignored():
    """GPT-2 of transformers 4.53 makes its mask one key too long."""
    query, key, value = qkv(5, 6)
    mask = torch.ones(2, 1, 5, 8, dtype=torch.bool).tril(1)
    module = torch.nn.Identity()
    outs = [integrations.attention_forward(module, query, key, value, m)[0] for m in (mask, mask[..., :6])]
    assert torch.equal(*outs)


def test_bias_adds_to_either_mask():
    query, key, value = qkv(5, 6)
    module = torch.nn.Identity()
    bias = torch.randn(1, 4, 5, 6)
    seen = torch.rand(2, 1, 5, 6) > 0.3
    seen[..., 0] = True
    added = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)
    outs = [
        integrations.attention_forward(module, query, key, value, mask, position_bias=b)[0]
        for mask, b in ((seen, bias), (added, bias), (bias + added, None))
    ]
    torch.testing.assert_close(outs[0], outs[2])
    torch.testing.assert_close(outs[1], outs[2])


def test_bias_of_a_causal_layer_without_a_mask_stays_causal():
    query, key, value = qkv(5, 5)
    bias = torch.randn(1, 4, 5, 5)
    causal = torch.ones(1, 1, 5, 5, dtype=torch.bool).tril()
    module = torch.nn.Identity()
    out, _ = integrations.attention_forward(module, query, key, value, None, position_bias=bias)
    torch.testing.assert_close(
        out, integrations.attention_forward(module, query, key, value, causal, position_bias=bias)[0]
    )


def test_dropout_applies_in_training_only():
    query, key, value = qkv(5, 5)
    module = torch.nn.Identity()
    plain = integrations.attention_forward(module, query, key, value, None)[0]
    assert not torch.equal(plain, integrations.attention_forward(module, query, key, value, None, dropout=0.5)[0])
    assert torch.equal(plain, integrations.attention_forward(module.eval(), query, key, value, None, dropout=0.5)[0])


@pytest.mark.parametrize(
    "name, x",
    [
        ("output_attentions", True),
        ("head_mask", torch.ones(4)),
        ("cu_seq_lens_q", torch.tensor([0, 5])),
        ("cache", object()),
        ("a_keyword_of_tomorrow", 1),
    ],
)
def test_what_cannot_be_honoured_raises(name, x):
    with pytest.raises(ValueError, match=name):
        integrations.attention_forward(torch.nn.Identity(), *qkv(5, 5), None, **{name: x})
    integrations.attention_forward(torch.nn.Identity(), *qkv(5, 5), None, **{name: None})


def test_other_mistakes_raise():
    module = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"\[B, N, M, K\]"):
        integrations.attention_forward(module, *qkv(5, 5), torch.ones(2, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match="sliding_window needs a mask"):
        integrations.attention_forward(module, *qkv(5, 5), None, is_causal=False, sliding_window=3)
    module.scale_attn_by_inverse_layer_idx = True
    with pytest.raises(ValueError, match="scale"):
        integrations.attention_forward(module, *qkv(5, 5), None)


def test_attention_weights_are_refused_by_a_model():
    ids, mask = batch("left")
    with pytest.raises(ValueError, match=r"output_attentions.*eager"):
        build("llama", "fusednn")(input_ids=ids, attention_mask=mask, output_attentions=True)


def test_a_model_that_computes_attention_itself_raises(monkeypatch):
    """Transformers lets it have the name; a bool mask added to its scores would hide nothing."""
    modeling = ModuleType("old_model.modeling_old")
    modeling.create_causal_mask = None
    monkeypatch.setitem(sys.modules, modeling.__name__, modeling)
    config = type("OldConfig", (), {"__module__": "old_model.configuration_old"})()
    mask = transformers.masking_utils.AttentionMaskInterface()["fusednn"]
    with pytest.raises(ValueError, match=r"old_model.modeling_old.*eager"):
        mask(batch_size=1, config=config)


ORDERS = """
import os, sys, torch._dynamo  # what takes longest, once for all orders
for first, then in [
    ("fusednn", "transformers"),
    ("transformers.modeling_utils", "fusednn"),
    ("transformers.masking_utils", "fusednn"),
]:
    if os.fork() == 0:
        __import__(first)
        assert first != "fusednn" or "transformers" not in sys.modules
        __import__(then)
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
        assert "fusednn" in ALL_MASK_ATTENTION_FUNCTIONS and "fusednn" in ALL_ATTENTION_FUNCTIONS
        os._exit(0)
    assert os.wait()[1] == 0, f"{first} before {then}"
"""


def test_registers_in_either_order():
    subprocess.run([sys.executable, "-c", ORDERS], check=True)


def test_configurations_are_not_shared():
    """A model keeps the attention it was built with, or the comparisons above would compare nothing."""
    assert build("llama", "eager").config._attn_implementation == "eager"
    assert build("llama", "fusednn").config._attn_implementation == "fusednn"
