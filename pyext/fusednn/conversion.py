"""Replace torch.nn layers inside a model by fusednn's, in place."""

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
    """What ``convert`` did.

    Attributes:
        model: the model, the same object that was given.
        replaced: how many layers of each torch.nn type now run on fusednn.
        kept: name and reason of each recurrent or attention layer that stayed as it was.
    """

    model: nn.Module
    replaced: dict[str, int] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)

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
    if not isinstance(model, nn.Module):
        raise TypeError(f"convert() expects a torch.nn.Module, got {type(model).__name__}")
    report = Conversion(model)
    for name, module in model.named_modules():
        replacement = REPLACEMENTS.get(type(module))
        if replacement is not None:
            report.replaced[type(module).__name__] = report.replaced.get(type(module).__name__, 0) + 1
            module.__class__ = replacement
        elif isinstance(module, tuple(REPLACEMENTS)) and type(module) not in REPLACEMENTS.values():
            parametrised = nn.utils.parametrize.is_parametrized(module)
            why = "it is parametrised" if parametrised else f"{type(module).__qualname__} is a subclass of torch.nn's"
            report.kept[name] = why
    return report
