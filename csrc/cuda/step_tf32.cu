#include "cuda/step.h"

namespace fusednn::cuda {

const StepKernels* step_tf32(const char* cell) {
  return step_kernels<Tf32>(cell);
}

}  // namespace fusednn::cuda
