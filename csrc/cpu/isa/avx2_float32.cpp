#define FUSEDNN_TYPE float
#define FUSEDNN_TABLE avx2_float32
#include "cpu/isa/avx2.h"
