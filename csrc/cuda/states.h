// Kernels around the steps: states in and out, weights transposed. Independent of the cell.
#pragma once

#include "api.h"

namespace fusednn::cuda {

// For i < n: x = from[i] of `dtype`, or 0 where from is null, goes to acc[i] (fp64 where dtype is, else fp32) and, in
// dtype, to same[0..2][i] and, times mask[i], to masked[0..1][i]; each target may be null.
struct Spread {
  void* acc;
  void* same[3];
  const void* mask;
  void* masked[2];
};
const char* spread_state(const void* from, Dtype dtype, int64_t n, const Spread& to, void* stream);

// to[i] = acc[i] (+ product[b, u], times mask[i], for rows b < rows, with i = b * width + u) in dtype; product and mask
// may be null.
const char* gather_state(const void* acc, Dtype dtype, int64_t n, const void* product, const void* mask, int64_t rows,
                         int64_t width, void* to, void* stream);

// to[k, m] = from[m, k] for elements of dtype.
const char* transpose(const void* from, Dtype dtype, int64_t m, int64_t k, void* to, void* stream);

}  // namespace fusednn::cuda
