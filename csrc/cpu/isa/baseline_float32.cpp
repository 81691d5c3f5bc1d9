#define FUSEDNN_TYPE float
#define FUSEDNN_TABLE baseline_float32
#include "cpu/isa/baseline.h"
