// The call of csrc/cpu/linear.h.
#pragma once

#include "api.h"

namespace fusednn {

// Gradients of a linear map y = x W^T + b over rows. CPU only: on a GPU they are library GEMMs. Conventions as in
// api.h.
struct LinearBackward {
  Dtype dtype;
  int64_t rows, outputs;  // N, M
  const void* d_y;        // [N, M], rows d_y_row elements apart
  int64_t d_y_row;
  struct {
    int64_t size;   // K
    const void* x;  // [N, K]
    void* d_w;      // [M, K] or null
  } inputs[2];      // maps whose y are one sum have one d_y; size 0: none
  const void* w;    // [M, w_size] where d_x is wanted
  int64_t w_size;
  void* d_x;  // [N, w_size] or null
  void* d_b;  // [M] or null
  int threads;
};

// Returns null, or a message that lives until the thread's next call.
const char* linear_backward(const LinearBackward&);

}  // namespace fusednn
