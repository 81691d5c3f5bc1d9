// How a message of all units reaches every warp of a group that multiplies it: the one thing in which `block`,
// `cluster` and `grid` differ. docs/kernels/recurrent_cuda.md says why each wait is there.
//
// A message lies in the order of residence.h, 16 bytes a piece. Messages of a column are numbered from 0 and alternate
// between two buffers: message n + 2 can overwrite n, because nobody sends it before all have sent n + 1, and nobody
// sends that before its whole block has read n. Of a wavefront each message is kept, for the layer above to read.
#pragma once

#include "cuda/geometry.h"
#include "cuda/primitives/cluster.h"
#include "cuda/primitives/warp.h"
#include "cuda/residence.h"

namespace fusednn::cuda {

template <class Form>
class Exchange : public Seat {
 public:
  using T = typename Form::T;

  FUSEDNN_DEVICE explicit Exchange(const Geometry& z) : Seat(z), z(z), shared(shared_memory<Bytes16>()) {}

  // By all threads, before the first message. Places of k that no unit has stay zero.
  FUSEDNN_DEVICE void open() {
    if (z.rung == Rung::kGrid) return;
    for (int i = static_cast<int>(threadIdx.x); i < 2 * z.columns * z.message * 32; i += static_cast<int>(blockDim.x)) {
      shared[i] = Bytes16{{0, 0, 0, 0}};
    }
#if defined(FUSEDNN_CLUSTERS)
    if (z.rung == Rung::kCluster) {
      if (threadIdx.x == 0 && works) {
        for (int column = 0; column < z.columns; ++column) {
          for (u32 n = 0; n < 2; ++n) {
            mbarrier_init(barrier(n, column), 1);
            mbarrier_expect(barrier(n, column), bytes_of(n));
          }
        }
        mbarrier_init_fence();
      }
      return cluster_sync();
    }
#endif
    block_sync();
  }

  // By all threads: a block ends when nothing is under way to it. Whoever received all messages knows; whoever lost one
  // stays long enough for what its peers, which have all come here, have sent.
  FUSEDNN_DEVICE void close() {
#if defined(FUSEDNN_CLUSTERS)
    if (z.rung != Rung::kCluster) return;
    cluster_sync();
    const u64 begin = nanoseconds();
    while (lost_ && nanoseconds() - begin < kLinger) spin("stores under way");
#endif
  }

  // Where this warp's chunks of message n lie, once they are there.
  FUSEDNN_DEVICE const Bytes16* receive(u32 n, int column, const Round& round) {
    const int first = slice * round.run;
    if (z.rung == Rung::kGrid) return fetch(n, column, round, track);
#if defined(FUSEDNN_CLUSTERS)
    if (z.rung == Rung::kCluster) {
      await([&] { return mbarrier_try(barrier(n, column), n / 2 % 2); });
      if (threadIdx.x == 0 && !lost_) mbarrier_expect(barrier(n, column), bytes_of(n + 2));
      return inbox(n, column) + first * 32;
    }
#endif
    block_sync();
    return inbox(n, column) + first * 32;
  }

  // `grid`: the same of message n of the layer below.
  FUSEDNN_DEVICE const Bytes16* receive_below(u32 n, int column, const Round& round) {
    return fetch(n, column, round, track - 1);
  }

  // The value of this lane's i-th item, for the message that is sent next.
  FUSEDNN_DEVICE void put(int part, int i, T value) { staged<T>()[((part * items + i) * 4 + t) * 8 + g] = value; }

  // The pieces of message n that this warp has, where it finishes units.
  template <int kParts>
  FUSEDNN_DEVICE void send(u32 n, int column) {
    if (items == 0) return;
    constexpr int kRowBits = Form::kVector == 8 ? 0 : 1, kPartBits = kParts > 2 ? 2 : kParts - 1;  // of pieces
    const int pieces = kParts * items << (2 + kRowBits), bits = kPartBits + item_bits + 2 + kRowBits;
    const int lane_bits = bits < 5 ? bits : 5, team = lane >> lane_bits, teams = 32 >> lane_bits;
    warp_sync();
    for (int piece = lane & ((1 << lane_bits) - 1); piece < pieces; piece += 32) {
      const int i = piece >> (2 + kRowBits) & (items - 1), part = piece >> (2 + kRowBits + item_bits);
      const int row = (piece >> kRowBits & 3) * 2 + element(i) % 2;
      const int of_row = piece & ((1 << kRowBits) - 1);
      const int unit = unit_tile * kTileUnits + element(i) / 2 * 8 + of_row * Form::kVector;
      const int k = part * z.unit_tiles * kTileUnits + unit;
      const int place = k / kSpan<Form> * 32 + row * 4 + k % kSpan<Form> / Form::kVector;
      deliver(n, column, place, staged<Bytes16>()[piece], team, teams);
    }
    warp_sync();
    if (z.rung == Rung::kGrid && lane == 0) {
      store_release(flags(column, track) + unit_tile * finishers + slice, n + 1);
    }
  }

  // Whether a wait of this lane took longer than the patience: what it received is not what was sent.
  FUSEDNN_DEVICE bool lost() const { return lost_; }

 private:
  static constexpr u64 kLinger = 1'000'000;  // nanoseconds; a store takes about one thousand

  FUSEDNN_DEVICE Bytes16* inbox(u32 n, int column) const {
    return shared + (static_cast<int>(n % 2) * z.columns + column) * z.message * 32;
  }
  template <class U>
  FUSEDNN_DEVICE U* staged() const {
    const int number = tile * finishers + slice;
    return reinterpret_cast<U*>(shared + z.staged + number * z.staged_of_warp);
  }
  FUSEDNN_DEVICE long group_of(int sender) const { return static_cast<long>(sender) * gridDim.y + group; }
  FUSEDNN_DEVICE Bytes16* mail(u32 n, int column, int sender) const {
    return z.mail + ((group_of(sender) * z.depth + (n & z.depth_mask)) * z.columns + column) * z.message * 32;
  }
  FUSEDNN_DEVICE u32* flags(int column, int sender) const {
    return z.flags + (group_of(sender) * z.columns + column) * z.unit_tiles * finishers;
  }
  FUSEDNN_DEVICE unsigned bytes_of(u32 n) const {
    const int parts = z.round[n % static_cast<u32>(z.rounds)].parts;
    return static_cast<unsigned>(parts * z.unit_tiles * kTileUnits * kColumnRows) * sizeof(T);
  }

  // One piece to all blocks of the group; lanes of `teams` teams have it, and share the peers.
  FUSEDNN_DEVICE void deliver(u32 n, int column, int place, Bytes16 piece, int team, int teams) {
    if (z.rung == Rung::kGrid) {
      if (team == 0) store_relaxed(mail(n, column, track) + place, piece);
      return;
    }
    Bytes16* to = inbox(n, column) + place;
#if defined(FUSEDNN_CLUSTERS)
    if (z.rung == Rung::kCluster) {
      const u32 here = shared_address(to), counted = shared_address(barrier(n, column));
      for (int i = team; i < z.blocks; i += teams) {
        const unsigned peer = static_cast<unsigned>(rank + i < z.blocks ? rank + i : rank + i - z.blocks);
        store_async(remote_address(here, peer), piece, remote_address(counted, peer));
      }
      return;
    }
#endif
    if (team == 0) *to = piece;
  }

  // `grid`: waits for the warps of track `sender` that finish this warp's chunks, and copies the chunks.
  FUSEDNN_DEVICE const Bytes16* fetch(u32 n, int column, const Round& round, int sender) {
    const int first = slice * round.run;
    const int last = first + round.run < round.chunks ? first + round.run : round.chunks;
    constexpr int kTilesOfChunk = kSpan<Form> / kTileUnits;
    const int begin = first * kTilesOfChunk;
    const int end =
        last * kTilesOfChunk < round.parts * z.unit_tiles ? last * kTilesOfChunk : round.parts * z.unit_tiles;
    const u32* sent = flags(column, sender);
    await([&] {
      for (int i = lane; i < (end - begin) * finishers; i += 32) {
        const int of = (begin + (i >> (2 - item_bits))) % z.unit_tiles;
        if (load_acquire(sent + of * finishers + (i & (finishers - 1))) <= n) return false;
      }
      return true;
    });
    Bytes16* to = shared + warp * z.fetched * 32;
    const Bytes16* from = mail(n, column, sender) + first * 32;
    for (int i = lane; i < (last - first) * 32; i += 32) copy_async<16>(to + i, from + i);
    copy_commit();
    copy_wait<0>();
    warp_sync();
    return to;
  }

  // Until arrived() or the end of patience, which the host learns of.
  template <class Arrived>
  FUSEDNN_DEVICE void await(Arrived arrived) {
    u64 begin = 0;
    while (!lost_ && !arrived()) {
      spin("a message");
      const u64 now = nanoseconds();
      if (begin == 0) begin = now;
      lost_ = now - begin > z.patience;
      if (lost_) store_to_host(z.fault, 1);
    }
    warp_sync();
  }

#if defined(FUSEDNN_CLUSTERS)
  FUSEDNN_DEVICE u64* barrier(u32 n, int column) const {
    return reinterpret_cast<u64*>(shared + z.barriers) + static_cast<int>(n % 2) * z.columns + column;
  }
#endif

  bool lost_ = false;

 protected:
  const Geometry& z;
  Bytes16* const shared;
};

}  // namespace fusednn::cuda
