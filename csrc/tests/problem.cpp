#include "tests/problem.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>

#include "cuda/primitives/numbers.h"
#include "tests/check.h"
#include "tests/device.h"

extern "C" const fusednn::Provider* fusednn_provider();  // of the CUDA kernels

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

  Tensor(Dtype type, const Values& values, bool gpu) : dtype_(type), bytes_(input_bytes(type, values), gpu) {}
  // An output: poisoned, between guards.
  Tensor(Dtype type, size_t n, bool gpu) : dtype_(type), guard_(kGuard), bytes_(output_bytes(type, n), gpu) {}

  void* output() { return bytes_.data() + guard_; }
  const void* input() { return bytes_.data() + guard_; }

  Values values() const {
    const std::vector<char> bytes = bytes_.read();
    Values out;
    for (size_t i = guard_; i + guard_ < bytes.size(); i += bytes_of(dtype_)) out.push_back(take(dtype_, &bytes[i]));
    const auto intact = [](char c) { return c == '\x5a'; };
    CHECK(std::all_of(bytes.begin(), bytes.begin() + static_cast<long>(guard_), intact), "written before an output");
    CHECK(std::all_of(bytes.end() - static_cast<long>(guard_), bytes.end(), intact), "written behind an output");
    return out;
  }

 private:
  static std::vector<char> input_bytes(Dtype type, const Values& values) {
    std::vector<char> bytes(values.size() * bytes_of(type));
    for (size_t i = 0; i < values.size(); ++i) put(type, &bytes[i * bytes_of(type)], values[i]);
    return bytes;
  }
  static std::vector<char> output_bytes(Dtype type, size_t n) {
    std::vector<char> bytes(n * bytes_of(type) + 2 * kGuard, '\x5a');
    for (size_t i = 0; i < n; ++i) {
      put(type, &bytes[kGuard + i * bytes_of(type)], std::numeric_limits<double>::quiet_NaN());
    }
    return bytes;
  }

  Dtype dtype_;
  size_t guard_ = 0;
  Bytes bytes_;
};

// A library GEMM that rounds its result to the dtype, as real ones do.
void host_gemm(const Gemm& g) {
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

#if defined(FUSEDNN_EMULATE)

constexpr auto* device_gemm = host_gemm;

#else

template <class T>
__global__ void gemm_kernel(Gemm g) {
  const int64_t i = blockIdx.y, j = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (j >= g.n) return;
  const T *a = static_cast<const T*>(g.a), *b = static_cast<const T*>(g.b);
  double sum = 0;
  for (int64_t k = 0; k < g.k; ++k) {
    sum += static_cast<double>(cuda::widen(a[i * g.lda + k])) *
           static_cast<double>(cuda::widen(b[g.transpose_b ? j * g.ldb + k : k * g.ldb + j]));
  }
  static_cast<T*>(g.c)[i * g.ldc + j] = cuda::narrow<T>(static_cast<AccOf<T>>(sum));
}

void device_gemm(const Gemm& g) {
  const dim3 grid(static_cast<unsigned>((g.n + 127) / 128), static_cast<unsigned>(g.m));
  if (g.dtype == Dtype::kFloat64) gemm_kernel<double><<<grid, 128>>>(g);
  if (g.dtype == Dtype::kFloat32) gemm_kernel<float><<<grid, 128>>>(g);
  if (g.dtype == Dtype::kBFloat16) gemm_kernel<BFloat16><<<grid, 128>>>(g);
  if (g.dtype == Dtype::kFloat16) gemm_kernel<Float16><<<grid, 128>>>(g);
}

#endif

bool tf32 = false;

RecurrentShape shape_of(const Problem& p, const CellInfo& cell, Dtype dtype, int threads, const char* strategy) {
  RecurrentShape s{};
  s.cell = cell.name, s.dtype = dtype;
  s.batch = p.batch, s.steps = p.steps, s.rows = p.rows();
  s.hidden = p.hidden, s.proj = p.proj, s.directions = p.directions / p.heads, s.heads = p.heads, s.layers = 1;
  s.options.zoneout_h = p.zoneout_h, s.options.zoneout_c = p.zoneout_c;
  s.batch_sizes = p.batch_sizes.empty() ? nullptr : p.batch_sizes.data();
  s.threads = threads;
  if (strategy != nullptr) {
    s.gemm = device_gemm;
  } else if (p.library_gemm) {
    s.gemm = host_gemm;
  }
  s.strategy = strategy;
  s.allow_tf32 = tf32;
  return s;
}

// The workspace that a call asks for, full of NaN, between guards.
class Workspace {
 public:
  Workspace(size_t bytes, bool gpu) : bytes_(bytes), memory_(std::vector<char>(bytes + 3 * kAlign, '\xff'), gpu) {}
  void* data() { return memory_.data() + offset(); }
  void check() {
    const std::vector<char> found = memory_.read();
    const auto intact = [](char c) { return c == '\xff'; };
    const auto begin = found.begin() + static_cast<long>(offset());
    CHECK(std::all_of(found.begin(), begin, intact), "written before the workspace");
    CHECK(std::all_of(begin + static_cast<long>(bytes_), found.end(), intact), "written behind the workspace");
  }

 private:
  static constexpr size_t kAlign = 256;
  size_t offset() { return 2 * kAlign - reinterpret_cast<uintptr_t>(memory_.data()) % kAlign; }

  size_t bytes_;
  Bytes memory_;
};

// A call with the workspace that it asks for.
template <class Args>
struct Call {
  const char* (*run)(const Args&);
  Args args;
  Workspace workspace;

  Call(const char* (*run)(const Args&), size_t (*bytes)(const Args&), const Args& a, bool gpu)
      : run(run), args(a), workspace(bytes == nullptr ? 0 : bytes(a), gpu) {
    args.shape.workspace = bytes == nullptr ? nullptr : workspace.data();
  }
  void operator()() {
    const char* error = run(args);
    CHECK(error == nullptr, error);
  }
};

Values uniform_values(std::mt19937& random, Dtype dtype, long n, double scale) {
  std::uniform_real_distribution<double> uniform(-1, 1);
  Values v(static_cast<size_t>(n));
  for (double& x : v) x = round_to(dtype, uniform(random) * scale);
  return v;
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

// Of all layers, one after the other.
Values of_layers(const Problem& p, Values Problem::* which) {
  Values all = p.*which;
  for (const Problem& layer : p.above) all.insert(all.end(), (layer.*which).begin(), (layer.*which).end());
  return all;
}

}  // namespace

const char* cuda_strategy() {
  static const char* name = std::getenv("FUSEDNN_TEST_STRATEGY");
  return name == nullptr && kGpu ? "step" : name;
}

const Provider& provider_of(const char* strategy) {
  return strategy == nullptr ? cpu_provider() : *fusednn_provider();
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
  const auto fill = [&](long n, double scale) { return uniform_values(random, dtype, n, scale); };
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

Problem with_options(Problem p, long heads, const CellInfo& cell, Dtype dtype, unsigned seed) {
  std::mt19937 random(seed);
  const long tracks = p.directions;
  p.heads = heads;
  p.mask = uniform_values(random, dtype, tracks * p.batch * p.proj, 2);
  p.norm = uniform_values(random, dtype, tracks * cell.gates * p.hidden, 2);
  p.zoneout_h = 0.3, p.zoneout_c = cell.cell_state ? 0.6 : 0;
  for (long d = 0; d < tracks / heads; ++d) p.seeds.push_back(100 + d);
  return p;
}

Problem with_inputs(Problem p, long inputs, const CellInfo& cell, Dtype dtype, unsigned seed) {
  std::mt19937 random(seed);
  const long lines = p.directions * cell.gates * p.hidden;
  p.inputs = inputs;
  p.x = uniform_values(random, dtype, p.rows() * inputs, 1);
  p.w_ih = uniform_values(random, dtype, lines * inputs, 1 / std::sqrt(static_cast<double>(inputs)));
  if (p.bias) p.b_ih = uniform_values(random, dtype, lines, 1);
  p.gates.assign(static_cast<size_t>(p.rows() * lines), 0);
  for (size_t i = 0; i < p.gates.size(); ++i) {
    const size_t row = i / static_cast<size_t>(lines), line = i % static_cast<size_t>(lines);
    const size_t width = static_cast<size_t>(inputs);
    p.gates[i] = std::inner_product(&p.x[row * width], &p.x[row * width] + inputs, &p.w_ih[line * width],
                                    p.bias ? p.b_ih[line] : 0.);
  }
  return p;
}

Problem with_layers(Problem p, long layers, const CellInfo& cell, Dtype dtype, unsigned seed) {
  for (long l = 1; l < layers; ++l) {
    Problem layer = p;
    layer.above.clear();
    std::mt19937 random(seed + static_cast<unsigned>(l));
    for (Values* values : {&layer.h0, &layer.c0, &layer.w_hh, &layer.b_hh})
      std::shuffle(values->begin(), values->end(), random);
    const long lines = cell.gates * p.hidden;
    layer.w_ih = uniform_values(random, dtype, lines * p.hidden, 1.5 / std::sqrt(static_cast<double>(p.hidden)));
    if (p.bias) layer.b_ih = uniform_values(random, dtype, lines, 1);
    p.above.push_back(layer);
  }
  return p;
}

// The tensors of the options.
struct Asked {
  Tensor mask, norm;
  Bytes seeds;

  Asked(const Problem& p, Dtype dtype, bool gpu)
      : mask(dtype, p.mask, gpu), norm(dtype, p.norm, gpu), seeds(bytes(p), gpu) {}
  void put(const Problem& p, RecurrentOptions& o) {
    if (!p.mask.empty()) o.mask = mask.input();
    if (!p.norm.empty()) o.norm = norm.input();
    if (!p.seeds.empty()) o.seed = reinterpret_cast<const int64_t*>(seeds.data());
  }

 private:
  static std::vector<char> bytes(const Problem& p) {
    std::vector<char> out(p.seeds.size() * sizeof(int64_t));
    if (!out.empty()) std::memcpy(out.data(), p.seeds.data(), out.size());
    return out;
  }
};

struct ForwardCall::Parts {
  Tensor gates, x, w_ih, b_ih, h0, c0, w_hh, b_hh, w_hr, y, h_n, c_n, saved, states;
  Asked asked;
  std::vector<Tensor> weights;  // of the layers above the first
  std::vector<LayerWeights> above;
  std::unique_ptr<Call<RecurrentForward>> call;
};

ForwardCall::ForwardCall(const Problem& p, const CellInfo& cell, Dtype dtype, int threads, bool save,
                         const char* strategy) {
  const bool gpu = kGpu && strategy != nullptr;
  const size_t layers = p.above.size() + 1, rows = static_cast<size_t>(p.rows() * p.directions);
  const Values h0 = of_layers(p, &Problem::h0), c0 = of_layers(p, &Problem::c0);
  const auto input = [&](const Values& values) { return Tensor(dtype, values, gpu); };
  const auto output = [&](size_t n) { return Tensor(dtype, n, gpu); };
  parts_.reset(new Parts{input(p.gates),
                         input(p.x),
                         input(p.w_ih),
                         input(p.b_ih),
                         input(h0),
                         input(c0),
                         input(p.w_hh),
                         input(p.b_hh),
                         input(p.w_hr),
                         output((save ? layers : 1) * rows * static_cast<size_t>(p.proj)),
                         output(h0.size()),
                         output(c0.size()),
                         output(save ? layers * rows * static_cast<size_t>(cell.saved * p.hidden) : 0),
                         output(save && p.zones() ? rows * static_cast<size_t>(p.hidden) : 0),
                         Asked(p, dtype, gpu),
                         {},
                         {},
                         nullptr});
  Parts& t = *parts_;
  RecurrentForward a{};
  a.shape = shape_of(p, cell, dtype, threads, strategy);
  if (p.inputs == 0) a.gates = t.gates.input();
  if (p.inputs > 0) a.x = t.x.input(), a.w_ih = t.w_ih.input(), a.shape.inputs = p.inputs;
  if (p.inputs > 0 && p.bias) a.b_ih = t.b_ih.input();
  a.w_hh = t.w_hh.input();
  if (!p.from_zero) a.h0 = t.h0.input();
  if (cell.cell_state && !p.from_zero) a.c0 = t.c0.input();
  if (cell.cell_state) a.c_n = t.c_n.output();
  if (p.bias) a.b_hh = t.b_hh.input();
  if (p.projection) a.w_hr = t.w_hr.input();
  a.y = t.y.output(), a.h_n = t.h_n.output();
  if (save && cell.saved > 0) a.saved = t.saved.output();
  if (save && p.zones()) a.states = t.states.output();
  t.asked.put(p, a.shape.options);
  for (const Problem& layer : p.above) {
    for (const Values* values : {&layer.w_ih, &layer.w_hh, &layer.b_ih, &layer.b_hh})
      t.weights.push_back(input(*values));
    const auto last = t.weights.end();
    LayerWeights of{(last - 4)->input(), (last - 3)->input(), nullptr, nullptr};
    if (p.bias) of.b_ih = (last - 2)->input(), of.b_hh = (last - 1)->input();
    t.above.push_back(of);
  }
  a.shape.layers = static_cast<int>(layers), a.above = t.above.data(), a.last_y = layers > 1 && !save;
  const Provider& provider = provider_of(strategy);
  t.call = std::make_unique<Call<RecurrentForward>>(provider.forward, provider.forward_workspace, a, gpu);
}
ForwardCall::~ForwardCall() = default;
void ForwardCall::run() {
  (*parts_->call)();
}
Outputs ForwardCall::read() const {
  const char* error = finish();
  CHECK(error == nullptr, error);
  parts_->call->workspace.check();
  return {parts_->y.values(),
          parts_->h_n.values(),
          parts_->c_n.values(),
          parts_->saved.values(),
          parts_->states.values(),
          {},
          {}};
}

const RecurrentForward& ForwardCall::arguments() const {
  return parts_->call->args;
}

struct BackwardCall::Parts {
  Tensor grad_y, grad_h_n, grad_c_n, y, saved, states, normed, rstd, h0, c0, w_hh, w_hr;
  Tensor d_gates, d_recurrent, d_h0, d_c0, d_proj, d_products;
  Asked asked;
  std::unique_ptr<Call<RecurrentBackward>> call;
};

BackwardCall::BackwardCall(const Problem& p, const Outputs& f, const CellInfo& cell, Dtype dtype, int threads,
                           const char* strategy) {
  const bool gpu = kGpu && strategy != nullptr;
  const size_t rows = static_cast<size_t>(p.rows() * p.directions), width = static_cast<size_t>(cell.gates * p.hidden);
  const auto input = [&](const Values& values) { return Tensor(dtype, values, gpu); };
  const auto output = [&](size_t n) { return Tensor(dtype, n, gpu); };
  parts_.reset(new Parts{input(p.grad_y),
                         input(p.grad_h_n),
                         input(p.grad_c_n),
                         input(f.y),
                         input(f.saved),
                         input(f.states),
                         input(f.normed),
                         input(f.rstd),
                         input(p.h0),
                         input(p.c0),
                         input(p.w_hh),
                         input(p.w_hr),
                         output(rows * width),
                         output(cell.split ? rows * width : 0),
                         output(p.h0.size()),
                         output(p.c0.size()),
                         output(p.projection ? rows * static_cast<size_t>(p.proj) : 0),
                         output(p.norm.empty() ? 0 : rows * width),
                         Asked(p, dtype, gpu),
                         nullptr});
  Parts& t = *parts_;
  RecurrentBackward a{};
  a.shape = shape_of(p, cell, dtype, threads, strategy);
  a.y = t.y.input(), a.saved = t.saved.input(), a.h0 = t.h0.input(), a.w_hh = t.w_hh.input();
  if (!p.grad_y.empty()) a.grad_y = t.grad_y.input();
  if (!p.grad_h_n.empty()) a.grad_h_n = t.grad_h_n.input();
  if (!p.grad_c_n.empty()) a.grad_c_n = t.grad_c_n.input();
  if (cell.cell_state) a.c0 = t.c0.input(), a.d_c0 = t.d_c0.output();
  if (p.projection) a.w_hr = t.w_hr.input(), a.d_proj = t.d_proj.output();
  a.d_gates = t.d_gates.output(), a.d_h0 = t.d_h0.output();
  if (cell.split) a.d_recurrent = t.d_recurrent.output();
  if (p.zones()) a.states = t.states.input();
  if (!p.norm.empty()) a.normed = t.normed.input(), a.rstd = t.rstd.input(), a.d_products = t.d_products.output();
  t.asked.put(p, a.shape.options);
  const Provider& provider = provider_of(strategy);
  t.call = std::make_unique<Call<RecurrentBackward>>(provider.backward, provider.backward_workspace, a, gpu);
}
BackwardCall::~BackwardCall() = default;
void BackwardCall::run() {
  (*parts_->call)();
}
Gradients BackwardCall::read() const {
  const char* error = finish();
  CHECK(error == nullptr, error);
  parts_->call->workspace.check();
  return {parts_->d_gates.values(), parts_->d_recurrent.values(), parts_->d_h0.values(),
          parts_->d_c0.values(),    parts_->d_proj.values(),      parts_->d_products.values()};
}

double distance(const Values& got, const Values& truth, double eps) {
  if (got.size() != truth.size()) return std::numeric_limits<double>::infinity();
  double error = 0, largest = 1e-30;
  for (size_t i = 0; i < got.size(); ++i) {
    if (!(std::fabs(got[i] - truth[i]) <= error)) error = std::fabs(got[i] - truth[i]);
    largest = std::max(largest, std::fabs(truth[i]));
  }
  return error / (eps * largest);
}

Outputs run_forward(const Problem& p, const CellInfo& cell, Dtype dtype, int threads, bool save) {
  ForwardCall call(p, cell, dtype, threads, save);
  call.run();
  return call.read();
}

Gradients run_backward(const Problem& p, const Outputs& f, const CellInfo& cell, Dtype dtype, int threads) {
  BackwardCall call(p, f, cell, dtype, threads);
  call.run();
  return call.read();
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
