#include "cuda/persistent.h"

namespace fusednn::cuda {

const PersistentKernels* persistent_tf32(const char* cell) {
  return persistent_kernels<Tf32>(cell);
}

}  // namespace fusednn::cuda
