// The recurrent product of a warp: sums over k of rows of a weight matrix times rows of states.
//
// A warp computes, for each of kTiles row tiles, 16 rows of weights by 8 * kColumns rows of the batch. The sums lie as
// in mma.h: lane (g, t) holds rows g and g + 8, columns 2t and 2t + 1 of each tile of 8. Every lane reads 16 bytes of a
// row at a time. The order of k inside a chunk is permuted the same way on both sides, so that those 16 bytes are what
// a lane feeds to two tensor-core instructions: no shuffle, no shared memory, no packing of weights.
#pragma once

#include "cuda/primitives/memory.h"
#include "cuda/primitives/mma.h"

namespace fusednn::cuda {

// ------- number forms: the dtype of the tensors, and what multiplies

// Plain multiply-adds: a lane reads the same k as all others, and two rows of states a tile.
template <class Number>
struct Plain {
  using T = Number;
  using A = Number;
  static constexpr int kVector = 16 / sizeof(T), kChunk = kVector, kLaneStep = 0, kStateRows = 2;

  static FUSEDNN_DEVICE int state_row(int lane, int which) { return lane % 4 * 2 + which; }

  static FUSEDNN_DEVICE void multiply(A (&d)[4], const Bytes16 (&w)[2], const Bytes16 (&h)[2]) {
    struct Numbers {
      T v[kVector];
    };
    const Numbers a0 = bits_as<Numbers>(w[0]), a1 = bits_as<Numbers>(w[1]);
    const Numbers b0 = bits_as<Numbers>(h[0]), b1 = bits_as<Numbers>(h[1]);
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      d[0] += a0.v[i] * b0.v[i], d[1] += a0.v[i] * b1.v[i];
      d[2] += a1.v[i] * b0.v[i], d[3] += a1.v[i] * b1.v[i];
    }
  }
};

// Tensor cores: the four lanes of a group share a chunk.
template <class Number, class Multiply>
struct TensorCore {
  using T = Number;
  using A = float;
  static constexpr int kVector = 16 / sizeof(T), kChunk = 4 * kVector, kLaneStep = kVector, kStateRows = 1;

  static FUSEDNN_DEVICE int state_row(int lane, int) { return lane / 4; }

  static FUSEDNN_DEVICE void multiply(A (&d)[4], const Bytes16 (&w)[2], const Bytes16 (&h)[1]) {
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      const u32 a[4] = {w[0].word[i], w[1].word[i], w[0].word[i + 1], w[1].word[i + 1]};
      Multiply::run(d, a, h[0].word[i], h[0].word[i + 1]);
    }
  }
};

template <class T>
struct Mma {
  static FUSEDNN_DEVICE void run(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) { mma(T{}, d, a, b0, b1); }
};
struct MmaTf32 {
  static FUSEDNN_DEVICE u32 rounded(u32 bits) { return to_tf32(bits_as<float>(bits)); }
  static FUSEDNN_DEVICE void run(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    const u32 r[4] = {rounded(a[0]), rounded(a[1]), rounded(a[2]), rounded(a[3])};
    mma_tf32(d, r, rounded(b0), rounded(b1));
  }
};

struct Float64 : Plain<double> {};
struct Float32 : Plain<float> {};
struct Tf32 : TensorCore<float, MmaTf32> {};
struct Bf16 : TensorCore<BFloat16, Mma<BFloat16>> {};
struct Fp16 : TensorCore<Float16, Mma<Float16>> {};

// ------- 16 bytes of a row

// Elements [k, k + 16 bytes) of a row of `length`; what lies beyond, or the whole of a null row, is zero.
template <class T, bool kConstant>
FUSEDNN_DEVICE Bytes16 piece(const T* row, int k, int length, bool aligned) {
  constexpr int kVector = 16 / sizeof(T);
  if (row == nullptr || k >= length) return Bytes16{{0, 0, 0, 0}};
  if (aligned && k + kVector <= length) return kConstant ? load_constant(row + k) : load_global(row + k);
  struct Numbers {
    T v[kVector];
  } numbers;
#pragma unroll
  for (int i = 0; i < kVector; ++i) numbers.v[i] = k + i < length ? row[k + i] : narrow<T>(AccOf<T>(0));
  return bits_as<Bytes16>(numbers);
}

template <class T>
FUSEDNN_DEVICE bool aligned_rows(const T* first, long row) {
  return reinterpret_cast<uintptr_t>(first) % 16 == 0 && row * static_cast<long>(sizeof(T)) % 16 == 0;
}

// ------- the product

// Rows of weights: tile q has rows q * tile_rows + first_row + 0..15, of which those below `rows` of the tile exist.
template <class T>
struct Weights {
  const T* data;
  int length;     // k
  int tile_rows;  // distance between tiles in rows
  int first_row, rows;
};

template <class T>
struct States {
  const T* data;  // row 0
  long row;       // distance between rows
  int first_row, rows;
};

template <class Form, int kTiles, int kColumns>
struct Product {
  using T = typename Form::T;
  using A = typename Form::A;
  static constexpr int kB = Form::kStateRows;

  A sum[kTiles][kColumns][4];

  // This warp's part of k: chunks `warp`, `warp + warps` ... ready() is called once, after the first weights are on
  // their way and before a state is read.
  template <class Ready>
  FUSEDNN_DEVICE void run(const Weights<T>& w, const States<T>& h, int warp, int warps, int lane, Ready ready) {
    const bool w_aligned = aligned_rows(w.data, w.length), h_aligned = aligned_rows(h.data, h.row);
    const T* w_row[kTiles][2];
    const T* h_row[kColumns][kB];
#pragma unroll
    for (int q = 0; q < kTiles; ++q) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int r = w.first_row + lane / 4 + 8 * i;
        w_row[q][i] = r < w.rows ? w.data + (static_cast<long>(q) * w.tile_rows + r) * w.length : nullptr;
      }
    }
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
#pragma unroll
      for (int i = 0; i < kB; ++i) {
        const int r = h.first_row + 8 * n + Form::state_row(lane, i);
        h_row[n][i] = r < h.rows ? h.data + r * h.row : nullptr;
      }
#pragma unroll
      for (int q = 0; q < kTiles; ++q) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[q][n][i] = 0;
      }
    }
    const int mine = lane % 4 * Form::kLaneStep, step = warps * Form::kChunk;
    Bytes16 now[kTiles][2];
    int k = warp * Form::kChunk;
    load(now, w_row, k + mine, w.length, w_aligned);
    ready();
    for (; k < w.length; k += step) {
      Bytes16 next[kTiles][2], state[kColumns][kB];
#pragma unroll
      for (int n = 0; n < kColumns; ++n) {
#pragma unroll
        for (int i = 0; i < kB; ++i) state[n][i] = piece<T, false>(h_row[n][i], k + mine, w.length, h_aligned);
      }
      load(next, w_row, k + step + mine, w.length, w_aligned);
#pragma unroll
      for (int n = 0; n < kColumns; ++n) {
#pragma unroll
        for (int q = 0; q < kTiles; ++q) Form::multiply(sum[q][n], now[q], state[n]);
      }
#pragma unroll
      for (int q = 0; q < kTiles; ++q) {
#pragma unroll
        for (int i = 0; i < 2; ++i) now[q][i] = next[q][i];
      }
    }
  }

 private:
  static FUSEDNN_DEVICE void load(Bytes16 (&to)[kTiles][2], const T* const (&row)[kTiles][2], int k, int length,
                                  bool aligned) {
#pragma unroll
    for (int q = 0; q < kTiles; ++q) {
#pragma unroll
      for (int i = 0; i < 2; ++i) to[q][i] = piece<T, true>(row[q][i], k, length, aligned);
    }
  }
};

}  // namespace fusednn::cuda
