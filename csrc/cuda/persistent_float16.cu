#include "cuda/persistent.h"

namespace fusednn::cuda {

const PersistentKernels* persistent_float16(const char* cell) {
  return persistent_kernels<Fp16>(cell);
}

}  // namespace fusednn::cuda
