#define FUSEDNN_TYPE Float16
#define FUSEDNN_TABLE baseline_float16
#include "cpu/isa/baseline.h"
