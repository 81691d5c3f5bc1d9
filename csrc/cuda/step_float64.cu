#include "cuda/step.h"

namespace fusednn::cuda {

const StepKernels* step_float64(const char* cell) {
  return step_kernels<Float64>(cell);
}

}  // namespace fusednn::cuda
