#define FUSEDNN_TYPE BFloat16
#define FUSEDNN_TABLE baseline_bfloat16
#include "cpu/isa/baseline.h"
