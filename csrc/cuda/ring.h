// The messages of `grid`: each word says by itself that it has come. Until then it is kAbsent, which no value is.
//
// A word is what PTX reads and writes as a whole (32 bits, relaxed, at the scope of the GPU); of the four words of a
// piece each comes when it will, so all are looked at. A ring of kRing places holds the messages of a column. Whoever
// sends message n clears its pieces of message n - kRing / 2, and every lane passes a fence before it looks for a
// message whose number is a multiple of kLap. Two such fences lie between the last look at a message and its clearing,
// and two between that and the first look for the message that takes its place: one behind which the sender sends, one
// in front of which the receiver has received. So no word is cleared too early, and none that is old is taken for new.
// docs/kernels/recurrent_cuda.md counts them.
#pragma once

#include "api.h"
#include "cuda/primitives/memory.h"

namespace fusednn::cuda {

struct Geometry;

constexpr u32 kAbsent = 0xffffffffu;
constexpr u32 kRing = 32, kLap = 7;
static_assert((kRing & (kRing - 1)) == 0 && kRing / 2 % 2 == 0, "a place is of one round, and found by a mask");
static_assert(kLap >= 3, "between two fences a lane sends, and receives what others sent between theirs");
static_assert(2 * kLap + 1 <= kRing / 2, "two fences on each half of the way around the ring");

FUSEDNN_DEVICE Bytes16 absent() {
  return {{kAbsent, kAbsent, kAbsent, kAbsent}};
}

// Before the first message: every word of the mail is absent, but zero where no unit sends one. `vector`: values of a
// piece.
const char* clear_mail(const Geometry& z, size_t mail_bytes, int vector, void* stream);

}  // namespace fusednn::cuda
