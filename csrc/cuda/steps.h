// One time step of one direction as the kernels see it.
//
// A direction has N heads; D is all heads of all directions. Strides between rows of the batch: gates and its gradients
// D*G*H, y and its gradient D*P, saved D*S*H; each pointer names row 0 of this direction's first head at this step, and
// the others lie behind it. States are [N, B, P] or [N, B, H], weights [N, ...]. T is the dtype of the call, A its
// accumulation type (fp32, for fp64 fp64). Every pointer is device memory that lives until the stream has passed.
#pragma once

#include "api.h"
#include "cuda/zoneout.h"

namespace fusednn::cuda {

constexpr int kMostDirections = 2;

struct Sizes {
  int hidden, proj, heads, tracks;  // H, P, N, D
};

struct ForwardStep {
  int count;           // rows of the batch that take part
  int batch;           // B
  const void* gates;   // T, input part of all gates
  const void* b_hh;    // T [G*H] or null
  const void* w;       // T [G*H, P], read by `step`
  const void* h;       // T, h_{t-1}
  const void* factor;  // T, what W_hh multiplies: h, or h times the mask
  void* factor_next;   // T, of the next step; null without a mask. May be factor in `gemm`
  const void* mask;    // T; null without
  void* h_next;        // T, h_t for the next step; may be h in `gemm`, where one thread reads and writes a unit
  void* h_n;           // T, h_t where this step may be the row's last; null where h_next serves
  void* c;             // A, c_{t-1} and then c_t; null without a cell state
  void* c_n;           // T, c_t
  void* y;             // T
  void* saved;         // T; null in inference
  void* h_states;      // T [., H], the cell's h of before zoneout, or null
  void* c_states;      // T [., H], c_t, or null
  Zoneout zoneout;
  void* middle;          // T [B, H], what a second product or a projection takes; null without
  void* kept;            // A [B, S, H], saved values between the two products of a step; null without
  const void* product;   // T [count, its gates * H], of a library GEMM; null in `step`
  int64_t product_size;  // elements from one head's product to the next
};

struct BackwardStep {
  int count;           // rows that take part
  int before;          // rows of the step handled just before this one, whose gradient is still to pass through W_hh
  int batch;           // B
  int joined;          // rows that have a step before this one in forward order
  const void* grad_y;  // T or null
  const void* y;       // T, h_t, as the cell gave it
  const void* y_prev;  // T, h of the step before; rows from `joined` on start from h0
  const void* saved;   // T
  const void* saved_prev;
  const void* c_prev;  // T [., H], c of the step before; null: it stands in saved_prev
  const void* mask;    // T; null without
  Zoneout zoneout;
  const void* h0;        // T [B, P]
  const void* c0;        // T [B, H]
  const void* w_t;       // T, transposed weights of the product, read by `step`
  const void* w_t_late;  // T, of the last gates of a two-product cell
  const void* d_before;  // T, gradient of the recurrent part at the step handled just before; rows < before
  const void* product;   // T [N, B, P], d_before times W_hh by a library GEMM; null in `step`
  const void* middle;    // T [count, H], gradient of what the second product or the projection took, by a library GEMM
  void* dh;              // A [B, P], gradient of h that does not pass through W_hh
  void* dc;              // A [B, H]
  void* kept_h;          // A [B, P], what zoneout lets pass by the cell; null without
  void* d_gates;         // T
  void* d_recurrent;     // T; null unless the cell is split
  void* d_proj;          // T, whole gradient of the projected h_t; null without a projection
};

inline Sizes sizes_of(const RecurrentShape& s) {
  return {static_cast<int>(s.hidden), static_cast<int>(s.proj), static_cast<int>(s.heads),
          static_cast<int>(s.tracks())};
}

template <class Step>
struct Both {
  Step step[kMostDirections];
};

// The step of a launch: among its arguments, or, where the launch was recorded, in memory.
template <class Step>
struct Given {
  Both<Step> both;
  const Both<Step>* recorded;  // null: both

  FUSEDNN_HD Step of(unsigned direction) const {
    return recorded != nullptr ? recorded->step[direction] : both.step[direction];
  }
};

}  // namespace fusednn::cuda
