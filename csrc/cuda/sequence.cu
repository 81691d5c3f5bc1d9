#include "cuda/sequence.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "cuda/lengths.h"
#include "cuda/norm.h"
#include "cuda/ranges.h"
#include "cuda/replay.h"

namespace fusednn::cuda {
namespace {

size_t bytes_of(Dtype dtype) {
  return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2;
}

const StepKernels* step_kernels_of(const RecurrentShape& s) {
  switch (s.dtype) {
    case Dtype::kFloat64:
      return step_float64(s.cell);
    case Dtype::kFloat32:
      return s.allow_tf32 ? step_tf32(s.cell) : step_float32(s.cell);
    case Dtype::kBFloat16:
      return step_bfloat16(s.cell);
    default:
      return step_float16(s.cell);
  }
}

bool is(const RecurrentShape& s, const char* strategy) {
  return std::strcmp(s.strategy, strategy) == 0;
}

// Rows of all steps before each; empty where input is padded.
std::vector<int64_t> offsets_of(const RecurrentShape& s) {
  std::vector<int64_t> offsets;
  if (s.batch_sizes == nullptr) return offsets;
  offsets.push_back(0);
  for (int64_t t = 0; t < s.steps; ++t) offsets.push_back(offsets.back() + s.batch_sizes[t]);
  return offsets;
}

// What forward and backward share: the steps, each with launches of its own, or recorded.
template <class Of>
struct Sequence : Of {
  const RecurrentShape s;
  const CellInfo& cell;
  const std::vector<int64_t> rows_before;
  Workspace space;
  int* lengths = nullptr;  // of packed input, where kernels find their steps themselves
  int64_t* offsets_there = nullptr;

  template <class Args>
  Sequence(const Args& args, void* workspace)
      : Of{}, s(args.shape), cell(*find_cell(s.cell)), rows_before(offsets_of(s)), space(workspace) {
    Of& o = *this;
    o.a = args;
    o.size = static_cast<int64_t>(bytes_of(s.dtype)), o.acc = s.dtype == Dtype::kFloat64 ? 8 : 4;
    o.T = s.steps, o.B = s.batch, o.H = s.hidden, o.P = s.proj, o.D = s.tracks(), o.heads = s.heads;
    o.G = cell.gates, o.S = cell.saved, o.late = cell.second_gates, o.first = o.G - o.late;
    o.split = cell.split, o.gemm = is(s, "gemm");
    o.offsets = rows_before.empty() ? nullptr : rows_before.data();
    if (!is(s, "graph") || s.batch_sizes == nullptr) return;
    lengths = static_cast<int*>(take(sizeof(int) * o.B));
    offsets_there = static_cast<int64_t*>(take(sizeof(int64_t) * (o.T + 1)));
  }

  void* take(int64_t bytes) { return space.take(static_cast<size_t>(bytes)); }

  // each(a step of both directions, whether a step stands in front of it, its number in the order of this walk)
  template <class Each>
  const char* walk(Each each) const {
    int64_t done = 0;
    if (is(s, "graph")) {
      Of track = *this;
      track.offsets = offsets_there;
      if (offsets_there != nullptr) FUSEDNN_TRY(put_lengths(s, lengths, offsets_there));
      FUSEDNN_TRY(replay_steps(s, *step_kernels_of(s), track, done));
    }
    for (int64_t begin = done; begin < this->steps(); begin += kChunk) {
      const int64_t end = std::min(begin + kChunk, this->steps());
      const Range range([&] { return "steps " + std::to_string(begin) + "-" + std::to_string(end - 1); });
      for (int64_t n = begin; n < end; ++n) {
        Both<typename Of::Step> both{};
        for (int64_t d = 0; d < s.directions; ++d) both.step[d] = this->handled(d, n);
        FUSEDNN_TRY(each(both, n > done, n));
      }
    }
    return nullptr;
  }

  const void* gain(int64_t d, int64_t begin) const {
    return this->at(this->of(s.options.norm, d, this->G * this->H, this->size), begin * this->H, this->size);
  }

  const char* multiply(const void* a, int64_t lda, const void* b, int64_t ldb, bool transpose_b, void* c, int64_t m,
                       int64_t n, int64_t k) const {
    if (m == 0) return nullptr;
    if (witness != nullptr) {
      LaunchShape library;
      library.threads = 0;
      witness->launched(witness->context, "library GEMM", library);
      return nullptr;
    }
    FUSEDNN_TRY(settle());
    s.gemm({a, b, c, m, n, k, lda, ldb, n, transpose_b, s.dtype});
    return nullptr;
  }
};

struct Forward : Sequence<ForwardTrack> {
  Forward(const RecurrentForward& args, void* workspace) : Sequence(args, workspace) {
    const bool projects = a.w_hr != nullptr;
    if (!gemm) {
      for (void*& buffer : h) buffer = take(size * D * B * P);
    }
    if (s.options.mask != nullptr) {  // `gemm` reads it before it writes it
      factor[0] = take(size * D * B * P);
      factor[1] = gemm ? factor[0] : take(size * D * B * P);
    }
    if (cell.cell_state) c = take(acc * D * B * H);
    if (late > 0 || projects) middle = take(size * D * B * H);
    if (late > 0) kept = take(acc * D * B * S * H);
    if (gemm) product = take(size * D * product_size());
  }

  const char* run() const {
    const Spread copies{nullptr, {a.h_n, h[0], h[1]}, s.options.mask, {factor[0], gemm ? nullptr : factor[1]}};
    FUSEDNN_TRY(spread_state(a.h0, s.dtype, D * B * P, copies, s.stream));
    if (cell.cell_state) {
      FUSEDNN_TRY(spread_state(a.c0, s.dtype, D * B * H, {c, {a.c_n, nullptr, nullptr}, nullptr, {}}, s.stream));
    }
    FUSEDNN_TRY(walk([&](const Both<ForwardStep>& both, bool behind, int64_t) {
      return gemm ? gemm_step(both) : step_kernels_of(s)->forward(s, {both, nullptr}, behind);
    }));
    return settle();
  }

  const char* gemm_step(const Both<ForwardStep>& both) const {
    const PointwiseKernels& kernels = *pointwise_kernels(s.cell, s.dtype);
    FUSEDNN_TRY(products(both, [&](const ForwardStep& f) { return Factor{f.factor, P, f.w, G * H * P, first * H}; }));
    FUSEDNN_TRY(norm_products(both, 0, first));
    FUSEDNN_TRY(kernels.forward(s, both));
    if (late > 0) {
      const auto factor = [&](const ForwardStep& f) {
        return Factor{f.middle, H, at(f.w, first * H * P, size), G * H * P, late * H};
      };
      FUSEDNN_TRY(products(both, factor));
      FUSEDNN_TRY(norm_products(both, first, late));
      FUSEDNN_TRY(kernels.forward_late(s, both));
    }
    if (a.w_hr == nullptr) return nullptr;
    FUSEDNN_TRY(products(both, [&](const ForwardStep& f) {
      return Factor{f.middle, H, of(a.w_hr, &f - both.step, P * H, size), P * H, P};
    }));
    return put_projected(s, both);
  }

  // Layer norm of the product of gates [begin, begin + gates), in place, where it is asked for.
  const char* norm_products(const Both<ForwardStep>& both, int64_t begin, int64_t gates) const {
    if (s.options.norm == nullptr) return nullptr;
    Both<NormRows> rows{};
    for (int64_t d = 0; d < s.directions; ++d) {
      NormRows& r = rows.step[d];
      r.count = both.step[d].count, r.head = product_size(), r.row = gates * H;
      r.from = r.to = of(product, d, product_size(), size);
      r.gain = gain(d, begin);
    }
    return norm_rows(s, rows, gates * H, G * H);
  }

  // product = from w^T, with from [B, k] and w [n, k] of each head
  struct Factor {
    const void* from;
    int64_t k;
    const void* w;
    int64_t w_head;  // elements from one head's to the next
    int64_t n;
  };
  template <class Factors>
  const char* products(const Both<ForwardStep>& both, Factors factors) const {
    for (int64_t k = 0; k < D; ++k) {
      const ForwardStep& f = both.step[k / heads];
      const int64_t head = k % heads;
      const Factor x = factors(f);
      FUSEDNN_TRY(multiply(at(x.from, head * B * x.k, size), x.k, at(x.w, head * x.w_head, size), x.k, true,
                           at(f.product, head * f.product_size, size), f.count, x.n, x.k));
    }
    return nullptr;
  }
};

struct Backward : Sequence<BackwardTrack> {
  Backward(const RecurrentBackward& args, void* workspace) : Sequence(args, workspace) {
    dh = take(acc * D * B * P);
    if (cell.cell_state) dc = take(acc * D * B * H);
    if (s.options.zones()) kept_h = take(acc * D * B * P);
    if (gemm) {
      product = take(size * D * B * P);
      if (late > 0 || a.w_hr != nullptr) middle = take(size * D * B * H);
    } else {
      w_t = take(size * D * P * first * H);
      if (late > 0) w_t_late = take(size * D * H * late * H);
    }
  }

  const char* run() const {
    FUSEDNN_TRY(spread_state(a.grad_h_n, s.dtype, D * B * P, {dh, {}, nullptr, {}}, s.stream));
    if (cell.cell_state) FUSEDNN_TRY(spread_state(a.grad_c_n, s.dtype, D * B * H, {dc, {}, nullptr, {}}, s.stream));
    if (!gemm) FUSEDNN_TRY(transpose_weights());
    FUSEDNN_TRY(walk([&](const Both<BackwardStep>& both, bool behind, int64_t n) {
      return gemm ? gemm_step(both, T - 1 - n) : step_kernels_of(s)->backward(s, {both, nullptr}, behind);
    }));
    for (int64_t k = 0; k < D; ++k) {
      const int64_t state = k * B * P;
      FUSEDNN_TRY(gather_state(at(dh, state, acc), s.dtype, B * P, at(product, state, size),
                               at(s.options.mask, state, size), count(k / heads, 0), P, at(a.d_h0, state, size),
                               s.stream));
    }
    if (cell.cell_state) FUSEDNN_TRY(gather_state(dc, s.dtype, D * B * H, nullptr, nullptr, 0, H, a.d_c0, s.stream));
    return settle();
  }

  const char* transpose_weights() const {
    for (int64_t d = 0; d < D; ++d) {
      const void* w = at(a.w_hh, d * G * H * P, size);
      FUSEDNN_TRY(transpose(w, s.dtype, first * H, P, at(w_t, d * P * first * H, size), s.stream));
      if (late == 0) continue;
      FUSEDNN_TRY(
          transpose(at(w, first * H * P, size), s.dtype, late * H, H, at(w_t_late, d * H * late * H, size), s.stream));
    }
    return nullptr;
  }

  // i: its number in the order of forward.
  const char* gemm_step(const Both<BackwardStep>& both, int64_t i) const {
    const PointwiseKernels& kernels = *pointwise_kernels(s.cell, s.dtype);
    FUSEDNN_TRY(a.w_hr != nullptr ? gather_projected(s, both) : kernels.backward(s, both));
    if (late > 0) FUSEDNN_TRY(norm_gradients(both, i, first, late));
    for (int64_t k = 0; k < D && (a.w_hr != nullptr || late > 0); ++k) {
      const BackwardStep& b = both.step[k / heads];
      const int64_t head = k % heads;
      void* to = at(b.middle, head * B * H, size);
      if (a.w_hr != nullptr) {
        FUSEDNN_TRY(
            multiply(at(b.d_proj, head * P, size), D * P, at(a.w_hr, k * P * H, size), H, false, to, b.count, H, P));
      } else {
        FUSEDNN_TRY(multiply(at(products(b, k / heads, i), (head * G + first) * H, size), D * G * H,
                             at(a.w_hh, (k * G + first) * H * P, size), P, false, to, b.count, H, late * H));
      }
    }
    if (a.w_hr != nullptr || late > 0) FUSEDNN_TRY(kernels.backward_late(s, both));
    FUSEDNN_TRY(norm_gradients(both, i, 0, first));
    for (int64_t k = 0; k < D; ++k) {
      const BackwardStep& b = both.step[k / heads];
      const int64_t head = k % heads;
      FUSEDNN_TRY(multiply(at(products(b, k / heads, i), head * G * H, size), D * G * H,
                           at(a.w_hh, k * G * H * P, size), P, false, at(b.product, head * B * P, size), b.count, P,
                           first * H));
    }
    return nullptr;
  }

  // The gradients of the products of gates [begin, begin + gates), where layer norm was asked for.
  const char* norm_gradients(const Both<BackwardStep>& both, int64_t i, int64_t begin, int64_t gates) const {
    if (s.options.norm == nullptr) return nullptr;
    const int64_t stats = late > 0 ? 2 : 1;
    Both<NormRows> rows{};
    for (int64_t d = 0; d < s.directions; ++d) {
      NormRows& r = rows.step[d];
      r.count = both.step[d].count, r.head = G * H, r.row = D * G * H;
      r.from = at(recurrent(both.step[d]), begin * H, size);
      r.to = at(row(a.d_products, d, i, G * H), begin * H, size);
      r.gain = gain(d, begin);
      r.normed = at(row(a.normed, d, i, G * H), begin * H, size);
      r.rstd = at(row(a.rstd, d, i, stats), begin > 0, size), r.rstd_head = stats, r.rstd_row = D * stats;
    }
    return norm_rows(s, rows, gates * H, G * H);
  }

  const void* recurrent(const BackwardStep& b) const { return split ? b.d_recurrent : b.d_gates; }
  // The gradients of what W_hh gave.
  const void* products(const BackwardStep& b, int64_t d, int64_t i) const {
    return s.options.norm == nullptr ? recurrent(b) : row(a.d_products, d, i, G * H);
  }
};

}  // namespace

const char* run_forward(const RecurrentForward& args) {
  return Forward(args, args.shape.workspace).run();
}
const char* run_backward(const RecurrentBackward& args) {
  return Backward(args, args.shape.workspace).run();
}
size_t forward_workspace(const RecurrentForward& args) {
  return Forward(args, nullptr).space.used();
}
size_t backward_workspace(const RecurrentBackward& args) {
  return Backward(args, nullptr).space.used();
}

}  // namespace fusednn::cuda
