// What every machine of the build's architecture has: SSE2 on x86-64, NEON on arm64.
#include "cpu/isa/common.h"

#define FUSEDNN_ISA baseline
#define FUSEDNN_VECTOR_BYTES 16
#if defined(__aarch64__)
#define FUSEDNN_ACCUMULATORS 24
#else
#define FUSEDNN_ACCUMULATORS 12
#endif
#include "cpu/isa/all.h"
