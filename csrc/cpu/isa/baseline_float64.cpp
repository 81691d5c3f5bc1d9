#define FUSEDNN_TYPE double
#define FUSEDNN_TABLE baseline_float64
#include "cpu/isa/baseline.h"
