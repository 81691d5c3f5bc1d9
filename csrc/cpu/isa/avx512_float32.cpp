#define FUSEDNN_TYPE float
#define FUSEDNN_TABLE avx512_float32
#include "cpu/isa/avx512.h"
