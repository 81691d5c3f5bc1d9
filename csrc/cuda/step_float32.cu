#include "cuda/step.h"

namespace fusednn::cuda {

const StepKernels* step_float32(const char* cell) {
  return step_kernels<Float32>(cell);
}

}  // namespace fusednn::cuda
