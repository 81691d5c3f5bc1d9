#include "cuda/sequence.h"

#include <cstring>

#include "cuda/step.h"

namespace fusednn::cuda {
namespace {

size_t bytes_of(Dtype dtype) {
  return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2;
}

// null + offset stays null, and const is given back: args hold inputs and outputs side by side.
void* at(const void* base, int64_t elements, size_t bytes) {
  if (base == nullptr) return nullptr;
  return const_cast<char*>(static_cast<const char*>(base)) + static_cast<size_t>(elements) * bytes;
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

// What forward and backward share.
struct Sequence {
  const RecurrentShape& s;
  const CellInfo& cell;
  const bool gemm;
  const size_t size, acc;  // bytes of an element and of an accumulator
  const int64_t directions, heads, D, B, H, P, G, S, late, first;
  const Timeline time;

  explicit Sequence(const RecurrentShape& shape)
      : s(shape),
        cell(*find_cell(shape.cell)),
        gemm(std::strcmp(shape.strategy, "gemm") == 0),
        size(bytes_of(shape.dtype)),
        acc(shape.dtype == Dtype::kFloat64 ? 8 : 4),
        directions(s.directions),
        heads(s.heads),
        D(s.tracks()),
        B(s.batch),
        H(s.hidden),
        P(s.proj),
        G(cell.gates),
        S(cell.saved),
        late(cell.second_gates),
        first(G - late),
        time(shape) {}

  // The time of forward's i-th step; -1 and T are no steps.
  int64_t time_of(int64_t d, int64_t i) const { return d == 0 ? i : s.steps - 1 - i; }
  int count(int64_t d, int64_t i) const { return i < 0 || i >= s.steps ? 0 : time.count(time_of(d, i)); }
  // Row 0 of direction d's first head at forward's i-th step in a tensor [N, D, width].
  void* row(const void* tensor, int64_t d, int64_t i, int64_t width) const {
    if (i < 0 || i >= s.steps) return nullptr;
    return at(tensor, (time.offset(time_of(d, i)) * D + d * heads) * width, size);
  }
  // Direction d's first head in a tensor [D, width] of elements of some bytes.
  void* of(const void* tensor, int64_t d, int64_t width, size_t bytes) const {
    return at(tensor, d * heads * width, bytes);
  }
  const int64_t* seed(int64_t d) const { return s.options.seed == nullptr ? nullptr : s.options.seed + d; }

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

struct Forward : Sequence {
  const RecurrentForward& a;
  Workspace space;
  void *h[2], *factor[2], *c, *middle, *kept, *product;

  explicit Forward(const RecurrentForward& args, void* workspace)
      : Sequence(args.shape), a(args), space(workspace), h{}, factor{}, c{}, middle{}, kept{}, product{} {
    const bool projects = a.w_hr != nullptr;
    if (!gemm) {
      for (void*& buffer : h) buffer = space.take(size * D * B * P);
    }
    if (s.options.mask != nullptr) {  // `gemm` reads it before it writes it
      factor[0] = space.take(size * D * B * P);
      factor[1] = gemm ? factor[0] : space.take(size * D * B * P);
    }
    if (cell.cell_state) c = space.take(acc * D * B * H);
    if (late > 0 || projects) middle = space.take(size * D * B * H);
    if (late > 0) kept = space.take(acc * D * B * S * H);
    if (gemm) product = space.take(size * D * product_size());
  }

  const char* run() {
    const Spread copies{nullptr, {a.h_n, h[0], h[1]}, s.options.mask, {factor[0], gemm ? nullptr : factor[1]}};
    FUSEDNN_TRY(spread_state(a.h0, s.dtype, D * B * P, copies, s.stream));
    if (cell.cell_state) {
      FUSEDNN_TRY(spread_state(a.c0, s.dtype, D * B * H, {c, {a.c_n, nullptr, nullptr}, nullptr, {}}, s.stream));
    }
    for (int64_t i = 0; i < s.steps; ++i) {
      Both<ForwardStep> both{};
      for (int64_t d = 0; d < directions; ++d) both.step[d] = step(d, i);
      FUSEDNN_TRY(gemm ? gemm_step(both) : step_kernels_of(s)->forward(s, both, i > 0));
    }
    return settle();
  }

  ForwardStep step(int64_t d, int64_t i) const {
    ForwardStep f{};
    f.count = count(d, i);
    f.gates = row(a.gates, d, i, G * H);
    f.b_hh = of(a.b_hh, d, G * H, size);
    f.w = of(a.w_hh, d, G * H * P, size);
    void* h_n = of(a.h_n, d, B * P, size);
    f.h = gemm ? h_n : of(h[i % 2], d, B * P, size);
    f.h_next = gemm ? h_n : of(h[1 - i % 2], d, B * P, size);
    f.h_n = gemm ? nullptr : h_n;
    f.mask = of(s.options.mask, d, B * P, size);
    f.factor = f.mask == nullptr ? f.h : of(factor[i % 2], d, B * P, size);
    f.factor_next = of(factor[1 - i % 2], d, B * P, size);
    f.c = of(c, d, B * H, acc);
    f.c_n = of(a.c_n, d, B * H, size);
    f.y = row(a.y, d, i, P);
    f.saved = row(a.saved, d, i, S * H);
    (cell.cell_state ? f.c_states : f.h_states) = row(a.states, d, i, H);
    f.seed = seed(d), f.t = s.options.first + time_of(d, i);
    f.middle = of(middle, d, B * H, size);
    f.kept = of(kept, d, B * S * H, acc);
    f.product = of(product, d, product_size(), size), f.product_size = static_cast<long>(product_size());
    return f;
  }

  int64_t product_size() const { return B * std::max(first * H, P); }

  const char* gemm_step(const Both<ForwardStep>& both) const {
    const PointwiseKernels& kernels = *pointwise_kernels(s.cell, s.dtype);
    FUSEDNN_TRY(products(both, [&](const ForwardStep& f) { return Factor{f.factor, P, f.w, G * H * P, first * H}; }));
    FUSEDNN_TRY(kernels.forward(s, both));
    if (late > 0) {
      const auto factor = [&](const ForwardStep& f) {
        return Factor{f.middle, H, at(f.w, first * H * P, size), G * H * P, late * H};
      };
      FUSEDNN_TRY(products(both, factor));
      FUSEDNN_TRY(kernels.forward_late(s, both));
    }
    if (a.w_hr == nullptr) return nullptr;
    FUSEDNN_TRY(products(both, [&](const ForwardStep& f) {
      const int64_t d = &f - both.step;
      return Factor{f.middle, H, of(a.w_hr, d, P * H, size), P * H, P};
    }));
    return put_projected(s, both);
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

struct Backward : Sequence {
  const RecurrentBackward& a;
  Workspace space;
  void *dh, *dc, *kept_h, *product, *middle, *w_t, *w_t_late;

  explicit Backward(const RecurrentBackward& args, void* workspace)
      : Sequence(args.shape), a(args), space(workspace), dc{}, kept_h{}, product{}, middle{}, w_t{}, w_t_late{} {
    dh = space.take(acc * D * B * P);
    if (cell.cell_state) dc = space.take(acc * D * B * H);
    if (s.options.zones()) kept_h = space.take(acc * D * B * P);
    if (gemm) {
      product = space.take(size * D * B * P);
      if (late > 0 || a.w_hr != nullptr) middle = space.take(size * D * B * H);
    } else {
      w_t = space.take(size * D * P * first * H);
      if (late > 0) w_t_late = space.take(size * D * H * late * H);
    }
  }

  const char* run() {
    FUSEDNN_TRY(spread_state(a.grad_h_n, s.dtype, D * B * P, {dh, {}, nullptr, {}}, s.stream));
    if (cell.cell_state) FUSEDNN_TRY(spread_state(a.grad_c_n, s.dtype, D * B * H, {dc, {}, nullptr, {}}, s.stream));
    if (!gemm) FUSEDNN_TRY(transpose_weights());
    // The step -1 has no rows; what is still to pass through W_hh arrives there.
    for (int64_t i = s.steps - 1; i >= (gemm ? 0 : -1); --i) {
      Both<BackwardStep> both{};
      for (int64_t d = 0; d < directions; ++d) both.step[d] = step(d, i);
      FUSEDNN_TRY(gemm ? gemm_step(both) : step_kernels_of(s)->backward(s, both, i < s.steps - 1));
    }
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

  BackwardStep step(int64_t d, int64_t i) const {
    BackwardStep b{};
    b.count = count(d, i), b.before = count(d, i + 1), b.joined = count(d, i - 1);
    b.grad_y = row(a.grad_y, d, i, P);
    b.y = row(a.y, d, i, P), b.y_prev = row(a.y, d, i - 1, P);
    b.saved = row(a.saved, d, i, S * H), b.saved_prev = row(a.saved, d, i - 1, S * H);
    if (a.states != nullptr && cell.cell_state) b.c_prev = row(a.states, d, i - 1, H);
    if (a.states != nullptr && !cell.cell_state) b.y = row(a.states, d, i, H);
    b.mask = of(s.options.mask, d, B * P, size);
    b.seed = seed(d), b.t = s.options.first + time_of(d, i);
    b.kept_h = of(kept_h, d, B * P, acc);
    b.h0 = of(a.h0, d, B * P, size), b.c0 = of(a.c0, d, B * H, size);
    b.w_t = of(w_t, d, P * first * H, size), b.w_t_late = of(w_t_late, d, H * late * H, size);
    b.d_before = row(cell.split ? a.d_recurrent : a.d_gates, d, i + 1, G * H);
    b.product = of(product, d, B * P, size), b.middle = of(middle, d, B * H, size);
    b.dh = of(dh, d, B * P, acc), b.dc = of(dc, d, B * H, acc);
    b.d_gates = row(a.d_gates, d, i, G * H);
    b.d_recurrent = row(a.d_recurrent, d, i, G * H);
    b.d_proj = row(a.d_proj, d, i, P);
    return b;
  }

  const char* gemm_step(const Both<BackwardStep>& both) const {
    const PointwiseKernels& kernels = *pointwise_kernels(s.cell, s.dtype);
    FUSEDNN_TRY(a.w_hr != nullptr ? gather_projected(s, both) : kernels.backward(s, both));
    for (int64_t k = 0; k < D && (a.w_hr != nullptr || late > 0); ++k) {
      const BackwardStep& b = both.step[k / heads];
      const int64_t head = k % heads;
      void* to = at(b.middle, head * B * H, size);
      if (a.w_hr != nullptr) {
        FUSEDNN_TRY(
            multiply(at(b.d_proj, head * P, size), D * P, at(a.w_hr, k * P * H, size), H, false, to, b.count, H, P));
      } else {
        FUSEDNN_TRY(multiply(at(recurrent(b), (head * G + first) * H, size), D * G * H,
                             at(a.w_hh, (k * G + first) * H * P, size), P, false, to, b.count, H, late * H));
      }
    }
    if (a.w_hr != nullptr || late > 0) FUSEDNN_TRY(kernels.backward_late(s, both));
    for (int64_t k = 0; k < D; ++k) {
      const BackwardStep& b = both.step[k / heads];
      const int64_t head = k % heads;
      FUSEDNN_TRY(multiply(at(recurrent(b), head * G * H, size), D * G * H, at(a.w_hh, k * G * H * P, size), P, false,
                           at(b.product, head * B * P, size), b.count, P, first * H));
    }
    return nullptr;
  }

  const void* recurrent(const BackwardStep& b) const { return cell.split ? b.d_recurrent : b.d_gates; }
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
