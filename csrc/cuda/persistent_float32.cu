#include "cuda/persistent.h"

namespace fusednn::cuda {

const PersistentKernels* persistent_float32(const char* cell) {
  return persistent_kernels<Float32>(cell);
}

}  // namespace fusednn::cuda
