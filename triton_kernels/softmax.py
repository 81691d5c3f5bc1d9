"""The running softmax: maximum m, in units of log 2, sum l and unscaled output of rows that meet their keys in blocks.

Equations: ``docs/kernels/attention.md``, "Computing it". Source: Dao 2023, FlashAttention-2, section 3.1.1.
"""

import triton
import triton.language as tl

from .modifiers import LOG2E


@triton.jit
def begin(sink, ROWS: tl.constexpr, COLS: tl.constexpr, ACC: tl.constexpr):
    """m, l and output of rows before their first key; a sink is one more score, without a value, None for none."""
    m = tl.full([ROWS], float("-inf"), ACC)
    l = tl.zeros([ROWS], ACC)  # noqa: E741
    if sink is not None:
        m = tl.zeros([ROWS], ACC) + sink * LOG2E
        l = tl.where(m == float("-inf"), 0.0, l + 1.0)  # noqa: E741
    return m, l, tl.zeros([ROWS, COLS], ACC)


@triton.jit
def weigh(scores, m, l, to_log2):  # noqa: E741
    """Weights of a block of scores, and maximum and sum of the rows seen so far with the factor of what they held."""
    grown = tl.maximum(m, tl.max(scores, 1) * to_log2)
    finite = tl.where(grown == float("-inf"), 0.0, grown)  # a row that has seen nothing yet
    p = tl.exp2(scores * to_log2 - finite[:, None])
    shrink = tl.exp2(m - finite)
    return p, grown, l * shrink + tl.sum(p, 1), shrink


@triton.jit
def finish(m, l, acc, draw):  # noqa: E741
    """Output, with the factor of dropout (``draw`` as for ``kept``, None for none), and natural LSE."""
    empty = l == 0.0
    total = tl.where(empty, 1.0, l)
    factor = 1.0 / total if draw is None else draw[2] / total
    return acc * factor[:, None], tl.where(empty, float("-inf"), (m + tl.log2(total)) / LOG2E)
