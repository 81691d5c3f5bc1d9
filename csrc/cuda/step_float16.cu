#include "cuda/step.h"

namespace fusednn::cuda {

const StepKernels* step_float16(const char* cell) {
  return step_kernels<Fp16>(cell);
}

}  // namespace fusednn::cuda
