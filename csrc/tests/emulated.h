// What tests of the emulation alone share.
#pragma once

#include "cuda/geometry.h"
#include "emulation/machine.h"

namespace fusednn::testing {

// Limits of a smaller GPU, while it lives.
struct SmallGpu {
  cuda::Limits before = cuda::limits();
  SmallGpu(int multiprocessors, int cluster) {
    cuda::limits().multiprocessors = multiprocessors, cuda::limits().cluster = cluster;
  }
  ~SmallGpu() { cuda::limits() = before; }
};

template <class Visit>
void for_seeds(uint64_t count, Visit visit) {
  const uint64_t before = emulation::seed();
  for (uint64_t seed = before; seed < before + count; ++seed) {
    emulation::set_seed(seed);
    visit(seed);
  }
  emulation::set_seed(before);
}

}  // namespace fusednn::testing
