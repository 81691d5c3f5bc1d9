// How a message of all units reaches every warp of a group that multiplies it: the one thing in which `block`,
// `cluster` and `grid` differ. docs/kernels/recurrent_cuda.md says why each wait is there.
//
// A message lies in the order of residence.h, 16 bytes a piece. Messages of a column are numbered from 0 and alternate
// between two buffers: message n + 2 can overwrite n, because nobody sends it before all have sent n + 1, and nobody
// sends that before its whole block has read n. Those of `grid` take turns in a ring (ring.h), or are all kept: where
// they are few, and of a wavefront, for the layer above to read.
#pragma once

#include "cuda/geometry.h"
#include "cuda/primitives/cluster.h"
#include "cuda/primitives/warp.h"
#include "cuda/residence.h"
#include "cuda/ring.h"

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
            mbarrier_expect(barrier(n, column), z.round[n % static_cast<u32>(z.rounds)].bytes);
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

  // Messages of a column, as their sender's `grid` has them.
  struct Channel {
    int sender, column;  // a track, and a column of its group
    Bytes16* mail;
  };
  FUSEDNN_DEVICE Channel channel(int column) const { return channel_of(track, column); }

  // Of each message with as many parts what this lane delivers; the same from step to step.
  struct Route {
    int piece;  // of what its warp has staged, the lane's first one
    int place;  // of that in the message; negative: the piece holds no values
    int team;   // lanes with the same piece are in different teams, which share the peers
    int teams;
  };
  template <int kParts, class Launch = AnyLaunch>
  FUSEDNN_DEVICE Route route() const {
    const int bits = piece_bits<kParts, Launch>(), lane_bits = bits < 5 ? bits : 5,
              piece = lane & ((1 << lane_bits) - 1);
    return {piece, place_of<kParts>(piece), lane >> lane_bits, 32 >> lane_bits};
  }

  // Where this warp's chunks of message n lie, once they are there.
  template <class Launch = AnyLaunch>
  FUSEDNN_DEVICE const Bytes16* receive(u32 n, const Channel& channel, const Round& round) {
    if (on<Launch>(Rung::kGrid)) return fetch(n, channel, round);
#if defined(FUSEDNN_CLUSTERS)
    if (on<Launch>(Rung::kCluster)) {
      await([&] { return lost_ || mbarrier_try(barrier(n, channel.column), n / 2 % 2); });
    } else
#endif
    {
      block_sync();
    }
    return inbox(n, channel.column) + slice * round.run * 32;
  }

  // Behind receive, and before the block barrier in front of the next send: ready for message n + 2, which is of the
  // same round.
  template <class Launch = AnyLaunch>
  FUSEDNN_DEVICE void await_next(u32 n, const Channel& channel, const Round& round) const {
#if defined(FUSEDNN_CLUSTERS)
    if (on<Launch>(Rung::kCluster) && (warp | lane) == 0 && !lost_) {
      mbarrier_expect(barrier(n, channel.column), round.bytes);
    }
#endif
  }

  // `grid`: the same of message n of the layer below.
  FUSEDNN_DEVICE const Bytes16* receive_below(u32 n, int column, const Round& round) {
    return fetch(n, channel_of(track - 1, column), round);
  }

  // The value of this lane's i-th item, for the message that is sent next.
  template <int kParts>
  FUSEDNN_DEVICE void put(int part, int i, T value) {
    staged<T>()[(i << kPartBits<kParts> | part) * 32 + t * 8 + g] = value;
  }

  // The pieces of message n that this warp has, where it finishes units.
  template <int kParts, class Launch = AnyLaunch>
  FUSEDNN_DEVICE void send(u32 n, const Channel& channel, const Route& route) {
    if (items == 0) return;
    const int pieces = 1 << piece_bits<kParts, Launch>();
    warp_sync();
    if (route.place >= 0) deliver<Launch>(n, channel, route.place, staged<Bytes16>()[route.piece], route);
    for (int piece = route.piece + 32; piece < pieces; piece += 32) {
      const int place = place_of<kParts>(piece);
      if (place >= 0) deliver<Launch>(n, channel, place, staged<Bytes16>()[piece], route);
    }
    warp_sync();
  }

  // Whether a wait of this lane took longer than the patience: what it received is not what was sent.
  FUSEDNN_DEVICE bool lost() const { return lost_; }

 private:
  static constexpr u64 kLinger = 1'000'000;  // nanoseconds; a store takes about one thousand

  // Staged pieces are numbered by item, part, pair of rows and, where a row's 8 units take two, half of a row. Three
  // parts have the places of four.
  template <int kParts>
  static constexpr int kPartBits = kParts > 2 ? 2 : kParts - 1;
  static constexpr int kRowBits = Form::kVector == 8 ? 0 : 1;
  template <int kParts, class Launch>
  FUSEDNN_DEVICE int piece_bits() const {
    return (Launch::kBare ? Launch::kItemBits : item_bits) + kPartBits<kParts> + 2 + kRowBits;
  }
  // Where a piece belongs in a message.
  template <int kParts>
  FUSEDNN_DEVICE int place_of(int piece) const {
    constexpr int kPlaces = 1 << kPartBits<kParts>;
    const int i = piece >> (kPartBits<kParts> + 2 + kRowBits), part = piece >> (2 + kRowBits) & (kPlaces - 1);
    if (part >= kParts) return -1;
    const int row = (piece >> kRowBits & 3) * 2 + element(i) % 2, half = piece & ((1 << kRowBits) - 1);
    const int unit = unit_tile * kTileUnits + element(i) / 2 * 8 + half * Form::kVector;
    const int k = part * z.unit_tiles * kTileUnits + unit;
    return k / kSpan<Form> * 32 + row * 4 + k % kSpan<Form> / Form::kVector;
  }

  FUSEDNN_DEVICE Bytes16* inbox(u32 n, int column) const {
    return shared + column * z.message * 32 + static_cast<int>(n % 2) * z.buffer;
  }
  template <class U>
  FUSEDNN_DEVICE U* staged() const {
    const int number = tile * finishers + slice;
    return reinterpret_cast<U*>(shared + z.staged + number * z.staged_of_warp);
  }
  FUSEDNN_DEVICE Channel channel_of(int sender, int column) const {
    const long group_of_all = static_cast<long>(sender) * gridDim.y + group;
    return {sender, column, z.mail + group_of_all * z.depth * z.buffer + column * z.message * 32};
  }
  FUSEDNN_DEVICE Bytes16* mail(u32 n, const Channel& channel) const {
    return channel.mail + static_cast<long>(n & z.depth_mask) * z.buffer;
  }

  template <class Launch>
  FUSEDNN_DEVICE bool on(Rung rung) const {
    return (Launch::kBare ? Launch::kRung : z.rung) == rung;
  }

  // One piece to all blocks of the group.
  template <class Launch>
  FUSEDNN_DEVICE void deliver(u32 n, const Channel& channel, int place, Bytes16 piece, const Route& route) {
    if (on<Launch>(Rung::kGrid)) {
      if (route.team != 0) return;
      store_relaxed(mail(n, channel) + place, present(piece));
      if (z.depth_mask == kRing - 1) store_relaxed(mail(n + kRing / 2, channel) + place, absent());
      return;
    }
    Bytes16* to = inbox(n, channel.column) + place;
#if defined(FUSEDNN_CLUSTERS)
    if (on<Launch>(Rung::kCluster)) {
      const u32 here = shared_address(to), counted = shared_address(barrier(n, channel.column));
      for (int i = route.team; i < z.blocks; i += route.teams) {
        const unsigned peer = static_cast<unsigned>(rank + i < z.blocks ? rank + i : rank + i - z.blocks);
        store_async(remote_address(here, peer), piece, remote_address(counted, peer));
      }
      return;
    }
#endif
    if (route.team == 0) *to = piece;
  }

  // The one NaN that stands for a word that has not come is sent as another.
  static FUSEDNN_DEVICE Bytes16 present(Bytes16 piece) {
    for (u32& word : piece.word) word = word < kAbsent ? word : kAbsent - 1;
    return piece;
  }
  static FUSEDNN_DEVICE bool has_come(const Bytes16& piece) {
    const u32* word = piece.word;
    return word[0] != kAbsent && word[1] != kAbsent && word[2] != kAbsent && word[3] != kAbsent;
  }

  // `grid`: this warp's chunks of a message, some of them together, as they come; the last one again where fewer are
  // left.
  FUSEDNN_DEVICE const Bytes16* fetch(u32 n, const Channel& channel, const Round& round) {
    constexpr int kTogether = 4;
    if (z.depth_mask == kRing - 1 && n % kLap == 0) fence_gpu();
    const int first = slice * round.run, left = round.chunks - first, chunks = left < round.run ? left : round.run;
    Bytes16* to = shared + warp * z.fetched * 32;
    const Bytes16* from = mail(n, channel) + first * 32;
    for (int c = 0; c < chunks; c += kTogether) {
      int place[kTogether];
      Bytes16 got[kTogether];
#pragma unroll
      for (int b = 0; b < kTogether; ++b) place[b] = (c + b < chunks ? c + b : chunks - 1) * 32 + lane;
      await([&] {
        bool come = true;
#pragma unroll
        for (int b = 0; b < kTogether; ++b) got[b] = load_relaxed(from + place[b]);
#pragma unroll
        for (int b = 0; b < kTogether; ++b) come &= has_come(got[b]);
        return come;
      });
#pragma unroll
      for (int b = 0; b < kTogether; ++b) to[place[b]] = got[b];
    }
    warp_sync();
    return to;
  }

  // Until arrived() or the end of patience, which the host learns of.
  template <class Arrived>
  FUSEDNN_DEVICE void await(Arrived arrived) {
    u64 begin = 0;
    while (!arrived() && !lost_) {
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
