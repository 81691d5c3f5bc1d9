// Compiles every cell as device code: the CUDA kernels use the same headers.
#include "cells/registry.h"

template <class Cell>
__device__ void use(float* v) {
  constexpr int G = Cell::G, S = Cell::S;
  float x[G], r[G], saved[S + 1], dx[G], dr[G], c = v[0];
  for (int g = 0; g < G; ++g) x[g] = v[g], r[g] = v[G + g];
  if constexpr (Cell::kSecondGates > 0) {
    v[1] = Cell::forward_first(x, r, v[2], saved);
    v[2] = Cell::forward_second(x, r, v[2], saved);
    Cell::backward_second(saved, v[2], v[3], dx, dr);
    v[3] = Cell::backward_first(saved, v[2], v[3], v[4], dx, dr);
  } else {
    v[1] = Cell::forward(x, r, v[2], c, saved);
    v[2] = Cell::backward(saved, v[1], v[2], v[3], v[4], c, dx, dr);
  }
  for (int g = 0; g < G; ++g) v[g] += dx[g] + dr[g];
}

__global__ void all_cells(float* v) {
#define FUSEDNN_USE(C) use<fusednn::cells::C>(v);
  FUSEDNN_CELLS(FUSEDNN_USE)
}
