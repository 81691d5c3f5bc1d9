// What forward and backward of a persistent kernel share: rows and their states, and the rounds of a step.
#pragma once

#include "cuda/approximate.h"
#include "cuda/exchange.h"
#include "cuda/side_by_side.h"
#include "cuda/zoneout.h"

namespace fusednn::cuda {

// For weights; more of them spill.
constexpr int forward_registers(int products) {
  return products == 1 ? 144 : 136;
}
constexpr int backward_registers(int products) {
  return products == 1 ? 136 : 104;
}

// Chunks of a product that stay in a lane's registers, of which a chunk takes 8 for each of `tiles` row tiles, if
// `products` products and one's sums share `registers`.
template <class Form>
constexpr int kept_chunks(int registers, int tiles, int products) {
  if (tiles == 0) return 1;
  const int sums = 16 * (kPlain<Form> ? tiles : 1), chunks = (registers - sums) / products / (8 * tiles);
  return chunks > 1 ? chunks : 1;
}

// One step of a column: its time, and the rows of all steps before it in a tensor.
struct Step {
  int column, time, rows;
};

// What a layer asks for beside its cell, uniform over a launch.
struct Asked {
  bool any;          // or states that forward is to keep
  const void* mask;  // [D, B, H] or null
  Zoneout zoneout;   // of the first direction at time 0
};

template <class Form>
class Walk : public Exchange<Form> {
 public:
  using T = typename Form::T;
  using Base = Exchange<Form>;
  using Base::Base, Base::z, Base::shared;
  using Base::track, Base::element, Base::group, Base::items, Base::lane, Base::slice, Base::tile, Base::warp,
      Base::works;

  // ------- rows

  FUSEDNN_DEVICE int first_row(int column) const { return (group * z.columns + column) * kColumnRows; }
  template <class Launch>
  FUSEDNN_DEVICE int length(int row) const {
    return Launch::kPadded || z.lengths == nullptr ? z.steps : z.lengths[row];
  }
  // Of a column's first row, which is its longest; 0 beyond the batch.
  template <class Launch>
  FUSEDNN_DEVICE int steps_of(int column) const {
    const int row = first_row(column);
    return row < z.batch ? length<Launch>(row) : 0;
  }

  // The i-th item in a column: a unit of a row. Those beyond the layer or the batch have length -1.
  struct Item {
    int unit, row, length;
  };
  template <class Launch = AnyLaunch>
  FUSEDNN_DEVICE Item item(int column, int i) const {
    Item it{Base::unit(i), first_row(column) + Base::row(i), -1};
    if (it.unit < z.hidden && it.row < z.batch) it.length = length<Launch>(it.row);
    return it;
  }
  // All rows of a tensor can be counted with an int (geometry.cu).
  template <class Launch>
  FUSEDNN_DEVICE int rows_before(int time) const {
    return Launch::kPadded || z.offsets == nullptr ? time * z.batch : static_cast<int>(z.offsets[time]);
  }
  // Where it lies in a tensor [N, D, values, H], of layers [L, N, values, H], behind the rows of other steps, and in
  // one of states.
  FUSEDNN_DEVICE long place(const Item& it, int rows, int values) const {
    const int line = (rows + it.row) * z.tracks_of_row + track * z.track_rows;
    return static_cast<long>(line) * (values * z.hidden) + it.unit;
  }
  FUSEDNN_DEVICE long state_place(const Item& it) const {
    return (static_cast<long>(track) * z.batch + it.row) * z.hidden + it.unit;
  }

  // A value of an item that stays from step to step.
  FUSEDNN_DEVICE float& kept(int which, int column, int i) const {
    float* values = reinterpret_cast<float*>(shared + z.kept) + tile * 128 + element(i) * 32 + lane;
    return values[(which * z.columns + column) * z.tiles * 128];
  }

  // ------- options

  // What multiplies an item of a vector that W_hh takes.
  FUSEDNN_DEVICE float factor(const Asked& asked, const Item& it) const {
    return asked.mask == nullptr || it.length < 0 ? 1.f : widen(static_cast<const T*>(asked.mask)[state_place(it)]);
  }

  // How much of its old state an item keeps.
  FUSEDNN_DEVICE float share(const Asked& asked, cells::ZoneoutState which, const Item& it, int time) const {
    Zoneout at = asked.zoneout;
    if (at.seed != nullptr) at.seed += track / z.heads;
    at.t += time;
    return at.share<float>(which, track % z.heads, it.row, it.unit);
  }

  // ------- rounds

  // The part of a product that this warp owns; fetch as in residence.h.
  template <class Weights, class Fetch>
  FUSEDNN_DEVICE void load(Weights& weights, int round, Fetch fetch) const {
    weights.load(run_of<Weights>(round), lane, fetch);
  }
  template <class Weights>
  FUSEDNN_DEVICE Run run_of(int round) const {
    const Round& r = z.round[round];
    const int first = slice * r.run, left = r.chunks - first, chunks = left < r.run ? left : r.run;
    const int rest = (r.run > Weights::kInRegisters ? r.run - Weights::kInRegisters : 0) * Weights::kChunkPieces;
    return {first, works && chunks > 0 ? chunks : 0, shared + z.rest[round] + warp * rest};
  }

  // The product with message n. Its sums lie in shared memory afterwards, where gather finds them. Sums of two rounds
  // alternate: a warp may be here again while another one still reads.
  template <class Launch, int kTiles, int kKept>
  FUSEDNN_DEVICE void multiply(const Residence<Form, kTiles, kKept>& weights, u32 n,
                               const typename Base::Channel& channel, int round) {
    turn_ ^= 1;
    if (works) {
      float sum[kTiles][4];
      const Bytes16* message = Base::template receive<Launch>(n, channel, z.round[round]);
      weights.template multiply<Launch::kBare>(run_of<Residence<Form, kTiles, kKept>>(round), lane, message, sum);
      Base::template await_next<Launch>(n, channel, z.round[round]);
      leave(sum, sums(turn_));
    }
    block_sync();
  }

  // That with message n of the layer below, in front of the multiply of the same step, whose barrier serves both. Its
  // sums lie behind the others, by z.sums_below.
  template <int kTiles, int kKept>
  FUSEDNN_DEVICE void multiply_below(const Residence<Form, kTiles, kKept>& weights, u32 n, int column) {
    if (!works) return;
    float sum[kTiles][4];
    const Bytes16* message = Base::receive_below(n, column, z.round[1]);
    weights.template multiply<false>(run_of<Residence<Form, kTiles, kKept>>(1), lane, message, sum);
    leave(sum, sums(turn_ ^ 1) + z.sums_below);
  }

  // Of all warps of the tile, in their order: each row tile's sum for the i-th item.
  template <class Launch, int kTiles>
  FUSEDNN_DEVICE void gather(int i, float (&sum)[kTiles], int behind = 0) const {
    const float* first = sums(turn_) + behind + ((warp - slice) * 4 + element(i)) * kTiles * 32;
    if constexpr (Launch::kBare) return add_up<Launch::kSlices>(first, sum);
    if (z.slices == 8) return add_up<8>(first, sum);  // all their loads together
    if (z.slices == 4) return add_up<4>(first, sum);
    if (z.slices == 2) return add_up<2>(first, sum);
    add_up<1>(first, sum);
  }

  // By a warp that finishes units: body(inputs, i) gives the output of each item of this lane. In a bare launch all are
  // returned, for write_last, since the message that needs them comes first; else write(output, i) takes each at once,
  // while the inputs of the next one, load(item), are on their way. `now`: the inputs of the first ones.
  template <class Output, int kItems>
  struct Outputs {
    Output item[kItems];
  };
  template <class Output>
  struct Outputs<Output, 0> {};
  template <class Launch, class Inputs, class Load, class Body, class Write>
  FUSEDNN_DEVICE auto finish(Inputs now, Load load, Body body, Write write) const {
    using Output = decltype(body(now.item[0], 0));
    if constexpr (Launch::kBare) {
      Outputs<Output, Launch::kItems> out;
#pragma unroll
      for (int i = 0; i < Launch::kItems; ++i) out.item[i] = body(now.item[i], i);
      return out;
    } else {
      for (int i = 0; i < items; ++i) {
        Inputs next = now;
        if (i + 1 < items) next = load(i + 1);
        write(body(now.item[0], i), i);
        now = next;
      }
      return Outputs<Output, 0>{};
    }
  }
  template <class Output, int kItems, class Write>
  FUSEDNN_DEVICE void write_last(const Outputs<Output, kItems>& out, Write write) const {
    if constexpr (kItems > 0) {
#pragma unroll
      for (int i = 0; i < kItems; ++i) write(out.item[i], i);
    }
  }

  // walk(launch), once: of what is known of the launch beforehand. Multiply-adds leave no registers for that.
  template <class Steps>
  FUSEDNN_DEVICE void choose(const Asked& asked, Steps walk) const {
    if constexpr (!kPlain<Form>) {
      const bool bare = z.layers == 1 && !asked.any && z.columns == 1;
      if (bare && z.lengths == nullptr && takes_bare<true>(walk)) return;
      if (bare && z.lengths != nullptr && takes_bare<false>(walk)) return;
    }
    walk(AnyLaunch{});
  }

 private:
  FUSEDNN_DEVICE float* sums(int turn) const {
    return reinterpret_cast<float*>(shared + z.sums + turn * z.sums_of_turn);
  }

  template <int kSlices, int kTiles>
  FUSEDNN_DEVICE void add_up(const float* first, float (&sum)[kTiles]) const {
    float part[kSlices][kTiles];
#pragma unroll
    for (int s = 0; s < kSlices; ++s) load_values<kTiles, 32>(first + s * kTiles * 128, lane, part[s]);
#pragma unroll
    for (int q = 0; q < kTiles; ++q) {
      sum[q] = part[0][q];
#pragma unroll
      for (int s = 1; s < kSlices; ++s) sum[q] += part[s][q];
    }
  }

  // Whether a loop is compiled for the rung and slices, which then has walked.
  template <bool kPadded, class Steps>
  FUSEDNN_DEVICE bool takes_bare(Steps walk) const {
    if (z.rung == Rung::kCluster && z.slices == 4) return walk(BareLaunch<Rung::kCluster, 4, kPadded>{}), true;
    if (z.rung == Rung::kCluster && z.slices == 2) return walk(BareLaunch<Rung::kCluster, 2, kPadded>{}), true;
    if (z.rung == Rung::kGrid && z.slices == 8) return walk(BareLaunch<Rung::kGrid, 8, kPadded>{}), true;
    if (z.rung == Rung::kBlock && z.slices == 2) return walk(BareLaunch<Rung::kBlock, 2, kPadded>{}), true;
    return false;
  }

  // This warp's part of a product, among the sums.
  template <int kTiles>
  FUSEDNN_DEVICE void leave(const float (&sum)[kTiles][4], float* sums) const {
    const bool lost = ballot(Base::lost()) != 0;
    float* mine = sums + warp * kTiles * 128;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      float of[kTiles];
#pragma unroll
      for (int q = 0; q < kTiles; ++q) of[q] = sum[q][e];
      if (lost) of[0] = bits_as<float>(0x7fc00000u);  // from one gate NaN reaches h and c of every cell
      store_values<kTiles, 32>(mine + e * kTiles * 32, lane, of);
    }
  }

  int turn_ = 0;
};

}  // namespace fusednn::cuda
