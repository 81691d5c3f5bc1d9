"""The operator ``torch.ops.fusednn.additive_scores``: schema, shapes for tracing, gradients."""

from __future__ import annotations

import torch

from .attention_call import wide
from .kernel_operators import register
from .operators import LIBRARY
from .reference import additive as reference

LIBRARY.define("additive_scores(Tensor query, Tensor key, Tensor weight) -> Tensor", tags=torch.Tag.pt2_compliant_tag)
LIBRARY.define(
    "additive_scores_backward(Tensor grad, Tensor query, Tensor key, Tensor weight)"
    " -> (Tensor d_query, Tensor d_key, Tensor d_weight)",
    tags=torch.Tag.pt2_compliant_tag,
)


@torch.library.register_fake("fusednn::additive_scores", lib=LIBRARY)
def _(query, key, weight):
    return query.new_empty(query.shape[0], query.shape[1], key.shape[1], dtype=wide(query.dtype))


@torch.library.register_fake("fusednn::additive_scores_backward", lib=LIBRARY)
def _(grad, query, key, weight):
    return tuple(t.new_empty(t.shape) for t in (query, key, weight))


def _backward(grad, arguments, scores):
    return torch.ops.fusednn.additive_scores_backward(grad, *arguments)


register("additive_scores", reference.scores, _backward, "additive")
