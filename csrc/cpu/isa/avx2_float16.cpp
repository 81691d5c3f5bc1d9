#define FUSEDNN_TYPE Float16
#define FUSEDNN_TABLE avx2_float16
#include "cpu/isa/avx2.h"
