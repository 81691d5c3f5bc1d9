// The host's side of the persistent rungs.
#include "cuda/persistent.h"

#include <algorithm>
#include <cstring>

#include "cuda/lengths.h"
#include "cuda/ring.h"
#include "cuda/sequence.h"
#include "cuda/waits.h"

namespace fusednn::cuda {
namespace {

const PersistentKernels* kernels_of(const RecurrentShape& s) {
  switch (s.dtype) {
    case Dtype::kFloat32:
      return s.allow_tf32 ? persistent_tf32(s.cell) : persistent_float32(s.cell);
    case Dtype::kBFloat16:
      return persistent_bfloat16(s.cell);
    case Dtype::kFloat16:
      return persistent_float16(s.cell);
    default:
      return nullptr;
  }
}

// One call: what lies in the workspace, and the launches.
struct Persistent {
  const RecurrentShape& s;
  const Needs& needs;
  Layout layout{};
  const char* refused;
  Workspace space;
  Bytes16* mail = nullptr;
  int* lengths = nullptr;
  int64_t* offsets = nullptr;

  Persistent(const RecurrentShape& shape, const Needs& needs)
      : s(shape), needs(needs), refused(lay_out(shape, needs, layout)), space(shape.workspace) {
    if (refused != nullptr) return;
    if (layout.mail_bytes > 0) mail = static_cast<Bytes16*>(space.take(layout.mail_bytes));
    if (s.batch_sizes == nullptr) return;
    lengths = static_cast<int*>(space.take(sizeof(int) * static_cast<size_t>(s.batch)));
    offsets = static_cast<int64_t*>(space.take(sizeof(int64_t) * static_cast<size_t>(s.steps + 1)));
  }

  template <class Launch>
  const char* run(Launch launch) {
    FUSEDNN_TRY(refused);
    if (s.batch == 0) return settle();
    Geometry& z = layout.geometry;
    z.mail = mail;
    if (layout.mail_bytes > 0) {
      FUSEDNN_TRY(clear_mail(z, layout.mail_bytes, 16 / static_cast<int>(needs.element), s.stream));
    }
    if (lengths != nullptr) FUSEDNN_TRY(put_lengths(s, lengths, offsets));
    z.lengths = lengths, z.offsets = offsets;
    z.patience = wait_patience();
    FUSEDNN_TRY(wait_fault(&z.fault));
    LaunchShape shape = layout.shape;
    for (z.first_track = 0; z.first_track < z.tracks; z.first_track += static_cast<int>(layout.shape.grid[2])) {
      shape.grid[2] = std::min(layout.shape.grid[2], static_cast<unsigned>(z.tracks - z.first_track));
      FUSEDNN_TRY(launch(shape, s.stream, z));
    }
    return settle();
  }
};

Asked asked_of(const RecurrentOptions& o, const void* states) {
  return {o.mask != nullptr || o.zones() || states != nullptr, o.mask, zoneout_at(o, 0, 0)};
}

Persistent forward_of(const RecurrentForward& a) {
  return {a.shape, kernels_of(a.shape)->forward_needs};
}
Persistent backward_of(const RecurrentBackward& a) {
  return {a.shape, kernels_of(a.shape)->backward_needs};
}

}  // namespace

const char* run_persistent_forward(const RecurrentForward& a) {
  PersistentForward tensors{
      a.gates, a.h0, a.c0, a.w_hh, a.b_hh, a.y, a.h_n, a.c_n, a.saved, a.states, asked_of(a.shape.options, a.states),
      {}};
  Persistent call = forward_of(a);
  FUSEDNN_TRY(call.refused);
  std::copy_n(a.above, a.shape.layers - 1, tensors.above);
  if (a.last_y) call.layout.geometry.track_rows = 0;
  return call.run([&](const LaunchShape& shape, void* stream, const Geometry& z) {
    return kernels_of(a.shape)->forward(shape, stream, z, tensors);
  });
}

const char* run_persistent_backward(const RecurrentBackward& a) {
  const PersistentBackward tensors{
      a.grad_y, a.grad_h_n, a.grad_c_n,    a.y,    a.saved, a.h0,     a.c0,
      a.w_hh,   a.d_gates,  a.d_recurrent, a.d_h0, a.d_c0,  a.states, asked_of(a.shape.options, nullptr)};
  return backward_of(a).run([&](const LaunchShape& shape, void* stream, const Geometry& z) {
    return kernels_of(a.shape)->backward(shape, stream, z, tensors);
  });
}

size_t persistent_workspace(const RecurrentForward& a) {
  return forward_of(a).space.used();
}
size_t persistent_workspace(const RecurrentBackward& a) {
  return backward_of(a).space.used();
}

}  // namespace fusednn::cuda
