// Lengths of the rows of packed input, where kernels find them.
#pragma once

#include "api.h"

namespace fusednn::cuda {

// lengths [B]: steps of each row; offsets [T + 1]: rows of all steps before t. Ordered by the stream, from nothing that
// the host must keep, so that a graph can hold it.
const char* put_lengths(const RecurrentShape& s, int* lengths, int64_t* offsets);

}  // namespace fusednn::cuda
