#define FUSEDNN_TYPE double
#define FUSEDNN_TABLE avx2_float64
#include "cpu/isa/avx2.h"
