// All cells. A new one: its header, and its name below. CPU, CUDA, bindings and C++ tests are generated from this list.
#pragma once

#include "cells/gru.h"
#include "cells/gru_reset_before.h"
#include "cells/lstm.h"
#include "cells/rnn_relu.h"
#include "cells/rnn_tanh.h"

#define FUSEDNN_CELLS(X) \
  X(RnnTanh)             \
  X(RnnRelu)             \
  X(Lstm)                \
  X(Gru)                 \
  X(GruResetBefore)
