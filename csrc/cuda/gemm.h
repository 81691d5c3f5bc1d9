// The rung `gemm`: library products, then one pointwise kernel a step. Serves every size, dtype and option.
#pragma once

#include "cuda/steps.h"

namespace fusednn::cuda {

// The pointwise kernels of one cell; both directions in one launch. Each returns null or a message.
struct PointwiseKernels {
  const char* (*forward)(const RecurrentShape&, const Both<ForwardStep>&);
  const char* (*forward_late)(const RecurrentShape&, const Both<ForwardStep>&);    // of a two-product cell
  const char* (*backward)(const RecurrentShape&, const Both<BackwardStep>&);       // up to the (last) gates
  const char* (*backward_late)(const RecurrentShape&, const Both<BackwardStep>&);  // two products: the first gates;
                                                                                   // projection: the gates
};
const PointwiseKernels* pointwise_kernels(const char* cell, Dtype dtype);

// With a projection: the projected vector (product) becomes h; the gradient of h is gathered in d_proj.
const char* put_projected(const RecurrentShape&, const Both<ForwardStep>&);
const char* gather_projected(const RecurrentShape&, const Both<BackwardStep>&);

}  // namespace fusednn::cuda
