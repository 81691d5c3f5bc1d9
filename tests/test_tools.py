"""convert, explain, the plan table, the environment report and the command line."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import fusednn
from fusednn.__main__ import main
from fusednn.native import COMPILED_DEVICES
from fusednn.plan import STRATEGIES, Request, plan


class Model(nn.Module):
    """One of everything that convert replaces, and some that it leaves alone."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.RNN(4, 4), nn.LSTM(4, 4, 2, proj_size=3), nn.GRU(3, 4, bidirectional=True), nn.LSTMCell(4, 4)]
        )
        self.attention = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.plain = nn.Linear(8, 8)

    def forward(self, x):
        for layer in list(self.layers)[:3]:
            x = layer(x)[0]
        return self.plain(self.attention(x))


def test_convert_replaces_in_place_and_computes_the_same():
    model = Model().eval()
    original = copy.deepcopy(model)
    parameters = list(model.parameters())
    called = []
    model.layers[1].register_forward_hook(lambda *_: called.append(1))
    report = fusednn.convert(model)
    assert report.model is model
    assert report.replaced == {
        "RNN": 1, "LSTM": 1, "GRU": 1, "LSTMCell": 1, "TransformerEncoderLayer": 1, "MultiheadAttention": 1,
    }  # fmt: skip
    assert not report.kept
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True)), "the same parameters"
    assert isinstance(model.layers[1], fusednn.LSTM) and isinstance(
        model.attention.self_attn, fusednn.MultiheadAttention
    )
    x = torch.randn(5, 2, 4)
    torch.testing.assert_close(model(x), original(x))
    assert called == [1], "hooks stay"
    assert not model.load_state_dict(original.state_dict()).missing_keys


def test_converted_layers_train_as_before():
    model, x = Model(), torch.randn(5, 2, 4)
    twin = copy.deepcopy(model)
    fusednn.convert(twin)
    gradients = []
    for m in (model, twin):
        m(x).square().sum().backward()
        gradients.append([p.grad for p in m.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_convert_leaves_subclasses_alone_and_says_why():
    class Mine(nn.LSTM):
        pass

    model = nn.Sequential(Mine(3, 4))
    report = fusednn.convert(model)
    assert type(model[0]) is Mine and "subclass" in report.kept["0"]
    parametrised = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.LSTM(3, 4), "weight_hh_l0"))
    assert "parametrised" in fusednn.convert(parametrised).kept["0"]


def test_convert_twice_is_nothing_new():
    model = Model()
    fusednn.convert(model)
    assert str(fusednn.convert(model)) == "nothing to replace"


def test_convert_refuses_what_is_no_module():
    with pytest.raises(TypeError, match="expects a torch.nn.Module, got dict"):
        fusednn.convert({})


def test_revert_undoes_convert():
    model = Model().eval()
    original, x = copy.deepcopy(model), torch.randn(5, 2, 4)
    converted = fusednn.convert(model).replaced
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    report = fusednn.revert(model)
    assert report.model is model and report.replaced == converted and not report.kept
    assert [type(m) for m in model.modules()] == [type(m) for m in original.modules()]
    assert torch.equal(model(x), original(x)), "torch.nn's own kernels run again"
    model(x).sum().backward()
    optimizer.step()
    assert not torch.equal(model(x), original(x)), "an optimiser made meanwhile still trains it"
    assert str(fusednn.revert(model)) == "nothing to replace"


def test_revert_keeps_what_torch_does_not_have():
    class Mine(fusednn.LSTM):
        pass

    model = nn.Sequential(fusednn.GRU(3, 4, reset_after=False), Mine(3, 4), fusednn.GRU(3, 4, strategy="reference"))
    report = fusednn.revert(model)
    assert report.replaced == {"GRU": 1} and type(model[2]) is nn.GRU
    assert "reset_after=False" in report.kept["0"] and "subclass" in report.kept["1"]
    with pytest.raises(TypeError, match="revert.. expects a torch.nn.Module, got list"):
        fusednn.revert([])


@pytest.mark.parametrize("of", [nn.LSTM, nn.GRU, nn.RNN], ids=lambda c: c.__name__)
@pytest.mark.parametrize(
    "change",
    [
        lambda m: nn.utils.parametrizations.weight_norm(m, "weight_hh_l0"),
        lambda m: nn.utils.parametrizations.orthogonal(m, "weight_hh_l0"),
        lambda m: prune.l1_unstructured(m, "weight_hh_l0", 0.5),
    ],
    ids=["weight_norm", "orthogonal", "prune"],
)
def test_weights_that_are_computed_are_used_and_trained(of, change):
    """parametrize and prune replace a parameter by what follows from others."""
    x, results = torch.randn(4, 2, 3), []
    theirs = of(3, 6)
    ours = getattr(fusednn, of.__name__)(3, 6)
    ours.load_state_dict(theirs.state_dict())
    for layer in (theirs, ours):
        torch.manual_seed(0)
        change(layer)
        y = layer(x)[0]
        names, parameters = zip(*layer.named_parameters(), strict=True)
        results.append((names, y, *torch.autograd.grad(y.square().sum(), parameters)))
    assert results[0][0] == results[1][0]
    for a, b in zip(results[0][1:], results[1][1:], strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)


def test_auto_takes_the_first_that_can(cell):
    chosen = plan(Request(cell, "cpu"))
    possible = [
        s.name for s in STRATEGIES if (s.refuse(Request(cell, "cpu")) or s.pass_over(Request(cell, "cpu"))) is None
    ]
    assert chosen.strategy.name == possible[0]
    assert {name for name, _ in chosen.refused} == {s.name for s in STRATEGIES} - {chosen.strategy.name}


def test_every_strategy_computes_the_same(cell):
    layer_class, arguments = fusednn.layers.recurrent.layer_of(cell)
    possible = [s.name for s in STRATEGIES if s.refuse(Request(cell, "cpu")) is None]  # without the emulation, fewer
    layers = [layer_class(4, 6, **arguments, strategy=name) for name in ("auto", *possible)]
    x = torch.randn(5, 3, 4)
    for layer in layers:
        layer.load_state_dict(layers[0].state_dict())
        torch.testing.assert_close(layer(x), layers[0](x))


def test_an_impossible_strategy_raises_with_the_reason():
    built = "cuda" in COMPILED_DEVICES
    why = "runs on CPU tensors" if built else "CUDA kernels is not built"
    with pytest.raises(ValueError, match=rf"strategy 'sequence' is impossible for lstm in float32 on cuda: .*{why}"):
        plan(Request("lstm", "cuda"), "sequence")
    with pytest.raises(ValueError, match="dtype must be one of float64"):
        plan(Request("lstm", "cpu", "int8"), "sequence")
    assert plan(Request("lstm", "cuda")).strategy.name == ("step" if built else "reference")


def test_explain_names_choice_cost_and_refusals():
    text = fusednn.explain(fusednn.LSTM(3, 4, num_layers=2, strategy="loop"), torch.randn(7, 2, 3))
    assert "strategy   loop" in text and "calls      14 (T = 7)" in text and "\nnot sequence" in text
    model = Model()
    fusednn.convert(model)
    assert fusednn.explain(model).count("strategy") == 4
    with pytest.raises(TypeError, match="fusednn.convert"):
        fusednn.explain(nn.LSTM(3, 4))


class Tagger(nn.Module):
    """A model that changes when it runs: statistics, and a state that it keeps."""

    def __init__(self, reads_values=False):
        super().__init__()
        self.embedding, self.norm = nn.Embedding(9, 4), nn.BatchNorm1d(4)
        self.first, self.second = fusednn.GRU(4, 6, batch_first=True), fusednn.MinGRU(6, 6)
        self.attention = fusednn.TransformerEncoderLayer(6, 2, 8)
        self.state, self.reads_values = None, reads_values

    def forward(self, tokens, lengths=None):
        if self.reads_values and int(tokens.sum()) < 0:
            return None
        x = self.norm(self.embedding(tokens).transpose(1, 2)).transpose(1, 2)
        x, self.state = self.first(x, lengths=lengths)
        return self.attention(self.second(x)[0])


def test_explain_of_a_model_finds_the_calls_inside_and_leaves_the_model_alone():
    model, tokens = Tagger(), torch.randint(9, (3, 7))
    before = copy.deepcopy(model.state_dict())
    text = fusednn.explain(model, tokens, lengths=torch.tensor([7, 1, 3]))
    first, second, attention = text.split("\n\n")
    assert first.startswith("first\ncell       gru") and "(T = 7)" in first
    assert second.startswith("second\nscan       min_gru") and "kernel     " in second
    assert attention.startswith("attention.self_attn\nattention  ") and "why" in attention
    assert model.state is None
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))


def test_explain_of_a_model_that_reads_values_says_that_the_sizes_are_not_known():
    text = fusednn.explain(Tagger(reads_values=True), torch.randint(9, (3, 7)))
    assert text.startswith("sizes      not known: without data the model raises DataDependentOutputException")
    assert "cell       gru" in text and "(T = " not in text


def test_explain_of_an_attention_layer_says_who_computes_it():
    layer, x = fusednn.MultiheadAttention(8, 2), torch.randn(5, 3, 8)
    assert "torch.nn's own forward" in fusednn.explain(layer, x, x, x)
    assert "need_weights=False" in fusednn.explain(layer, x, x, x)
    assert "torch_sdpa" in fusednn.explain(layer, x, x, x, need_weights=False)


def test_explain_of_a_layer_with_one_kernel_names_it():
    layer, x = fusednn.AdditiveAttention(4, 4, 8), torch.randn(2, 3, 4)
    compiled = "cpu" in COMPILED_DEVICES
    assert ("compiled C++" if compiled else "plain PyTorch") in fusednn.explain(layer, x, x)
    assert "plain PyTorch" in fusednn.explain(fusednn.MinLSTM(4, 8, device="meta"))


def test_explain_names_the_dtype_of_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        assert "gru, bfloat16 on cpu" in fusednn.explain(fusednn.GRU(4, 8), torch.randn(5, 2, 4))


def test_explain_refuses_what_the_layer_would_refuse():
    layer, x = fusednn.GRU(4, 8), torch.randn(5, 2, 4)
    with pytest.raises(ValueError, match="width 4 and torch.float32, got 3 and torch.float32"):
        fusednn.explain(layer, x[..., 1:])
    with pytest.raises(ValueError, match="width 4 and torch.float32, got 4 and torch.float64"):
        fusednn.explain(layer, x.double())
    with pytest.raises(TypeError, match="arguments of GRU: got an unexpected keyword argument 'length'"):
        fusednn.explain(layer, x, length=torch.tensor([5, 2]))
    with pytest.raises(ValueError, match=r"MinGRU expects input"):
        fusednn.explain(fusednn.MinGRU(4, 8), x[..., 1:])


def test_explain_attention_names_the_path():
    q = torch.randn(1, 2, 4, 8)
    sdpa = fusednn.functional.scaled_dot_product_attention
    assert "torch_sdpa" in fusednn.explain(sdpa, q, q, q)
    keys = torch.randn(1, 2, 256, 8, requires_grad=True)
    assert "composition" in fusednn.explain(sdpa, q, keys, keys, softcap=5.0)


def test_command_line_report_names_the_facts(capsys):
    assert main([]) == 0
    printed = capsys.readouterr().out
    for word in ("fusednn", "python", "torch", "triton", "cpu", "kernels", "gpu"):
        assert word in printed


def test_command_line_explain(capsys):
    assert main(["explain", "lstm", "--batch", "32", "--time", "100", "--hidden", "512"]) == 0
    printed = capsys.readouterr().out
    assert "B = 32, T = 100, H = 512" in printed and "calls      1 (T = 100)" in printed
    assert main(["explain", "attention", "--hidden", "64", "--heads", "8", "--time", "10"]) == 0
    assert "torch_sdpa" in capsys.readouterr().out


def test_command_line_refuses_with_a_reason(capsys):
    assert main(["explain", "attention", "--hidden", "65", "--heads", "8"]) == 2
    assert "multiple of --heads" in capsys.readouterr().err
    assert main(["explain", "lstm", "--device", "cuda", "--strategy", "sequence"]) == 2
    with pytest.raises(SystemExit):
        main(["explain", "lstm", "--batch", "0"])


def test_module_runs_as_a_program():
    result = subprocess.run([sys.executable, "-m", "fusednn"], capture_output=True, text=True)
    assert result.returncode == 0 and "torch" in result.stdout
