// Layer norm between a library product and the gates: what `gemm` launches beside its pointwise kernels.
#pragma once

#include "cuda/steps.h"

namespace fusednn::cuda {

// The values of a product: its gates, of all units of a head, of the rows that take part in a step. What follows names
// row 0 of a direction's first head; heads and rows lie `head` and `row` elements apart.
struct NormRows {
  int count;  // of rows
  long head, row;
  const void* from;    // forward: the product; backward: the gradients of what was made of it
  void* to;            // forward: gain LN(product), may be `from`; backward: the gradients of the product
  const void* gain;    // heads lie gain_head elements apart
  const void* normed;  // backward: LN(product), placed as `from`; null: forward
  const void* rstd;    // backward: 1 / sqrt(variance + kNormEps), heads and rows rstd_head and rstd_row apart
  long rstd_head, rstd_row;
};

// Both directions in one launch; `width`: values of a row.
const char* norm_rows(const RecurrentShape&, const Both<NormRows>&, int64_t width, int64_t gain_head);

}  // namespace fusednn::cuda
