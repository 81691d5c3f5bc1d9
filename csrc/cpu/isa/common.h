// Everything that the kernels share with other units: included before any target pragma (see all.h).
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "api.h"
#include "cpu/dropout.h"
#include "cpu/kernels.h"
#include "cpu/plan.h"
#include "cpu/team.h"
#include "cpu/timeline.h"
#include "cpu/workspace.h"
#include "elements.h"
