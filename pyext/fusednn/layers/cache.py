"""What an attention layer remembers between steps: the keys and values of the tokens so far."""

from __future__ import annotations

import torch
from torch import Tensor

LEAST = 64  # tokens that a new buffer has room for


class _Buffers:
    """Room for keys and values, of which the first ``used`` tokens are taken by the longest cache that shares it."""

    def __init__(self, key: Tensor, value: Tensor, used: int):
        self.key, self.value, self.used = key, value, used


class KeyValueCache:
    """Keys and values of the tokens so far; the state of ``step()`` in attention layers.

    Like an RNN's state it does not change: ``extend`` gives another cache. The two share a buffer that doubles when it
    is full, so a step writes one token and copies nothing; extending the same cache twice copies it once. Where
    gradients are recorded, and in compiled code, each cache has tensors of its own.

    Args:
        key: keys; None for an empty cache, whose sizes the first tokens decide.
        value: values, likewise.

    Shape:
        - key: ``[B, N, T, E]``; value: ``[B, N, T, Ev]``; heads outside of time in memory.

    Raises:
        ValueError: shapes that do not fit, or one of the two without the other.

    Example:
        >>> import torch
        >>> from fusednn.layers.cache import KeyValueCache
        >>> state = KeyValueCache()
        >>> for _ in range(3):
        ...     state = state.extend(torch.randn(1, 2, 1, 8), torch.randn(1, 2, 1, 8))
        >>> len(state), state.key.shape
        (3, torch.Size([1, 2, 3, 8]))
    """

    def __init__(self, key: Tensor | None = None, value: Tensor | None = None):
        self._buffers: _Buffers | None = None
        self._length = 0
        if key is None and value is None:
            return
        if key is None or value is None or key.dim() != 4 or key.shape[:3] != value.shape[:3]:
            got = [None if x is None else list(x.shape) for x in (key, value)]
            raise ValueError(f"expected key [B, N, T, E] and value [B, N, T, Ev], got shapes {got[0]} and {got[1]}")
        self._buffers, self._length = _Buffers(key, value, key.shape[2]), key.shape[2]

    def __len__(self) -> int:
        """Tokens."""
        return self._length

    def __repr__(self) -> str:
        return f"{type(self).__name__}(tokens={self._length}, bytes={self.nbytes})"

    @property
    def key(self) -> Tensor:
        """Keys, ``[B, N, T, E]``: a view, not to be written to."""
        return self._of("key")

    @property
    def value(self) -> Tensor:
        """Values, ``[B, N, T, Ev]``: likewise."""
        return self._of("value")

    @property
    def nbytes(self) -> int:
        """Bytes that the tokens take; the buffer may have room for more."""
        return 0 if self._buffers is None else self.key.nbytes + self.value.nbytes

    def extend(self, key: Tensor, value: Tensor) -> KeyValueCache:
        """A cache with more tokens.

        Args:
            key: keys of the new tokens, ``[B, N, T, E]``.
            value: their values, ``[B, N, T, Ev]``.

        Raises:
            ValueError: sizes, dtype or device that differ from those of the tokens so far.
        """
        more = KeyValueCache(key, value)
        if self._buffers is None:
            key, value = key[:, :, :0], value[:, :, :0]
        else:
            key, value = self.key, self.value
            for name, x, y in (("key", key, more.key), ("value", value, more.value)):
                if (x.shape[0], x.shape[1], x.shape[3], x.dtype, x.device) != (
                    y.shape[0], y.shape[1], y.shape[3], y.dtype, y.device,
                ):  # fmt: skip
                    raise ValueError(
                        f"{name} must continue {list(x.shape)} {x.dtype} on {x.device},"
                        f" got {list(y.shape)} {y.dtype} on {y.device}"
                    )
        recorded = torch.is_grad_enabled() and any(x.requires_grad for x in (key, value, more.key, more.value))
        if recorded or torch.compiler.is_compiling():
            return KeyValueCache(torch.cat([key, more.key], 2), torch.cat([value, more.value], 2))
        extended = KeyValueCache()
        extended._length = self._length + len(more)
        extended._buffers = self._room(key, value, more, extended._length)
        for whole, new in ((extended._buffers.key, more.key), (extended._buffers.value, more.value)):
            whole[:, :, self._length : extended._length] = new
        extended._buffers.used = extended._length
        return extended

    def reorder(self, rows: Tensor) -> KeyValueCache:
        """The cache of other batch rows, as beam search picks them.

        Args:
            rows: for each new batch row the old one it continues, ``[B]`` int64.

        Raises:
            ValueError: the cache is empty.
        """
        return KeyValueCache(self.key.index_select(0, rows), self.value.index_select(0, rows))

    def detach(self) -> KeyValueCache:
        """The same tokens without their history: gradients stop here (truncated backpropagation)."""
        return self if self._buffers is None else KeyValueCache(self.key.detach(), self.value.detach())

    def _of(self, name: str) -> Tensor:
        if self._buffers is None:
            raise ValueError("the cache is empty: the first tokens decide its sizes")
        return getattr(self._buffers, name)[:, :, : self._length]

    def _room(self, key: Tensor, value: Tensor, more: KeyValueCache, length: int) -> _Buffers:
        """The buffers if they have room behind this cache, else new ones of twice the size with a copy."""
        old = self._buffers
        if old is not None and old.used == self._length and old.key.shape[2] >= length:
            writable = torch.is_inference_mode_enabled() or not old.key.is_inference()
            if writable and not old.key.requires_grad:
                return old
        size = max(LEAST, 2 * length)
        fresh = [x.new_empty(*x.shape[:2], size, x.shape[3]) for x in (more.key, more.value)]
        for whole, x in zip(fresh, (key, value), strict=True):
            whole[:, :, : self._length] = x
        return _Buffers(fresh[0], fresh[1], length)
