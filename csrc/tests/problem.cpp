#include "tests/problem.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>

#include "tests/check.h"

extern "C" const fusednn::Provider* fusednn_provider();  // of the emulated kernels

namespace fusednn::testing {
namespace {

size_t bytes_of(Dtype dtype) {
  return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2;
}

float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

// x must be a value of the dtype.
uint16_t half_of(double x) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  x = std::fabs(x);
  if (std::isnan(x)) return sign | 0x7e00;
  if (std::isinf(x)) return sign | 0x7c00;
  if (x < 0x1p-14) return static_cast<uint16_t>(sign | static_cast<uint16_t>(x * 0x1p24));
  const int e = std::ilogb(x);
  return static_cast<uint16_t>(sign | ((e + 15) << 10) | static_cast<uint16_t>((std::ldexp(x, -e) - 1) * 1024));
}

double double_of_half(uint16_t h) {
  const double sign = h & 0x8000 ? -1 : 1;
  const int e = (h >> 10) & 31, m = h & 1023;
  if (e == 31) return m != 0 ? std::numeric_limits<double>::quiet_NaN() : sign * INFINITY;
  return sign * (e == 0 ? std::ldexp(m, -24) : std::ldexp(1024 + m, e - 25));
}

void put(Dtype dtype, char* to, double x) {
  if (dtype == Dtype::kFloat64) std::memcpy(to, &x, 8);
  const float f = static_cast<float>(x);
  if (dtype == Dtype::kFloat32) std::memcpy(to, &f, 4);
  const uint16_t b = static_cast<uint16_t>(bits_of(f) >> 16), h = half_of(x);
  if (dtype == Dtype::kBFloat16) std::memcpy(to, &b, 2);
  if (dtype == Dtype::kFloat16) std::memcpy(to, &h, 2);
}

double take(Dtype dtype, const char* from) {
  double x;
  float f;
  uint16_t h;
  std::memcpy(&h, from, 2);
  if (dtype == Dtype::kFloat16) return double_of_half(h);
  if (dtype == Dtype::kBFloat16) return float_of(static_cast<uint32_t>(h) << 16);
  if (dtype == Dtype::kFloat32) return std::memcpy(&f, from, 4), f;
  return std::memcpy(&x, from, 8), x;
}

class Tensor {
 public:
  static constexpr size_t kGuard = 64;

  Tensor(Dtype type, const Values& values) : dtype(type), bytes(values.size() * bytes_of(type)) {
    for (size_t i = 0; i < values.size(); ++i) put(dtype, bytes.data() + i * bytes_of(dtype), values[i]);
  }
  // An output: poisoned, between guards.
  Tensor(Dtype type, size_t n) : dtype(type), bytes(n * bytes_of(type) + 2 * kGuard, '\x5a'), guard(kGuard) {
    for (size_t i = 0; i < n; ++i) put(dtype, data() + i * bytes_of(dtype), std::numeric_limits<double>::quiet_NaN());
  }

  char* data() { return bytes.data() + guard; }
  void* output() { return data(); }
  const void* input() { return data(); }

  Values values() const {
    Values out;
    for (size_t i = guard; i + guard < bytes.size(); i += bytes_of(dtype)) out.push_back(take(dtype, bytes.data() + i));
    const auto intact = [](char c) { return c == '\x5a'; };
    CHECK(std::all_of(bytes.begin(), bytes.begin() + static_cast<long>(guard), intact), "written before an output");
    CHECK(std::all_of(bytes.end() - static_cast<long>(guard), bytes.end(), intact), "written behind an output");
    return out;
  }

 private:
  Dtype dtype;
  std::vector<char> bytes;
  size_t guard = 0;
};

// A library GEMM that rounds its result to the dtype, as real ones do.
void plain_gemm(const Gemm& g) {
  const size_t size = bytes_of(g.dtype);
  const auto element = [&](const void* base, int64_t at) {
    return take(g.dtype, static_cast<const char*>(base) + static_cast<size_t>(at) * size);
  };
  for (int64_t i = 0; i < g.m; ++i) {
    for (int64_t j = 0; j < g.n; ++j) {
      double sum = 0;
      for (int64_t k = 0; k < g.k; ++k) {
        sum += element(g.a, i * g.lda + k) * element(g.b, g.transpose_b ? j * g.ldb + k : k * g.ldb + j);
      }
      put(g.dtype, static_cast<char*>(g.c) + static_cast<size_t>(i * g.ldc + j) * size, round_to(g.dtype, sum));
    }
  }
}

bool tf32 = false;

RecurrentShape shape_of(const Problem& p, const CellInfo& cell, Dtype dtype, int threads) {
  const bool library_gemm = p.library_gemm || emulated_strategy() != nullptr;
  RecurrentShape s{};
  s.cell = cell.name, s.dtype = dtype;
  s.batch = p.batch, s.steps = p.steps, s.rows = p.rows();
  s.hidden = p.hidden, s.proj = p.proj, s.directions = p.directions;
  s.batch_sizes = p.batch_sizes.empty() ? nullptr : p.batch_sizes.data();
  s.threads = threads;
  s.gemm = library_gemm ? plain_gemm : nullptr;
  s.strategy = emulated_strategy();
  s.allow_tf32 = tf32;
  return s;
}

// The workspace that a call asks for, full of NaN, between guards.
template <class Args>
void call(const char* (*run)(const Args&), size_t (*bytes)(const Args&), Args& args) {
  constexpr size_t kAlign = 256;
  std::vector<char> memory(bytes == nullptr ? 0 : bytes(args) + 3 * kAlign, '\xff');
  char* start = memory.data() + kAlign;
  start += kAlign - reinterpret_cast<uintptr_t>(start) % kAlign;
  args.shape.workspace = memory.empty() ? nullptr : start;
  const char* error = run(args);
  CHECK(error == nullptr, error);
  const auto intact = [](char c) { return c == '\xff'; };
  if (!memory.empty()) {
    CHECK(std::all_of(memory.data(), start, intact), "written before the workspace");
    CHECK(std::all_of(start + bytes(args), memory.data() + memory.size(), intact), "written behind the workspace");
  }
}

double identity(double x) {
  return x;
}
double to_bfloat16(double x) {
  return round_to(Dtype::kBFloat16, x);
}
double to_float16(double x) {
  return round_to(Dtype::kFloat16, x);
}

Rounding rounding_of(Dtype dtype) {
  return dtype == Dtype::kBFloat16 ? to_bfloat16 : dtype == Dtype::kFloat16 ? to_float16 : identity;
}

}  // namespace

const char* emulated_strategy() {
  static const char* name = std::getenv("FUSEDNN_TEST_STRATEGY");
  return name;
}

const Provider& provider() {
  return emulated_strategy() == nullptr ? cpu_provider() : *fusednn_provider();
}

void allow_tf32(bool allow) {
  tf32 = allow;
}

double round_to(Dtype dtype, double x) {
  if (dtype == Dtype::kFloat64 || !std::isfinite(x) || x == 0) return x;
  if (dtype == Dtype::kFloat32) return static_cast<float>(x);
  const int digits = dtype == Dtype::kBFloat16 ? 8 : 11, least = dtype == Dtype::kBFloat16 ? -126 : -14;
  const int shift = std::max(std::ilogb(x), least) - (digits - 1);
  const double rounded = std::ldexp(std::nearbyint(std::ldexp(x, -shift)), shift);
  const double largest = dtype == Dtype::kBFloat16 ? 0x1.fep127 : 65504;
  return std::fabs(rounded) > largest ? std::copysign(INFINITY, x) : rounded;
}

Problem make_problem(const Size& s, const CellInfo& cell, Dtype dtype, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> uniform(-1, 1);
  const auto fill = [&](long n, double scale) {
    Values v(static_cast<size_t>(n));
    for (double& x : v) x = round_to(dtype, uniform(random) * scale);
    return v;
  };
  Problem p{};
  p.batch = s.batch, p.steps = s.steps, p.hidden = s.hidden, p.directions = s.directions;
  p.proj = s.proj > 0 ? s.proj : s.hidden;
  p.projection = s.proj > 0;
  p.bias = s.bias;
  if (s.packed) {
    for (long t = 0; t < s.steps; ++t) p.batch_sizes.push_back(s.batch - s.batch * t / s.steps);
    if (s.steps > 2) p.batch_sizes[1] = p.batch_sizes[0];
  }
  const long width = cell.gates * p.hidden, rows = p.rows() * p.directions;
  p.gates = fill(rows * width, 1);
  p.h0 = fill(p.directions * p.batch * p.proj, 1);
  if (cell.cell_state) p.c0 = fill(p.directions * p.batch * p.hidden, 1);
  p.w_hh = fill(p.directions * width * p.proj, 1.5 / std::sqrt(static_cast<double>(p.proj)));
  if (s.bias) p.b_hh = fill(p.directions * width, 1);
  if (p.projection) p.w_hr = fill(p.directions * p.proj * p.hidden, 1 / std::sqrt(static_cast<double>(p.hidden)));
  p.grad_y = fill(rows * p.proj, 1);
  p.grad_h_n = fill(p.directions * p.batch * p.proj, 1);
  if (cell.cell_state) p.grad_c_n = fill(p.directions * p.batch * p.hidden, 1);
  return p;
}

Outputs run_forward(const Problem& p, const CellInfo& cell, Dtype dtype, int threads, bool save) {
  const size_t rows = static_cast<size_t>(p.rows() * p.directions);
  Tensor gates(dtype, p.gates), h0(dtype, p.h0), c0(dtype, p.c0), w_hh(dtype, p.w_hh), b_hh(dtype, p.b_hh),
      w_hr(dtype, p.w_hr);
  Tensor y(dtype, rows * static_cast<size_t>(p.proj)), h_n(dtype, p.h0.size()), c_n(dtype, p.c0.size()),
      saved(dtype, save ? rows * static_cast<size_t>(cell.saved * p.hidden) : 0);
  RecurrentForward a{};
  a.shape = shape_of(p, cell, dtype, threads);
  a.gates = gates.input(), a.h0 = h0.input(), a.w_hh = w_hh.input();
  if (cell.cell_state) a.c0 = c0.input(), a.c_n = c_n.output();
  if (p.bias) a.b_hh = b_hh.input();
  if (p.projection) a.w_hr = w_hr.input();
  a.y = y.output(), a.h_n = h_n.output();
  if (save && cell.saved > 0) a.saved = saved.output();
  call(provider().forward, provider().forward_workspace, a);
  return {y.values(), h_n.values(), c_n.values(), saved.values()};
}

Gradients run_backward(const Problem& p, const Outputs& f, const CellInfo& cell, Dtype dtype, int threads) {
  const size_t rows = static_cast<size_t>(p.rows() * p.directions);
  Tensor grad_y(dtype, p.grad_y), grad_h_n(dtype, p.grad_h_n), grad_c_n(dtype, p.grad_c_n), y(dtype, f.y),
      saved(dtype, f.saved), h0(dtype, p.h0), c0(dtype, p.c0), w_hh(dtype, p.w_hh), w_hr(dtype, p.w_hr);
  const size_t width = static_cast<size_t>(cell.gates * p.hidden);
  Tensor d_gates(dtype, rows * width), d_recurrent(dtype, cell.split ? rows * width : 0), d_h0(dtype, p.h0.size()),
      d_c0(dtype, p.c0.size()), d_proj(dtype, p.projection ? rows * static_cast<size_t>(p.proj) : 0);
  RecurrentBackward a{};
  a.shape = shape_of(p, cell, dtype, threads);
  a.y = y.input(), a.saved = saved.input(), a.h0 = h0.input(), a.w_hh = w_hh.input();
  if (!p.grad_y.empty()) a.grad_y = grad_y.input();
  if (!p.grad_h_n.empty()) a.grad_h_n = grad_h_n.input();
  if (!p.grad_c_n.empty()) a.grad_c_n = grad_c_n.input();
  if (cell.cell_state) a.c0 = c0.input(), a.d_c0 = d_c0.output();
  if (p.projection) a.w_hr = w_hr.input(), a.d_proj = d_proj.output();
  a.d_gates = d_gates.output(), a.d_h0 = d_h0.output();
  if (cell.split) a.d_recurrent = d_recurrent.output();
  call(provider().backward, provider().backward_workspace, a);
  return {d_gates.values(), d_recurrent.values(), d_h0.values(), d_c0.values(), d_proj.values()};
}

Outputs naive_forward(const Problem& p, const CellInfo& cell, Dtype dtype) {
#define FUSEDNN_NAIVE(C) \
  if (std::strcmp(cell.name, cells::C::kName) == 0) return Naive<cells::C>(p, rounding_of(dtype)).forward();
  FUSEDNN_CELLS(FUSEDNN_NAIVE)
#undef FUSEDNN_NAIVE
  return {};
}

Gradients naive_backward(const Problem& p, const CellInfo& cell, Dtype dtype) {
#define FUSEDNN_NAIVE(C) \
  if (std::strcmp(cell.name, cells::C::kName) == 0) return Naive<cells::C>(p, rounding_of(dtype)).backward();
  FUSEDNN_CELLS(FUSEDNN_NAIVE)
#undef FUSEDNN_NAIVE
  return {};
}

}  // namespace fusednn::testing
