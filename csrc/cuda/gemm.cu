#include "cuda/gemm.h"

#include <algorithm>

#include "cuda/cell_step.h"
#include "cuda/launch.h"

namespace fusednn::cuda {

constexpr int kThreads = 256;

// One thread a unit and row; directions and their heads along y.
struct At {
  long b;
  int u;
  FUSEDNN_DEVICE explicit At(int width) {
    const long i = static_cast<long>(blockIdx.x) * kThreads + threadIdx.x;
    b = i / width, u = static_cast<int>(i % width);
  }
};

template <class Cell, class A, bool kLate>
__global__ void __launch_bounds__(kThreads) gemm_forward(Cell math, Sizes z, AnyStored<A> io, Both<ForwardStep> both) {
  constexpr int kGates = kLate ? Cell::kSecondGates : Cell::G - Cell::kSecondGates;
  const int heads = z.heads, track = static_cast<int>(blockIdx.y), head = track % heads;
  const ForwardStep& s = both.step[track / heads];
  const At at(z.hidden);
  if (at.b >= s.count) return;
  A products[kGates];
  for (int g = 0; g < kGates; ++g)
    products[g] = io.load(s.product, head * s.product_size + (at.b * kGates + g) * z.hidden + at.u);
  const ForwardCell<Cell, AnyStored<A>> cell{math, io, z, s, {z, s.batch, head}};
  if constexpr (kLate) {
    cell.second(at.b, at.u, products);
  } else {
    cell.first(at.b, at.u, products);
  }
}

template <class Cell, class A, bool kLate>
__global__ void __launch_bounds__(kThreads)
    gemm_backward(Cell math, Sizes z, AnyStored<A> io, Both<BackwardStep> both) {
  const int heads = z.heads, track = static_cast<int>(blockIdx.y), head = track % heads;
  const BackwardStep& s = both.step[track / heads];
  const At at(z.hidden);
  const BackwardCell<Cell, AnyStored<A>> cell{math, io, z, s, {z, s.batch, head}};
  if constexpr (kLate) {
    if (at.b >= s.count) return;
    const A gradient = io.load(s.middle, cell.at.state(at.b, z.hidden, at.u));
    if constexpr (Cell::kSecondGates > 0) {
      cell.second(at.b, at.u, gradient);
    } else {
      cell.first(at.b, at.u, gradient);
    }
  } else {
    if (at.b >= rows_reached(s)) return;
    const A product = at.b < s.before ? io.load(s.product, cell.at.state(at.b, z.proj, at.u)) : A(0);
    A dh;
    if (cell.arrive(at.b, at.u, product, dh)) cell.first(at.b, at.u, dh);
  }
}

// Any cell stands for these: they touch h alone.
using AnyCell = cells::RnnTanh;

template <class A>
__global__ void __launch_bounds__(kThreads) projected_forward(Sizes z, AnyStored<A> io, Both<ForwardStep> both) {
  const int heads = z.heads, track = static_cast<int>(blockIdx.y), head = track % heads;
  const ForwardStep& s = both.step[track / heads];
  const At at(z.proj);
  if (at.b >= s.count) return;
  const AnyCell any;
  const ForwardCell<AnyCell, AnyStored<A>> cell{any, io, z, s, {z, s.batch, head}};
  cell.put(at.b, at.u, io.load(s.product, head * s.product_size + at.b * z.proj + at.u));
}

template <class A>
__global__ void __launch_bounds__(kThreads) projected_backward(Sizes z, AnyStored<A> io, Both<BackwardStep> both) {
  const int heads = z.heads, track = static_cast<int>(blockIdx.y), head = track % heads;
  const BackwardStep& s = both.step[track / heads];
  const At at(z.proj);
  if (at.b >= rows_reached(s)) return;
  const AnyCell any;
  const BackwardCell<AnyCell, AnyStored<A>> cell{any, io, z, s, {z, s.batch, head}};
  const A product = at.b < s.before ? io.load(s.product, cell.at.state(at.b, z.proj, at.u)) : A(0);
  A dh;
  if (!cell.arrive(at.b, at.u, product, dh)) return;
  io.store(s.d_proj, cell.at.row(at.b, 1, 0, z.proj, at.u), dh);
  cell.leave(at.b, at.u, 0);  // all of it goes on through the projection
}

namespace {

template <class Step, class Rows>
int most_rows(const RecurrentShape& s, const Both<Step>& both, Rows rows) {
  int most = 0;
  for (int64_t d = 0; d < s.directions; ++d) most = std::max(most, rows(both.step[d]));
  return most;
}
int rows_of(const ForwardStep& s) {
  return s.count;
}
int rows_of(const BackwardStep& s) {
  return rows_reached(s);
}

template <auto kKernel, class A, class Step, class... Cell>
const char* run(const RecurrentShape& s, int64_t width, const Both<Step>& both, const Cell&... cell) {
  const int64_t rows = most_rows(s, both, [](const Step& step) { return rows_of(step); });
  if (rows == 0) return nullptr;
  LaunchShape shape;
  shape.grid[0] = static_cast<unsigned>((rows * width + kThreads - 1) / kThreads);
  shape.grid[1] = static_cast<unsigned>(s.tracks());
  shape.threads = kThreads;
  return launch<kKernel>(shape, s.stream, cell..., sizes_of(s), AnyStored<A>(s.dtype), both);
}

template <class Registered, class A>
struct Pointwise {
  using Cell = DeviceCell<Registered>;
  static constexpr Cell kCell = device_cell(Registered{});
  static constexpr bool kTwo = Cell::kSecondGates > 0;

  static const char* forward(const RecurrentShape& s, const Both<ForwardStep>& both) {
    return run<gemm_forward<Cell, A, false>, A>(s, s.hidden, both, kCell);
  }
  static const char* forward_late(const RecurrentShape& s, const Both<ForwardStep>& both) {
    if constexpr (kTwo) return run<gemm_forward<Cell, A, true>, A>(s, s.hidden, both, kCell);
    return "the cell has one product";
  }
  static const char* backward(const RecurrentShape& s, const Both<BackwardStep>& both) {
    return run<gemm_backward<Cell, A, false>, A>(s, s.hidden, both, kCell);
  }
  static const char* backward_late(const RecurrentShape& s, const Both<BackwardStep>& both) {
    if constexpr (kTwo || Cell::kCellState) {
      return run<gemm_backward<Cell, A, true>, A>(s, s.hidden, both, kCell);
    }
    return "the cell has one product";
  }
  static constexpr PointwiseKernels kernels{forward, forward_late, backward, backward_late};
};

}  // namespace

const PointwiseKernels* pointwise_kernels(const char* cell, Dtype dtype) {
#define FUSEDNN_POINTWISE(C)                                                                                        \
  if (__builtin_strcmp(cell, cells::C::kName) == 0) {                                                               \
    return dtype == Dtype::kFloat64 ? &Pointwise<cells::C, double>::kernels : &Pointwise<cells::C, float>::kernels; \
  }
  FUSEDNN_CELLS(FUSEDNN_POINTWISE)
#undef FUSEDNN_POINTWISE
  return nullptr;
}

const char* put_projected(const RecurrentShape& s, const Both<ForwardStep>& both) {
  return s.dtype == Dtype::kFloat64 ? run<projected_forward<double>, double>(s, s.proj, both)
                                    : run<projected_forward<float>, float>(s, s.proj, both);
}

const char* gather_projected(const RecurrentShape& s, const Both<BackwardStep>& both) {
  return s.dtype == Dtype::kFloat64 ? run<projected_backward<double>, double>(s, s.proj, both)
                                    : run<projected_backward<float>, float>(s, s.proj, both);
}

}  // namespace fusednn::cuda
