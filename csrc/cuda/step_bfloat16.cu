#include "cuda/step.h"

namespace fusednn::cuda {

const StepKernels* step_bfloat16(const char* cell) {
  return step_kernels<Bf16>(cell);
}

}  // namespace fusednn::cuda
