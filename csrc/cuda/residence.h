// Weights that stay: a warp's part of a matrix is loaded once and then multiplied by new states at every step.
//
// The tiles, the places of sums and the order of k inside a chunk are those of product.h. A chunk is what four lanes
// read of a row, 64 bytes; the states lie in shared memory in the order in which lanes read them: chunk by chunk, and
// in a chunk the 16 bytes of lane (g, t) at 4 g + t, which are row g of the batch. So no two lanes meet in a bank. Of a
// warp's run of chunks the first ones stay in registers, the rest in shared memory.
#pragma once

#include <type_traits>

#include "cuda/primitives/warp.h"
#include "cuda/product.h"

namespace fusednn::cuda {

// How a form multiplies what stays: both factors are rounded beforehand, so that the loop over k only multiplies.
template <class Form>
struct Stays {
  using T = typename Form::T;
  static FUSEDNN_DEVICE Bytes16 weights(Bytes16 w) { return w; }
  static FUSEDNN_DEVICE T state(float x) { return narrow<T>(x); }
  static FUSEDNN_DEVICE T sent(T x) { return x; }  // the same of a value of T
  static FUSEDNN_DEVICE void multiply(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) { mma(T{}, d, a, b0, b1); }
};
template <>
struct Stays<Tf32> {
  static FUSEDNN_DEVICE Bytes16 weights(Bytes16 w) {
    for (u32& x : w.word) x = to_tf32(bits_as<float>(x));
    return w;
  }
  static FUSEDNN_DEVICE float state(float x) { return bits_as<float>(to_tf32(x)); }
  static FUSEDNN_DEVICE float sent(float x) { return state(x); }
  static FUSEDNN_DEVICE void multiply(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) { mma_tf32(d, a, b0, b1); }
};
template <>
struct Stays<Float32> {
  static FUSEDNN_DEVICE Bytes16 weights(Bytes16 w) { return w; }
  static FUSEDNN_DEVICE float state(float x) { return x; }
  static FUSEDNN_DEVICE float sent(float x) { return x; }
};

template <class Form>
constexpr bool kPlain = std::is_same_v<Form, Float32>;

template <class Form>
constexpr int kSpan = 4 * Form::kVector;  // k of a chunk

// The sums of a warp while it walks through its chunks. Tensor cores: where tiles are few, sums for several places of k
// grow side by side, because a product waits for the one before it on the same sum.
template <class Form, int kTiles>
struct Sums {
  static constexpr int kChains = kTiles == 1 ? 4 : kTiles == 2 ? 2 : 1;

  using State = Bytes16;  // what a lane reads of a chunk

  float d[kChains][kTiles][4] = {};

  static FUSEDNN_DEVICE State read(const Bytes16* chunk, int lane) { return chunk[lane]; }

  // kTurn: parity of the chunk.
  template <int kTurn>
  FUSEDNN_DEVICE void add(const Bytes16 (&w)[kTiles][2], const State& h) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int q = 0; q < kTiles; ++q) {
        const u32 a[4] = {w[q][0].word[2 * half], w[q][1].word[2 * half], w[q][0].word[2 * half + 1],
                          w[q][1].word[2 * half + 1]};
        Stays<Form>::multiply(d[(2 * kTurn + half) % kChains][q], a, h.word[2 * half], h.word[2 * half + 1]);
      }
    }
  }

  FUSEDNN_DEVICE void finish(float (&sum)[kTiles][4], int) const {
#pragma unroll
    for (int q = 0; q < kTiles; ++q) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sum[q][i] = d[0][q][i];
#pragma unroll
        for (int chain = 1; chain < kChains; ++chain) sum[q][i] += d[chain][q][i];
      }
    }
  }
};

// Multiply-adds: a lane has rows g and g + 8 of the weights at its own k, and sums for all 8 rows of the batch. The
// four lanes of a group add up at the end.
template <int kTiles>
struct Sums<Float32, kTiles> {
  using State = const Bytes16*;

  float d[kTiles][2][8] = {};

  static FUSEDNN_DEVICE State read(const Bytes16* chunk, int lane) { return chunk + lane % 4; }

  template <int>
  FUSEDNN_DEVICE void add(const Bytes16 (&w)[kTiles][2], State states) {
#pragma unroll
    for (int row = 0; row < 8; ++row) {
      const Bytes16 h = states[row * 4];
#pragma unroll
      for (int q = 0; q < kTiles; ++q) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
#pragma unroll
          for (int k = 0; k < 4; ++k) d[q][i][row] += bits_as<float>(w[q][i].word[k]) * bits_as<float>(h.word[k]);
        }
      }
    }
  }

  FUSEDNN_DEVICE void finish(float (&sum)[kTiles][4], int lane) const {
    const bool high = lane % 4 >= 2, odd = lane % 2 == 1;
#pragma unroll
    for (int q = 0; q < kTiles; ++q) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float half[4];  // rows 4 (t / 2) ... of the batch, of two lanes
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          const float *low = d[q][i], *up = d[q][i] + 4;
          half[r] = (high ? up[r] : low[r]) + from(lane ^ 2, high ? low[r] : up[r]);
        }
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          sum[q][2 * i + r] = (odd ? half[2 + r] : half[r]) + from(lane ^ 1, odd ? half[r] : half[2 + r]);
        }
      }
    }
  }

 private:
  static FUSEDNN_DEVICE float from(int lane, float x) {
    return bits_as<float>(shuffle(bits_as<u32>(x), static_cast<unsigned>(lane)));
  }
};

// Of a warp's run: its first chunk, how many chunks it has, and where the pieces of those beyond the registers lie.
struct Run {
  int first, chunks;
  Bytes16* rest;
};

// A warp's chunks of kTiles tiles; those beyond kKept, which may be 0, take kChunkPieces of shared memory each.
template <class Form, int kTiles, int kKept>
class Residence {
 public:
  static constexpr int kInRegisters = kKept, kChunkPieces = kTiles * 64;

  // fetch(tile, row, k): 16 bytes of row `row`, 0..15, of a tile, from k on.
  template <class Fetch>
  FUSEDNN_DEVICE void load(const Run& run, int lane, Fetch fetch) {
    const int chunks = run.chunks;
    constexpr int kBatch = kTiles == 1 ? 2 : 1;  // chunks on their way together
    for (int c = 0; c < chunks || c < kKept; c += kBatch) {
      Bytes16 got[kBatch][kTiles][2];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        const int k = (run.first + c + b) * kSpan<Form> + lane % 4 * Form::kVector;
#pragma unroll
        for (int q = 0; q < kTiles; ++q) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const bool mine = c + b < chunks;
            got[b][q][i] = mine ? Stays<Form>::weights(fetch(q, lane / 4 + 8 * i, k)) : Bytes16{{0, 0, 0, 0}};
          }
        }
      }
#pragma unroll
      for (int kept = 0; kept < kKept; ++kept) {
        if (c != kept / kBatch * kBatch) continue;
#pragma unroll
        for (int q = 0; q < kTiles; ++q) {
#pragma unroll
          for (int i = 0; i < 2; ++i) kept_[kept][q][i] = got[kept % kBatch][q][i];
        }
      }
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        if (c + b < kKept || c + b >= chunks) continue;
#pragma unroll
        for (int q = 0; q < kTiles; ++q) {
#pragma unroll
          for (int i = 0; i < 2; ++i) run.rest[place(c + b, q, i) + lane] = got[b][q][i];
        }
      }
    }
  }

  // states: those of the warp's first chunk. kStraight: chunks that fill the registers have code without branches.
  template <bool kStraight>
  FUSEDNN_DEVICE void multiply(const Run& run, int lane, const Bytes16* states, float (&sum)[kTiles][4]) const {
    Sums<Form, kTiles> sums;
    if constexpr (kKept > 0) {
      if (kStraight && run.chunks >= kKept) {
        multiply_kept<0, true>(run, lane, sums, states, sums.read(states, lane));
      } else if (run.chunks > 0) {
        multiply_kept<0, false>(run, lane, sums, states, sums.read(states, lane));
      }
    }
    for (int c = kKept; c < run.chunks; c += 2) {
      add_rest<kKept % 2>(run, lane, sums, states, c);
      if (c + 1 < run.chunks) add_rest<1 - kKept % 2>(run, lane, sums, states, c + 1);
    }
    sums.finish(sum, lane);
  }

 private:
  using State = typename Sums<Form, kTiles>::State;

  // From chunk kChunk on, which exists; the state of the next one is read before this one is multiplied. kAll: all kept
  // ones exist.
  template <int kChunk, bool kAll>
  FUSEDNN_DEVICE void multiply_kept(const Run& run, int lane, Sums<Form, kTiles>& sums, const Bytes16* states,
                                    State now) const {
    const bool more = kChunk + 1 < kKept && (kAll || kChunk + 1 < run.chunks);
    State next = now;
    if (more) next = sums.read(states + (kChunk + 1) * 32, lane);
    sums.template add<kChunk % 2>(kept_[kChunk], now);
    if constexpr (kChunk + 1 < kKept) {
      if (more) multiply_kept<kChunk + 1, kAll>(run, lane, sums, states, next);
    }
  }

  template <int kTurn>
  FUSEDNN_DEVICE void add_rest(const Run& run, int lane, Sums<Form, kTiles>& sums, const Bytes16* states, int c) const {
    Bytes16 w[kTiles][2];
#pragma unroll
    for (int q = 0; q < kTiles; ++q) {
#pragma unroll
      for (int i = 0; i < 2; ++i) w[q][i] = run.rest[place(c, q, i) + lane];
    }
    sums.template add<kTurn>(w, sums.read(states + c * 32, lane));
  }

  static FUSEDNN_DEVICE int place(int c, int q, int i) { return (((c - kKept) * kTiles + q) * 2 + i) * 32; }

  Bytes16 kept_[kKept > 0 ? kKept : 1][kTiles][2];
};

// No product.
template <class Form, int kKept>
class Residence<Form, 0, kKept> {};

}  // namespace fusednn::cuda
