#define FUSEDNN_TYPE BFloat16
#define FUSEDNN_TABLE avx512_bfloat16
#include "cpu/isa/avx512.h"
