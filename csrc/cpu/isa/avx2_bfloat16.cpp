#define FUSEDNN_TYPE BFloat16
#define FUSEDNN_TABLE avx2_bfloat16
#include "cpu/isa/avx2.h"
