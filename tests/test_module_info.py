"""torch's own samples of each module (constructor and call), with our class in the place of torch's."""

from __future__ import annotations

import copy
import io
import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.testing._internal.common_modules import ModuleErrorEnum, module_db
from torch.utils._pytree import tree_leaves, tree_map

import fusednn
from fusednn.conversion import REPLACEMENTS

CONTAINERS = (nn.Transformer, nn.TransformerEncoder)  # torch's, of layers that convert replaces
INFOS = [info for info in module_db if info.module_cls in (*REPLACEMENTS, *CONTAINERS)]


@pytest.fixture(params=INFOS, ids=lambda info: info.name)
def info(request):
    return request.param


@pytest.fixture(params=[True, False], ids=["training", "eval"])
def training(request):
    return request.param


def samples(info, training, dtype=torch.float64, requires_grad=False):
    """torch's layer, ours with its parameters, and the arguments of a call."""
    torch.manual_seed(0)
    given = info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=requires_grad, training=training)
    for sample in given:
        args, options = sample.constructor_input.args, sample.constructor_input.kwargs
        theirs = info.module_cls(*copy.deepcopy(args), **options).to(dtype).train(training)
        if info.module_cls in CONTAINERS:
            ours = fusednn.convert(copy.deepcopy(theirs)).model
        else:
            ours = REPLACEMENTS[info.module_cls](*args, **options).to(dtype).train(training)
            ours.load_state_dict(theirs.state_dict())
        yield theirs, ours, sample.forward_input, f"{sample.desc} {args} {options}"


def test_mistakes_get_torchs_words(info, training):
    """torch's own samples of mistakes: the type and the message of the error."""
    if info.module_error_inputs_func is None:
        pytest.skip("torch has no such samples")
    for error in info.module_error_inputs_func(info, "cpu", torch.float32, False, training=training):
        given, call = error.module_error_input.constructor_input, error.module_error_input.forward_input
        with pytest.raises(error.error_type, match=error.error_regex):
            module = REPLACEMENTS[info.module_cls](*given.args, **given.kwargs)
            if error.error_on == ModuleErrorEnum.FORWARD_ERROR:
                module(*call.args, **call.kwargs)


def few(found):
    """One in five: for promises that do not depend on the call."""
    return itertools.islice(found, 0, None, 5)


def tensors(found):
    return [t for t in tree_leaves(found) if isinstance(t, torch.Tensor)]


def leaves(found):
    """The same with new leaves of autograd."""
    own = lambda t: t.detach().clone().requires_grad_(t.requires_grad) if isinstance(t, torch.Tensor) else t  # noqa: E731
    return tree_map(own, found)


def test_torch_has_samples_of_every_class_that_convert_replaces():
    assert {info.module_cls for info in INFOS} == {*REPLACEMENTS, *CONTAINERS}


def assert_same(theirs, ours, args, options, what):
    """Outputs and all gradients of both."""
    results = []
    for module in (theirs, ours):
        own_args, own_options = leaves((args, options))
        outputs = tensors(module(*own_args, **own_options))
        reached = [p for p in (*tensors((own_args, own_options)), *module.parameters()) if p.requires_grad]
        total = sum(t.sin().sum() for t in outputs if t.requires_grad)
        results.append([*outputs, *torch.autograd.grad(total, reached, allow_unused=True)])
    for expected, found in zip(*results, strict=True):
        assert (expected is None) == (found is None), what
        if expected is not None:
            torch.testing.assert_close(found, expected, equal_nan=True, msg=lambda m: f"{what}: {m}")


def test_outputs_and_gradients(info, training):
    for theirs, ours, call, what in samples(info, training, requires_grad=True):
        assert_same(theirs, ours, call.args, call.kwargs, what)


def test_inputs_that_are_not_contiguous(info):
    def spread(t):
        if not isinstance(t, torch.Tensor) or not t.dim():
            return t
        return torch.stack([t.detach(), t.detach()], -1)[..., 0].requires_grad_(t.requires_grad)

    for theirs, ours, call, what in few(samples(info, True, requires_grad=True)):
        assert_same(theirs, ours, *tree_map(spread, (call.args, call.kwargs)), what)


class Half(nn.Module):
    """A parametrisation."""

    def forward(self, weight):
        return 0.5 * weight


def each_matrix(model):
    """Every module with the name of a matrix that it holds."""
    for module in list(model.modules()):
        for name in [n for n, p in module.named_parameters(recurse=False) if p.dim() == 2]:
            yield module, name


CHANGES = {
    "parametrised": lambda module, name: parametrize.register_parametrization(module, name, Half()),
    "pruned": lambda module, name: prune.l1_unstructured(module, name, 0.5),
    "pruned for good": lambda module, name: prune.remove(prune.l1_unstructured(module, name, 0.5), name),
    "frozen": lambda module, name: getattr(module, name).requires_grad_(False),
    "replaced": lambda module, name: setattr(module, name, nn.Parameter(getattr(module, name).detach() / 2)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights(info, change):
    """Weights that torch.nn.utils or the user put in the place of a layer's own are those that compute."""
    for theirs, ours, call, what in itertools.islice(samples(info, True, requires_grad=True), 0, None, 12):
        for model in (theirs, ours):
            for module, name in each_matrix(model):
                CHANGES[change](module, name)
        assert list(ours.state_dict()) == list(theirs.state_dict())
        assert_same(theirs, ours, call.args, call.kwargs, f"{change}: {what}")


def test_hooks_see_what_they_see_in_torch(info):
    """Every hook of every submodule is called as often, in the same order, with the same tensors that have gradients.

    Masks have none: torch's transformer layers turn bool ones into floats on the way, ours hand them on.
    """
    for theirs, ours, call, what in itertools.islice(samples(info, True, requires_grad=True), 0, None, 12):
        seen = []
        for model in (theirs, ours):
            found = []

            def note(at, kind, found=found):
                return lambda _, *values: found.append((at, kind, [t for t in tensors(values) if learns(kind, t)]))

            for at, module in model.named_modules():
                module.register_forward_pre_hook(note(at, "before"), with_kwargs=True)
                module.register_forward_hook(note(at, "after"), with_kwargs=True)
                module.register_full_backward_pre_hook(note(at, "gradient of the output"))
                module.register_full_backward_hook(note(at, "gradient of the input"))
            args, options = leaves((call.args, call.kwargs))
            sum(t.sin().sum() for t in tensors(model(*args, **options)) if t.requires_grad).backward()
            seen.append(found)
        assert [event[:2] for event in seen[0]] == [event[:2] for event in seen[1]], what
        for (_, _, expected), (at, kind, found) in zip(*seen, strict=True):
            message = lambda m, at=at, kind=kind, what=what: f"{what}: {kind} of {at}: {m}"  # noqa: E731
            torch.testing.assert_close(found, expected, equal_nan=True, msg=message)


def learns(kind, tensor):
    return tensor.requires_grad or kind.startswith("gradient")


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("layer", [nn.RNN, nn.LSTM, nn.GRU], ids=lambda c: c.__name__)
def test_packed_sequences_and_flattened_parameters(layer, batch_first, training):
    theirs = layer(3, 4, 2, bidirectional=True, batch_first=batch_first, dtype=torch.float64).train(training)
    ours = fusednn.convert(copy.deepcopy(theirs)).model
    x = torch.randn(5, 5, 3, dtype=torch.float64)
    packed = pack_padded_sequence(x, torch.tensor([2, 5, 1, 4, 4]), batch_first, enforce_sorted=False)
    parameters = list(ours.parameters())
    ours.flatten_parameters()
    assert all(a is b for a, b in zip(parameters, ours.parameters(), strict=True))
    expected, found = theirs(packed), ours(packed)
    assert isinstance(found[0], PackedSequence)
    torch.testing.assert_close(tree_leaves(found), tree_leaves(expected))


def test_copies_and_files(info):
    """deepcopy and torch.save give a layer that computes the same and holds its own parameters."""
    for _, ours, call, what in few(samples(info, False)):
        expected = tensors(ours(*call.args, **call.kwargs))
        file = io.BytesIO()
        torch.save(ours, file)
        file.seek(0)
        for twin in (copy.deepcopy(ours), torch.load(file, weights_only=False)):
            assert type(twin) is type(ours) and repr(twin) == repr(ours)
            assert not {*map(id, twin.parameters())} & {*map(id, ours.parameters())}
            for a, b in zip(tensors(twin(*call.args, **call.kwargs)), expected, strict=True):
                assert torch.equal(a, b) or a.isnan().any(), what


def test_says_what_torchs_layer_says(info):
    """The same repr, parameters, buffers and state_dict, in the same order."""
    for theirs, ours, _, _ in few(samples(info, True)):
        assert repr(ours) == repr(theirs)
        for of in ("named_parameters", "named_buffers", "named_modules"):
            assert [n for n, _ in getattr(ours, of)()] == [n for n, _ in getattr(theirs, of)()]
        assert list(ours.state_dict()) == list(theirs.state_dict())


def test_devices_and_dtypes_of_the_constructor(info):
    if info.module_cls in CONTAINERS:
        pytest.skip("torch's own constructor")
    for sample in info.module_inputs_func(info, "cpu", torch.float32, False, training=True):
        args, options = sample.constructor_input.args, sample.constructor_input.kwargs
        for more in ({"dtype": torch.bfloat16}, {"dtype": torch.float64, "device": "meta"}):
            made = [made_by(*args, **options, **more) for made_by in (info.module_cls, REPLACEMENTS[info.module_cls])]
            theirs, ours = ([(p.shape, p.dtype, p.device) for p in m.parameters()] for m in made)
            assert ours == theirs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_conversion_of_the_dtype(info, dtype):
    """`to` changes parameters and results as it does torch's: after `half()` the layer runs wherever torch's does."""
    for theirs, ours, call, what in few(samples(info, False)):
        theirs, ours = theirs.to(dtype), ours.to(dtype)
        lower = lambda t: t.to(dtype) if isinstance(t, torch.Tensor) and t.is_floating_point() else t  # noqa: E731
        args, options = tree_map(lower, (call.args, call.kwargs))
        expected, found = (tensors(m(*args, **options)) for m in (theirs, ours))
        for a, b in zip(found, expected, strict=True):
            assert a.dtype == b.dtype, what
            tolerance = 32 * torch.finfo(dtype).eps  # outputs are of size 1
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)
