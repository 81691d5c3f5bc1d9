"""Replace torch.nn layers inside a model by fusednn's, in place, and the other way round."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from .layers.attention import MultiheadAttention
from .layers.cells import GRUCell, LSTMCell, RNNCell
from .layers.recurrent import GRU, LSTM, RNN
from .layers.transformer import TransformerDecoderLayer, TransformerEncoderLayer

REPLACEMENTS: dict[type[nn.Module], type[nn.Module]] = {
    nn.RNN: RNN,
    nn.LSTM: LSTM,
    nn.GRU: GRU,
    nn.RNNCell: RNNCell,
    nn.LSTMCell: LSTMCell,
    nn.GRUCell: GRUCell,
    nn.MultiheadAttention: MultiheadAttention,
    nn.TransformerEncoderLayer: TransformerEncoderLayer,
    nn.TransformerDecoderLayer: TransformerDecoderLayer,
}


@dataclass
class Conversion:
    """What ``convert`` or ``revert`` did.

    Attributes:
        model: the model, the same object that was given.
        replaced: how many layers of each type changed their class; torch.nn and fusednn name them alike.
        kept: name and reason of each recurrent or attention layer that stayed as it was.
    """

    model: nn.Module
    replaced: dict[str, int] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)

    def replace(self, module: nn.Module, replacement: type[nn.Module]) -> None:
        """Change the module's class, and count it."""
        name = type(module).__name__
        self.replaced[name] = self.replaced.get(name, 0) + 1
        module.__class__ = replacement

    def __str__(self) -> str:
        lines = [f"{count} x {name}" for name, count in sorted(self.replaced.items())] or ["nothing to replace"]
        lines += [f"kept {name or 'the model'}: {reason}" for name, reason in self.kept.items()]
        return "\n".join(lines)


def convert(model: nn.Module) -> Conversion:
    """Make every torch.nn recurrent and attention layer inside a model run on fusednn.

    Layers change their class and nothing else: parameters, buffers, hooks, state_dict and references to the layers stay
    the same objects, so that optimisers made before keep working. Subclasses of torch.nn's layers are left alone, since
    their own ``forward`` would be lost; parametrised layers too.

    Args:
        model: any module; a bare layer counts.

    Returns:
        A ``Conversion`` that says what was replaced and what was kept, and why; its ``model`` is the argument.

    Raises:
        TypeError: ``model`` is not a module.

    Example:
        >>> import torch, fusednn
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LSTM(8, 16))
        >>> print(fusednn.convert(model))
        1 x LSTM
        >>> type(model[1])
        <class 'fusednn.layers.recurrent.LSTM'>
    """
    report = _report("convert", model)
    for name, module in model.named_modules():
        replacement = REPLACEMENTS.get(type(module))
        if replacement is not None:
            report.replace(module, replacement)
        elif isinstance(module, tuple(REPLACEMENTS)) and type(module) not in REPLACEMENTS.values():
            parametrised = nn.utils.parametrize.is_parametrized(module)
            why = "it is parametrised" if parametrised else f"{type(module).__qualname__} is a subclass of torch.nn's"
            report.kept[name] = why
        elif getattr(module, "original_name", None) in {kind.__name__ for kind in REPLACEMENTS}:
            report.kept[name] = "it is scripted; convert the model before torch.jit.script"
    return report


def revert(model: nn.Module) -> Conversion:
    """Make every fusednn layer inside a model that torch.nn has, too, run on torch.nn: what ``convert`` did is undone.

    As there, the class of a layer changes and nothing else. Layers that torch.nn cannot compute stay as they are.

    Args:
        model: any module; a bare layer counts.

    Returns:
        A ``Conversion`` that says what was replaced and what was kept, and why; its ``model`` is the argument.

    Raises:
        TypeError: ``model`` is not a module.

    Example:
        >>> import torch, fusednn
        >>> model = fusednn.convert(torch.nn.LSTM(8, 16)).model
        >>> type(fusednn.revert(model).model)
        <class 'torch.nn.modules.rnn.LSTM'>
    """
    report = _report("revert", model)
    originals = {ours: theirs for theirs, ours in REPLACEMENTS.items()}
    for name, module in model.named_modules():
        original, reason = originals.get(type(module)), _beyond_torch(module)
        if original is not None and reason is None:
            report.replace(module, original)
        elif original is not None or isinstance(module, tuple(originals)):
            report.kept[name] = reason or f"{type(module).__qualname__} is a subclass of fusednn's"
    return report


def check_module(caller: str, model: object) -> None:
    """Raise unless what a function is given is a module."""
    if not isinstance(model, nn.Module):
        got = (
            f"the class {model.__name__}, of which it needs an instance"
            if isinstance(model, type)
            else type(model).__name__
        )
        raise TypeError(f"{caller}() expects a torch.nn.Module, got {got}")


def _report(caller: str, model: nn.Module) -> Conversion:
    check_module(caller, model)
    return Conversion(model)


def _beyond_torch(module: nn.Module) -> str | None:
    """Why torch.nn has no layer that computes the same; None: it has."""
    if not getattr(module, "reset_after", True):
        return "torch.nn has no GRU with reset_after=False"
    if options := getattr(module, "options", None):
        return f"torch.nn has no {', '.join(options)}"
    return None
