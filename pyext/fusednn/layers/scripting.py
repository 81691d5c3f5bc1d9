"""What ``torch.jit.script`` is told; its own message would name a line of ours and no way out."""

from __future__ import annotations

from typing import NoReturn

from torch import nn


def refuse_script(layer: nn.Module) -> NoReturn:
    """Raise: a class has this as ``__prepare_scriptable__``, which ``torch.jit.script`` calls first."""
    raise RuntimeError(
        f"torch.jit.script cannot compile fusednn's {type(layer).__name__}: torch.jit.trace, torch.export and"
        " torch.compile can, or fusednn.revert(model) goes back to torch.nn's layers before"
    )
