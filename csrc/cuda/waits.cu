#include "cuda/waits.h"

#include <atomic>

#include "cuda/launch.h"

namespace fusednn::cuda {
namespace {

std::atomic<volatile u32*> made{nullptr};

}  // namespace

u64& wait_patience() {
  static u64 patience = 10'000'000'000;
  return patience;
}

#if defined(FUSEDNN_EMULATE)

const char* wait_fault(u32** place) {
  static u32 fault = 0;
  *place = &fault, made = &fault;
  return nullptr;
}

#else

const char* wait_fault(u32** place) {
  // Of all devices, at one address, and also while a graph is captured.
  struct Mapped {
    void* memory = nullptr;
    cudaError_t error;
    Mapped() {
      const CaptureUntouched captures;
      error = cudaHostAlloc(&memory, sizeof(u32), cudaHostAllocPortable | cudaHostAllocMapped);
      if (error != cudaSuccess) return;
      *static_cast<u32*>(memory) = 0;
      made = static_cast<u32*>(memory);
    }
  };
  static const Mapped mapped;
  *place = static_cast<u32*>(mapped.memory);
  return message_of(mapped.error);
}

#endif

bool take_wait_fault() {
  volatile u32* fault = made;
  if (fault == nullptr || *fault == 0) return false;
  *fault = 0;
  return true;
}

}  // namespace fusednn::cuda
