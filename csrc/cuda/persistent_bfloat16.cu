#include "cuda/persistent.h"

namespace fusednn::cuda {

const PersistentKernels* persistent_bfloat16(const char* cell) {
  return persistent_kernels<Bf16>(cell);
}

}  // namespace fusednn::cuda
