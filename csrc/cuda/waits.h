// The bound on waits inside persistent kernels, and where they tell the host that one expired.
#pragma once

#include "cuda/primitives/device.h"

namespace fusednn::cuda {

// Nanoseconds; in the emulation turns of its threads. Tests may set it.
u64& wait_patience();

// Of the host, written by kernels; made by the first call. Null, or a message why there is none.
const char* wait_fault(u32** place);

// Whether a wait expired since the last question.
bool take_wait_fault();

}  // namespace fusednn::cuda
