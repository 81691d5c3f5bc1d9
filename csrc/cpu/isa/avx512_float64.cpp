#define FUSEDNN_TYPE double
#define FUSEDNN_TABLE avx512_float64
#include "cpu/isa/avx512.h"
