"""torch's own samples of each module (constructor and call), with our class in the place of torch's."""

from __future__ import annotations

import copy
import io
import itertools

import pytest
import torch
from torch import nn
from torch.testing._internal.common_modules import module_db
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


def test_outputs_and_gradients(info, training):
    for theirs, ours, call, what in samples(info, training, requires_grad=True):
        results = []
        for module in (theirs, ours):
            args, options = leaves((call.args, call.kwargs))
            outputs = tensors(module(*args, **options))
            reached = [p for p in (*tensors((args, options)), *module.parameters()) if p.requires_grad]
            total = sum(t.sin().sum() for t in outputs if t.requires_grad)
            results.append([*outputs, *torch.autograd.grad(total, reached, allow_unused=True)])
        for expected, found in zip(*results, strict=True):
            assert (expected is None) == (found is None), what
            if expected is not None:
                torch.testing.assert_close(found, expected, equal_nan=True, msg=lambda m, what=what: f"{what}: {m}")


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
