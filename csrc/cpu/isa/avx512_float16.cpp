#define FUSEDNN_TYPE Float16
#define FUSEDNN_TABLE avx512_float16
#include "cpu/isa/avx512.h"
