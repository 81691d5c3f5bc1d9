// Programmatic dependent launch (sm_90 and later; nothing before): a launch may begin while the one in front still
// runs.
#pragma once

#include "cuda/primitives/device.h"

namespace fusednn::cuda {

// Until the launches in front have ended and what they wrote is visible. Only constants may be read before.
FUSEDNN_DEVICE void dependency_wait() {
#if defined(FUSEDNN_EMULATE)
  emulation::dependency_wait();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The launch behind may begin.
FUSEDNN_DEVICE void dependency_launch() {
#if !defined(FUSEDNN_EMULATE) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace fusednn::cuda
