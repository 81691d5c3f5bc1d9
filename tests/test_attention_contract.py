"""What the functional form promises beside numbers: paths, errors, autocast, torch.compile, dropout."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import fusednn
from attention_truth import EVERYTHING, MODIFIERS, Case, attend, tensors
from fusednn import cpu_attention
from fusednn.functional import attention_paths
from fusednn.functional.attention import choose_backend
from fusednn.reference.attention import kept


def q(*shape, dtype=torch.float32):
    return torch.randn(*(shape or (2, 4, 5, 8)), dtype=dtype)


PATHS = [
    ({}, "torch_sdpa"),
    ({"is_causal": True}, "torch_sdpa"),
    ({"window": (1, 1)}, "torch_sdpa"),
    ({"causal_alignment": "bottom_right", "is_causal": True}, "torch_sdpa"),
    ({"attn_mask": torch.ones(5, 5).bool(), "is_causal": True}, "torch_sdpa"),
    ({"attn_mask": torch.zeros(5, 5)}, "torch_sdpa"),
    ({"deterministic": True}, "torch_sdpa"),
    ({"attn_mask": torch.zeros(5, 5, requires_grad=True)}, "blocked"),
    ({"softcap": 1.0}, "blocked"),
    ({"alibi_slopes": torch.ones(4)}, "blocked"),
    ({"sink": torch.ones(4)}, "blocked"),
    ({"return_lse": True}, "blocked"),
]


@pytest.mark.parametrize(("options", "path"), PATHS, ids=lambda p: p if isinstance(p, str) else ",".join(p) or "plain")
def test_the_named_path_is_the_path_taken(options, path, monkeypatch):
    """``choose_backend`` and the call agree, and ``explain`` says the same."""
    x = q()
    calls = []
    real = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or real(*a, **k))
    monkeypatch.setattr(attention_paths, "FEW_SCORES", -1)
    chosen, reason = choose_backend(x, x, x, **options)
    assert chosen == path and reason
    attend(x, x, x, **options)
    assert bool(calls) == (path == "torch_sdpa")
    text = fusednn.explain(fusednn.functional.scaled_dot_product_attention, x, x, x, **options)
    assert path in text and reason in text


def test_both_paths_agree():
    """A softcap far above all scores changes nothing but the path."""
    for case in MODIFIERS.values():
        if case.softcap is None:
            x = tensors(case, torch.float64)
            torch.testing.assert_close(attend(**x, **case.options), attend(**x, **(case.options | {"softcap": 1e9})))


def test_few_scores_are_held_as_a_whole_where_there_is_no_kernel(monkeypatch):
    x = q()
    monkeypatch.setattr(cpu_attention, "available", lambda device: True)
    assert choose_backend(x, x, x, softcap=1.0)[0] == choose_backend(x[:, :, :1], x, x, softcap=1.0)[0] == "blocked"
    monkeypatch.setattr(cpu_attention, "available", lambda device: False)
    path, reason = choose_backend(x, x, x, softcap=1.0)
    assert path == "composition" and "few enough" in reason


@pytest.mark.parametrize(
    ("more", "path"),
    [
        ({}, "composition"),
        ({"requires_grad": False}, "blocked"),
        ({"dtype": torch.bfloat16}, "blocked"),
        ({"N": 8}, "blocked"),
        ({"M": 17}, "blocked"),
        ({"K": 255}, "blocked"),
    ],
    ids=str,
)
def test_gradients_of_few_queries_are_left_to_the_composition(more, path, monkeypatch):
    """In fp32, where each key head has one query head: there the kernel was measured to be slower."""
    monkeypatch.setattr(cpu_attention, "available", lambda device: True)
    case = {"N": 4, "M": 16, "K": 256, "dtype": torch.float32, "requires_grad": True} | more
    query, key = q(1, case["N"], case["M"], 8, dtype=case["dtype"]), q(1, 4, case["K"], 8, dtype=case["dtype"])
    query.requires_grad_(case["requires_grad"])
    assert choose_backend(query, key, key, softcap=1.0, enable_gqa=True)[0] == path


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_backends_that_exist(backend):
    x = q()
    assert torch.equal(attend(x, x, x, backend=backend), F.scaled_dot_product_attention(x, x, x))


ERRORS = [
    (TypeError, "query must be a tensor, got list", lambda: attend([1], q(), q())),
    (TypeError, "key must be a tensor, got NoneType", lambda: attend(q(), None, q())),
    (TypeError, "query must be float16.*got torch.int64", lambda: attend(*3 * [torch.ones(1, 1, 2, 2).long()])),
    (TypeError, "key must have the dtype and device of query", lambda: attend(q(), q().half(), q())),
    (TypeError, "nested", lambda: attend(*3 * [torch.nested.nested_tensor([q(2, 3)])])),
    (ValueError, r"value must have at least 2 dimensions.*\[8\]", lambda: attend(q(), q(), q(8))),
    (ValueError, "one head size, got 8 and 9", lambda: attend(q(), q(2, 4, 5, 9), q())),
    (ValueError, "one length, got 5 and 6", lambda: attend(q(), q(), q(2, 4, 6, 8))),
    (ValueError, "must broadcast.*enable_gqa=True", lambda: attend(q(), q(2, 2, 5, 8), q(2, 2, 5, 8))),
    (ValueError, "must broadcast", lambda: attend(q(), q(3, 4, 5, 8), q(3, 4, 5, 8))),
    (ValueError, "divide the query's 4, got 3", lambda: attend(q(), *2 * [q(2, 3, 5, 8)], enable_gqa=True)),
    (ValueError, "divide the query's 4, got 8", lambda: attend(q(), *2 * [q(2, 8, 5, 8)], enable_gqa=True)),
    (ValueError, "enable_gqa needs a head dimension", lambda: attend(*3 * [q(5, 8)], enable_gqa=True)),
    (TypeError, "attn_mask must be a tensor", lambda: attend(q(), q(), q(), [[True]])),
    (TypeError, "attn_mask must be one of torch.bool", lambda: attend(q(), q(), q(), torch.ones(5, 5).long())),
    (TypeError, "attn_mask must be one of", lambda: attend(q(), q(), q(), torch.ones(5, 5).double())),
    (ValueError, r"attn_mask.*= \[2, 4, 5, 5\], got \[5, 4\]", lambda: attend(q(), q(), q(), torch.ones(5, 4))),
    (ValueError, "attn_mask must have at least 2", lambda: attend(q(), q(), q(), torch.ones(5))),
    (ValueError, "attn_mask", lambda: attend(q(), q(), q(), torch.ones(3, 2, 4, 5, 5))),
    (ValueError, "attn_mask", lambda: attend(*3 * [q(1, 4, 5, 8)], torch.ones(3, 4, 5, 5))),
    (ValueError, "dropout_p must be between 0 and 1, got 1.5", lambda: attend(q(), q(), q(), dropout_p=1.5)),
    (ValueError, "dropout_p", lambda: attend(q(), q(), q(), dropout_p=float("nan"))),
    (TypeError, "scale must be a number", lambda: attend(q(), q(), q(), scale=torch.ones(()))),
    (ValueError, "softcap must be greater than 0.*got 0", lambda: attend(q(), q(), q(), softcap=0.0)),
    (ValueError, "softcap", lambda: attend(q(), q(), q(), softcap=float("nan"))),
    (ValueError, r"window must be \(left, right\)", lambda: attend(q(), q(), q(), window=4)),
    (ValueError, r"window must be \(left, right\)", lambda: attend(q(), q(), q(), window=(1, 2, 3))),
    (ValueError, "window must not be negative.*None", lambda: attend(q(), q(), q(), window=(-1, 0))),
    (TypeError, "window must hold whole numbers", lambda: attend(q(), q(), q(), window=(1.5, 0))),
    (TypeError, "window must hold whole numbers", lambda: attend(q(), q(), q(), window=(True, 0))),
    (
        ValueError,
        r"alibi_slopes needs shape \[4\] or \[2, 4\]",
        lambda: attend(q(), q(), q(), alibi_slopes=torch.ones(2)),
    ),
    (ValueError, r"sink needs shape \[4\], .*got \[2, 4\]", lambda: attend(q(), q(), q(), sink=torch.ones(2, 4))),
    (ValueError, "sink needs shape a head dimension", lambda: attend(*3 * [q(5, 8)], sink=torch.ones(1))),
    (TypeError, "sink must be one of", lambda: attend(q(), q(), q(), sink=torch.ones(4).long())),
    (TypeError, "alibi_slopes must be a tensor", lambda: attend(q(), q(), q(), alibi_slopes=0.5)),
    (ValueError, "causal_alignment must be one of top_left", lambda: attend(q(), q(), q(), causal_alignment="left")),
    (ValueError, "backend must be one of auto, triton, torch", lambda: attend(q(), q(), q(), backend="cudnn")),
]


@pytest.mark.parametrize(("error", "message", "call"), ERRORS, ids=[f"{i}-{e[1][:20]}" for i, e in enumerate(ERRORS)])
def test_mistakes_say_what_was_expected(error, message, call):
    with pytest.raises(error, match=message):
        call()


def test_a_mask_on_another_device_is_refused():
    with pytest.raises(TypeError, match="on the device of query, cpu, got meta"):
        attend(q(), q(), q(), torch.ones(5, 5, device="meta"))


@pytest.mark.parametrize("sink", [False, True], ids=["torch_sdpa", "blocked"])
@pytest.mark.parametrize("mask", [None, "bool", "float"])
def test_autocast_casts_what_torch_casts(mask, sink):
    """Autocast gives what the call on cast tensors gives; mixed inputs are brought together; fp64 is left alone."""
    case = Case(mask=mask, sink=sink)
    x = tensors(case, torch.float32)
    low = {n: t.bfloat16() if n != "sink" and t.is_floating_point() else t for n, t in x.items()}
    with torch.autocast("cpu"):
        out = attend(**x)
        mixed = attend(**(x | {"key": low["key"]}))
        if not sink:
            wanted = F.scaled_dot_product_attention(x["query"], x["key"], x["value"]).dtype
            assert out.dtype == wanted == torch.bfloat16
        assert attend(**tensors(Case(sink=sink), torch.float64)).dtype == torch.float64
        lse = attend(**x, return_lse=True)[1]
    assert torch.equal(out, attend(**low)) and torch.equal(mixed, out)
    assert lse.dtype == torch.float32 and torch.equal(lse, attend(**low, return_lse=True)[1])


def test_slopes_and_sink_may_be_more_precise_than_the_inputs():
    """fp32 slopes beside bf16 queries count with all their digits."""
    x = tensors(Case(alibi=True, sink=True, K=99), torch.float32)
    x["alibi_slopes"] = torch.tensor([0.0123456, 0.00987654])
    qkv = {n: x[n].bfloat16() for n in ("query", "key", "value")}
    fine = attend(**(x | qkv), return_lse=True)[1]
    exact = attend(
        **({n: t.float() for n, t in qkv.items()} | {n: x[n] for n in ("alibi_slopes", "sink")}), return_lse=True
    )[1]
    torch.testing.assert_close(fine, exact, rtol=1e-6, atol=1e-6)


COMPILED = ["plain", "mask and causal", "float mask", "grouped", "everything"]


@pytest.mark.parametrize("name", COMPILED)
def test_compile_without_graph_breaks(name):
    """Outputs and gradients of the compiled call are those of the eager call."""
    case = MODIFIERS[name]
    torch.compiler.reset()
    compiled = torch.compile(lambda **x: attend(**x, **case.options), fullgraph=True, backend="aot_eager")
    results = []
    for call in (compiled, lambda **x: attend(**x, **case.options)):
        torch.manual_seed(0)
        x = tensors(case, torch.float32, requires_grad=True)
        out = call(**x)
        leaves = [t for t in x.values() if t.requires_grad]
        results.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_compile_with_lse_and_changing_lengths():
    torch.compiler.reset()
    call = torch.compile(
        lambda x, s: attend(x, x, x, window=(2, None), sink=s, return_lse=True),
        fullgraph=True, dynamic=True, backend="aot_eager",
    )  # fmt: skip
    s = torch.zeros(4)
    for length in (5, 9, 13):
        x = q(2, 4, length, 8)
        for a, b in zip(call(x, s), attend(x, x, x, window=(2, None), sink=s, return_lse=True), strict=True):
            torch.testing.assert_close(a, b)


def test_compile_under_autocast():
    torch.compiler.reset()
    x = q()
    call = torch.compile(lambda x: attend(x, x, x, softcap=2.0), fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu"):
        torch.testing.assert_close(call(x), attend(x, x, x, softcap=2.0))


def test_dropout_of_torchs_operator_draws_as_torch_draws():
    """Same generator state, same dropped weights as torch's math kernel."""
    x = q(1, 2, 16, 8)
    torch.manual_seed(3)
    theirs = F.scaled_dot_product_attention(x, x, x, dropout_p=0.3)
    torch.manual_seed(3)
    torch.testing.assert_close(attend(x, x, x, dropout_p=0.3), theirs)


@pytest.mark.parametrize("more", [{}, {"softcap": 1e9}], ids=["torch_sdpa", "blocked"])
def test_dropout_keeps_the_mean(more, monkeypatch):
    monkeypatch.setattr(attention_paths, "FEW_SCORES", -1)
    x = q(1, 2, 16, 8)
    many = x.expand(2000, -1, -1, -1)
    mean = attend(many, many, many, dropout_p=0.3, **more).mean(0, keepdim=True)
    torch.testing.assert_close(mean, attend(x, x, x), rtol=0, atol=0.1)
    assert torch.equal(attend(x, x, x, dropout_p=1.0, **more), torch.zeros_like(x))


def test_dropout_of_blocks_repeats_with_the_generator(monkeypatch):
    monkeypatch.setattr(attention_paths, "FEW_SCORES", -1)
    x = q()
    runs = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        runs.append(attend(x, x, x, dropout_p=0.3, softcap=9.0))
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize(("word", "j"), [(0x6627E8D5, 0), (0xE169C58D, 1), (0xBC57AC4C, 2), (0x9B00DBD8, 3)])
def test_dropped_weights_are_those_of_philox(word, j):
    """The known answer of Philox4x32-10 for counter 0 and key 0, from the paper's test vectors."""
    zero = torch.tensor(0)
    limits = [kept(torch.tensor([0]), limit / 2**32, zero, zero, zero + j).item() for limit in (word, word + 1)]
    assert limits == [True, False]


@pytest.mark.parametrize("probability", [0.0, 2.0**-33, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("block", [(0, 3, 0, 8), (3, 9, 5, 22), (0, 2, 4, 4), (2**20, 2**20 + 2, 999, 1001)], ids=str)
def test_the_compiled_draw_is_the_references(probability, block):
    heads, seed = torch.tensor([0, 7, 123456]), torch.tensor([0x123456789ABCDEF])
    i, j = torch.arange(*block[:2]), torch.arange(*block[2:])
    wanted = kept(seed, probability, heads[:, None, None], i[:, None], j)
    assert torch.equal(torch.ops.fusednn.attention_keep(seed, probability, heads, *block), wanted)


def test_opcheck_of_the_draw():
    call = (torch.tensor([5]), 0.5, torch.tensor([0, 3]), 1, 4, 2, 9)
    torch.library.opcheck(torch.ops.fusednn.attention_keep.default, call)


def test_dropout_leaves_the_lse_alone():
    x = q()
    plain, dropped = (attend(x, x, x, dropout_p=p, return_lse=True) for p in (0.0, 0.5))
    assert torch.equal(plain[1], dropped[1]) and not torch.equal(plain[0], dropped[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtypes_of_the_results(dtype):
    out, lse = attend(*3 * [q(dtype=dtype)], return_lse=True)
    assert out.dtype == dtype
    assert lse.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_works_on_meta_and_under_vmap():
    """Nothing depends on the values of the tensors."""
    x = torch.empty(2, 4, 5, 8, device="meta")
    assert attend(x, x, x, torch.ones(5, 5, device="meta").bool(), is_causal=True).shape == x.shape
    assert attend(x, x, x, softcap=2.0, return_lse=True)[1].shape == (2, 4, 5)
    y = q(3, 4, 5, 8)
    one = torch.vmap(lambda t: attend(t, t, t, is_causal=True, softcap=3.0))(y)
    torch.testing.assert_close(one, attend(y, y, y, is_causal=True, softcap=3.0))


def test_everything_is_position_independent_of_batch_order():
    """Shuffling rows shuffles results: no row reads another."""
    x = tensors(EVERYTHING, torch.float32)
    flipped = {n: t.flip(0) if t.dim() == 4 else t for n, t in x.items()}
    torch.testing.assert_close(attend(**flipped, **EVERYTHING.options), attend(**x, **EVERYTHING.options).flip(0))


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_no_kernel_of_torch_meets_a_row_without_keys(kind, monkeypatch):
    """torch's backends have not always agreed on such rows, so they are never asked."""
    given = []
    real = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: given.append(a[3]) or real(*a, **k))
    case = Case(mask=kind, is_causal=True)
    attend(**tensors(case, torch.float32), **case.options)
    seen = given[0] if kind == "bool" else given[0] != -torch.inf
    assert seen.any(-1).all() and not seen.all()
