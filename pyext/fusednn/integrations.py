"""``attn_implementation="fusednn"`` in Hugging Face transformers 4.53 and newer, registered by ``import fusednn``.

Nothing is imported for it: two post-import hooks run when transformers' own modules are imported, or at once if they
have been. What a model may ask of the function, and what raises, is in ``docs/transformers.md``.
"""

from __future__ import annotations

import functools
import sys
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from wrapt import register_post_import_hook

from .functional import scaled_dot_product_attention

NAME = "fusednn"

# What models pass along to every attention function and what is spent before it, or is for another kind of layer.
WITHOUT_EFFECT = {
    "cache_position",
    "hidden_states",
    "num_items_in_batch",
    "output_hidden_states",
    "output_router_logits",
    "past_key_value",
    "past_key_values",
    "position_embeddings",
    "position_ids",
    "return_dict",
    "use_cache",
}


def attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    *,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    deterministic: bool = False,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend, as a layer of a transformers model asks it from the attention function of its configuration.

    The conventions are those of transformers' own ``sdpa`` function: a mask says everything about what is seen; without
    one, several queries see causally from the first key on if the layer is causal, and a single query sees every key.

    Args:
        module: the layer, whose ``is_causal`` counts where the argument is None (True if it has none either).
        query: queries.
        key: keys; fewer heads than ``query`` has are shared.
        value: values, likewise.
        attention_mask: bool, True where a query may attend, or float, added to the scores. Keys that it has beyond
            those of ``key`` are ignored.
        scaling: factor of the scores; None is 1 / sqrt(E).
        dropout: probability of dropping an attention weight, in training mode.
        is_causal: whether the layer is causal.
        sliding_window: how many keys a causal query sees, its own included. A mask holds the window already.
        softcap: bound of the scores.
        s_aux: one extra logit a head that takes probability and gives no value.
        position_bias: added to the scores; has a gradient.
        deterministic: promise the same bits from run to run in the backward pass too.
        kwargs: what a model passes along; None and False are always in order.

    Shape:
        - query: ``[B, N, M, E]``; key: ``[B, N / G, K, E]``; value: ``[B, N / G, K, Ev]``.
        - attention_mask: ``[B or 1, N or 1, M, K or more]``; position_bias: ``[B or 1, N or 1, M, K]``; s_aux: ``[N]``.
        - output: ``[B, M, N, Ev]``.

    Returns:
        The output and None: attention weights are never held in memory.

    Raises:
        ValueError: the request cannot be honoured: attention weights or another keyword that changes the result, a mask
            that is not four-dimensional, a window that no mask holds in a layer that is not causal.

    Example:
        >>> import torch
        >>> query, key = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8)
        >>> attention_forward(torch.nn.Identity(), query, key, key, None)[0].shape
        torch.Size([2, 5, 4, 8])
    """
    refused = sorted(name for name in kwargs.keys() - WITHOUT_EFFECT if not _is_absent(kwargs[name]))
    if refused:
        raise ValueError(
            f'attn_implementation="{NAME}" cannot honour {", ".join(refused)}: load the model with'
            ' attn_implementation="eager" for it'
        )
    if scaling is None and (
        not getattr(module, "scale_attn_weights", True) or getattr(module, "scale_attn_by_inverse_layer_idx", False)
    ):
        raise ValueError(
            "this version of transformers does not pass on the scale of the configuration: use a newer one"
        )
    queries, keys = query.shape[2], key.shape[2]
    window = None
    if attention_mask is not None:
        if attention_mask.dim() != 4:
            raise ValueError(f"attention_mask must be [B, N, M, K], got shape {list(attention_mask.shape)}")
        attention_mask = attention_mask[..., :keys]
        causal = False
    else:
        causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
        if sliding_window is not None and keys > sliding_window:
            if not causal:  # models do not agree on whether such a window includes its last key
                raise ValueError("sliding_window needs a mask in a layer that is not causal, got attention_mask=None")
            window = (sliding_window - 1, None)
        causal = causal and queries > 1  # one query sees every key, which no kernel needs a mask for
    if position_bias is not None:
        attention_mask = _add_mask(position_bias, attention_mask)
    out = scaled_dot_product_attention(
        query,
        key,
        value,
        attention_mask,
        dropout if module.training else 0.0,
        causal,
        scaling,
        enable_gqa=key.shape[1] != query.shape[1],
        window=window,
        softcap=softcap,
        sink=s_aux,
        causal_alignment="bottom_right" if queries == 1 else "top_left",
        deterministic=deterministic,
    )
    return out.transpose(1, 2).contiguous(), None


def _is_absent(x: Any) -> bool:
    return x is None or x is False


def _add_mask(bias: Tensor, mask: Tensor | None) -> Tensor:
    """One float mask that does what both do: [B, N, M, K]."""
    if mask is None:
        return bias
    return torch.where(mask, bias, -torch.inf) if mask.dtype == torch.bool else bias + mask


def _register_attention(modeling_utils: ModuleType) -> None:
    modeling_utils.AttentionInterface.register(NAME, attention_forward)


def _register_mask(masking_utils: ModuleType) -> None:
    """Without a mask function of this name, models would build no mask at all, and padding would be seen."""

    def mask(*args: Any, config: Any = None, **kwargs: Any) -> Tensor | None:
        """Transformers' ``sdpa`` mask: bool, or None where ``attention_forward`` needs none."""
        culprit = _check_model(type(config))
        if culprit is not None:
            raise ValueError(
                f'{culprit} of this version of transformers computes attention itself: attn_implementation="{NAME}"'
                ' cannot change that, use "eager"'
            )
        return masking_utils.sdpa_mask(*args, config=config, **kwargs)

    masking_utils.AttentionMaskInterface.register(NAME, mask)


@torch.compiler.assume_constant_result  # nothing that torch.compile could trace
def _check_model(config: type) -> str | None:
    return _without_interface(config)


@functools.cache
def _without_interface(config: type) -> str | None:
    """The model code for a configuration that builds masks but takes no attention function from the registry.

    Transformers lets such a model have any registered name. It would add our bool mask to its scores: no error, and
    wrong results.
    """
    for folder in (base.__module__.rpartition(".")[0] for base in config.__mro__):
        for name, module in sys.modules.copy().items():
            if name.startswith(f"{folder}.modeling_") and folder != "transformers":
                builds_masks = any(x.startswith("create_") and x.endswith("_mask") for x in vars(module))
                if builds_masks and not hasattr(module, "ALL_ATTENTION_FUNCTIONS"):
                    return name
    return None


register_post_import_hook(_register_attention, "transformers.modeling_utils")
register_post_import_hook(_register_mask, "transformers.masking_utils")
