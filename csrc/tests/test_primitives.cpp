// Each primitive of csrc/cuda/primitives against its meaning, written here once more as plain loops. The file compiles
// as C++ for the emulation and as CUDA for a GPU.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "cuda/approximate.h"
#include "cuda/launch.h"
#include "cuda/primitives/cluster.h"
#include "cuda/primitives/dependency.h"
#include "cuda/primitives/grid.h"
#include "cuda/primitives/memory.h"
#include "cuda/primitives/mma.h"
#include "cuda/primitives/numbers.h"
#include "cuda/primitives/warp.h"
#include "tests/check.h"
#include "tests/device.h"

namespace {

using namespace fusednn;
using namespace fusednn::cuda;
using testing::Memory, testing::finish;

#if defined(FUSEDNN_EMULATE)

bool clusters_exist() {
  return true;
}

template <class Body>
void over_seeds(Body body) {
  const uint64_t before = emulation::seed();
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    emulation::set_seed(seed);
    body();
  }
  emulation::set_seed(before);
}

#else

bool clusters_exist() {
  return programmatic_launch_exists();
}

template <class Body>
void over_seeds(Body body) {
  for (int i = 0; i < 10; ++i) body();
}

#endif

template <class... Parameters, class... Arguments>
void start(void (*kernel)(Parameters...), const LaunchShape& shape, Arguments... arguments) {
  const char* failure = launch_as("test", kernel, shape, nullptr, arguments...);
  CHECK(failure == nullptr, failure);
}

template <class... Parameters, class... Arguments>
void run(void (*kernel)(Parameters...), const LaunchShape& shape, Arguments... arguments) {
  start(kernel, shape, arguments...);
  const char* failure = finish();
  CHECK(failure == nullptr, failure);
}

LaunchShape one_block(unsigned threads, size_t shared_bytes = 0) {
  LaunchShape shape;
  shape.threads = threads, shape.shared_bytes = shared_bytes;
  return shape;
}

LaunchShape blocks(unsigned count, unsigned threads, size_t shared_bytes = 0) {
  LaunchShape shape = one_block(threads, shared_bytes);
  shape.grid[0] = count;
  return shape;
}

template <class T>
std::vector<T> counting(size_t count) {
  std::vector<T> values(count);
  for (size_t i = 0; i < count; ++i) values[i] = static_cast<T>(i * 7 + 3);
  return values;
}

void expect(const std::vector<u32>& got, size_t at, u32 expected) {
  CHECK(got[at] == expected, "element " << at << " is " << got[at] << ", not " << expected);
}

// ------- numbers

// Floating point with a sign, kExponent bits and kDigits bits, as IEEE 754 defines it.
template <int kExponent, int kDigits>
struct Format {
  static constexpr int kTop = (1 << kExponent) - 1, kBias = kTop / 2;
  // The tie of the largest value and the power of two behind it.
  static inline const double kOverflow = std::ldexp(2 - std::ldexp(0.5, -kDigits), kBias);

  static double value(u32 bits) {
    const int exponent = static_cast<int>(bits >> kDigits) & kTop,
              digits = static_cast<int>(bits) & ((1 << kDigits) - 1);
    double size = std::ldexp(digits, 1 - kBias - kDigits);
    if (exponent > 0) size = std::ldexp(digits + (1 << kDigits), exponent - kBias - kDigits);
    if (exponent == kTop) size = digits == 0 ? HUGE_VAL : std::numeric_limits<double>::quiet_NaN();
    return bits >> (kExponent + kDigits) & 1 ? -size : size;
  }

  // round takes a number of last digits to a whole one.
  static double rounded(float x, double (*round)(double)) {
    if (!std::isfinite(x)) return x;
    const double last = std::ldexp(1.0, std::max(x == 0 ? 0 : std::ilogb(x), 1 - kBias) - kDigits);
    const double out = round(x / last) * last;
    const double limit = std::ldexp(1.0, kBias + 1);
    return std::fabs(out) < limit ? out : std::copysign(HUGE_VAL, out);
  }
};

template <class T>
struct FormatOf;
template <>
struct FormatOf<BFloat16> : Format<8, 7> {};
template <>
struct FormatOf<Float16> : Format<5, 10> {};

bool same(double a, double b) {
  return std::isnan(b) ? std::isnan(a) : a == b && std::signbit(a) == std::signbit(b);
}

float float_of(u32 bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

template <class T>
__global__ void widen_all(const u16* in, float* out, u32 count) {
  for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) out[i] = widen(T{in[i]});
}

template <class T>
__global__ void narrow_all(const float* in, u16* out, u32 count) {
  for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
    out[i] = narrow<T>(in[i]).bits;
  }
}

__global__ void tf32_all(const float* in, u32* out, u32 count) {
  for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) out[i] = to_tf32(in[i]);
}

__global__ void keep_all(const float* in, const double* in64, float* out, double* out64) {
  out[threadIdx.x] = widen(narrow<float>(widen(in[threadIdx.x])));
  out64[threadIdx.x] = widen(narrow<double>(widen(in64[threadIdx.x])));
}

// What rounding gets wrong: each value of the format with its neighbours, each tie with its neighbours, both limits,
// infinity and NaN; and samples of all floats.
template <class F>
std::vector<float> hard_cases(u32 patterns) {
  std::vector<float> x;
  const auto with_neighbours = [&](double value) {
    const float v = static_cast<float>(value);
    x.insert(x.end(), {v, std::nextafter(v, -HUGE_VALF), std::nextafter(v, HUGE_VALF)});
  };
  for (u32 p = 0; p < patterns; ++p) {
    const double value = F::value(p), next = F::value(p + 1);
    if (!std::isfinite(value)) continue;
    with_neighbours(value);
    if (std::isfinite(next)) with_neighbours((value + next) / 2);
  }
  for (const double sign : {-1.0, 1.0}) {
    with_neighbours(sign * F::kOverflow);
    x.insert(x.end(), {float_of(0x7f800000), float_of(0xff800000), float_of(0x7fc00000), float_of(0xffc00000)});
    x.insert(x.end(), {float_of(0x7f800001), float_of(0x7fffffff), float_of(0xffffffff), float_of(0x7f801fff)});
  }
  for (uint64_t bits = 0; bits < 0x100000000; bits += 8209) x.push_back(float_of(static_cast<u32>(bits)));
  return x;
}

template <class T>
void check_conversions() {
  using F = FormatOf<T>;
  constexpr u32 kPatterns = 65536;
  std::vector<u16> all(kPatterns);
  std::iota(all.begin(), all.end(), u16{0});
  Memory<u16> patterns(all), back(kPatterns);
  Memory<float> wide(kPatterns);
  run(widen_all<T>, blocks(4, 256), patterns.data(), wide.data(), kPatterns);
  run(narrow_all<T>, blocks(4, 256), wide.data(), back.data(), kPatterns);
  const std::vector<float> widened = wide.read();
  const std::vector<u16> narrowed = back.read();
  for (u32 p = 0; p < kPatterns; ++p) {
    CHECK(same(widened[p], F::value(p)), "pattern " << p << " widens to " << widened[p]);
    const bool kept = std::isnan(F::value(p)) ? std::isnan(F::value(narrowed[p])) : narrowed[p] == p;
    CHECK(kept, "pattern " << p << " comes back as " << narrowed[p]);
  }

  const std::vector<float> cases = hard_cases<F>(kPatterns);
  Memory<float> in(cases);
  Memory<u16> out(cases.size());
  run(narrow_all<T>, blocks(4, 256), in.data(), out.data(), static_cast<u32>(cases.size()));
  const std::vector<u16> got = out.read();
  for (size_t i = 0; i < cases.size(); ++i) {
    CHECK(same(F::value(got[i]), F::rounded(cases[i], std::nearbyint)), cases[i] << " narrows to pattern " << got[i]);
  }
}

TEST(bfloat16_widens_exactly_and_narrows_to_nearest_even) {
  check_conversions<BFloat16>();
}

TEST(float16_widens_exactly_and_narrows_to_nearest_even) {
  check_conversions<Float16>();
}

TEST(float_and_double_stay_as_they_are) {
  std::vector<float> x(32);
  std::vector<double> x64(32);
  for (int i = 0; i < 32; ++i) x[i] = std::ldexp(-1.1f, 8 * i - 140), x64[i] = std::ldexp(1.1, 60 * i - 1070);
  Memory<float> in(x), out(32);
  Memory<double> in64(x64), out64(32);
  run(keep_all, one_block(32), in.data(), in64.data(), out.data(), out64.data());
  CHECK(out.read() == x && out64.read() == x64, "a value changed");
}

TEST(tf32_rounds_ties_away_and_keeps_nan) {
  using F = Format<8, 10>;
  const std::vector<float> cases = hard_cases<F>(1u << 19);
  Memory<float> in(cases);
  Memory<u32> out(cases.size());
  run(tf32_all, blocks(4, 256), in.data(), out.data(), static_cast<u32>(cases.size()));
  const std::vector<u32> got = out.read();
  for (size_t i = 0; i < cases.size(); ++i) {
    // The tensor cores see the 19 upper bits.
    CHECK(same(F::value(got[i] >> 13), F::rounded(cases[i], std::round)), cases[i] << " becomes " << got[i]);
    CHECK(std::isnan(cases[i]) || (got[i] & 0x1fff) == 0, cases[i] << " leaves digits: " << got[i]);
  }
}

// ------- functions

__global__ void functions_of_all(const float* in, float* powers, float* reciprocals, u32 count) {
  for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
    powers[i] = exp2_approximate(in[i]);
    reciprocals[i] = reciprocal_approximate(in[i]);
  }
}

// Every 4099th float, and what lies at the edges.
std::vector<float> all_kinds() {
  std::vector<float> x{0.f, -0.f, HUGE_VALF, -HUGE_VALF, float_of(0x7fc00000), 0x1p-126f, -0x1p-126f, 0x1p-127f, 1.f};
  for (uint64_t bits = 0; bits < 0x100000000; bits += 4099) x.push_back(float_of(static_cast<u32>(bits)));
  return x;
}

double without_subnormal(double x) {
  return std::fabs(x) < 0x1p-126 ? std::copysign(0.0, x) : x;
}

// Within the documented relative error of a function; beyond the normal numbers zero or infinity.
void expect_near(float x, float got, double exact, double error) {
  const double size = std::fabs(got);
  const bool right = std::isnan(exact)                   ? std::isnan(got)
                     : std::fabs(exact) < 0x1p-125       ? size < 0x1.01p-125
                     : std::fabs(exact) > 0x1.fffff8p127 ? size > 0x1.fffffp127
                                                         : std::fabs(got - exact) <= error * std::fabs(exact);
  CHECK(right, x << " gives " << got << ", not " << exact);
}

TEST(functions_of_the_hardware_keep_their_documented_error) {
  const std::vector<float> x = all_kinds();
  Memory<float> in(x), powers(x.size()), reciprocals(x.size());
  run(functions_of_all, blocks(4, 256), in.data(), powers.data(), reciprocals.data(), static_cast<u32>(x.size()));
  const std::vector<float> got_powers = powers.read(), got_reciprocals = reciprocals.read();
  for (size_t i = 0; i < x.size(); ++i) {
    const double value = without_subnormal(x[i]);
    expect_near(x[i], got_powers[i], std::exp2(value), kExp2Error);
    expect_near(x[i], got_reciprocals[i], 1 / value, kReciprocalError);
  }
}

template <class T>
__global__ void gates_of_all(u16* sigmoids, u16* tanhs, u32 count) {
  for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
    const ComputedOf<T> x = widen(T{static_cast<u16>(i)});
    sigmoids[i] = narrow<T>(static_cast<float>(cells::sigmoid(x))).bits;
    tanhs[i] = narrow<T>(static_cast<float>(cells::tanh(x))).bits;
  }
}

// Of every number of T: rounded to T, a function lies within the rounding and a 16th of it beside the exact value;
// where T or fp32 has no normal numbers, within their distance from zero.
template <class T>
void check_gates(double eps) {
  using F = FormatOf<T>;
  constexpr u32 kPatterns = 65536;
  Memory<u16> sigmoids(kPatterns), tanhs(kPatterns);
  run(gates_of_all<T>, blocks(4, 256), sigmoids.data(), tanhs.data(), kPatterns);
  const std::vector<u16> got_sigmoids = sigmoids.read(), got_tanhs = tanhs.read();
  for (u32 p = 0; p < kPatterns; ++p) {
    const double x = F::value(p), sigmoid = F::value(got_sigmoids[p]), tanh = F::value(got_tanhs[p]);
    if (std::isnan(x)) {
      CHECK(std::isnan(sigmoid) && std::isnan(tanh), "NaN gives " << sigmoid << " and " << tanh);
      continue;
    }
    const double limit = std::ldexp(eps, 1 - F::kBias) + 0x1p-126, close = (0.5 + 1. / 32) * eps;
    const double exact = 1 / (1 + std::exp(-x));
    CHECK(std::fabs(sigmoid - exact) <= close * exact + limit, "sigmoid of " << x << " is " << sigmoid);
    CHECK(std::fabs(tanh - std::tanh(x)) <= close * std::fabs(std::tanh(x)) + limit, "tanh of " << x << " is " << tanh);
    CHECK(sigmoid >= 0 && sigmoid <= 1 && std::fabs(tanh) <= 1, x << " gives " << sigmoid << " and " << tanh);
  }
}

TEST(gates_of_bfloat16_are_rounded_from_nearly_exact_values) {
  check_gates<BFloat16>(0x1p-7);
}

TEST(gates_of_float16_are_rounded_from_nearly_exact_values) {
  check_gates<Float16>(0x1p-10);
}

// ------- warps

__global__ void swap_lanes(u32* out, u32 rounds) {
  u32* shared = shared_memory<u32>();
  const unsigned other = threadIdx.x ^ 31u;
  u32 mine = threadIdx.x;
  for (u32 r = 0; r < rounds; ++r) {
    shared[threadIdx.x] = mine;
    warp_sync();
    mine = 3 * shared[other] + r;
    warp_sync();
  }
  out[threadIdx.x] = mine;
}

TEST(warp_sync_shows_every_lane_what_the_others_wrote) {
  over_seeds([] {
    Memory<u32> out(96);
    run(swap_lanes, one_block(96, 96 * 4), out.data(), 5u);
    const std::vector<u32> got = out.read();
    for (u32 i = 0; i < 96; ++i) {
      u32 expected = i ^ 31u;  // five swaps are one
      for (u32 r = 0; r < 5; ++r) expected = 3 * expected + r;
      expect(got, i, expected);
    }
  });
}

__global__ void ask_lanes(const u32* in, const u32* from, u32* shuffled, u32* voted, u32* transposed) {
  const unsigned i = threadIdx.x;
  shuffled[i] = shuffle(in[i], from[i]);
  voted[i] = cuda::ballot(in[i] % 3 == 0);  // CUDA has a ballot() of its own
  transposed[i] = transpose_8x8(in[i]);
}

TEST(shuffle_ballot_and_transpose_move_values_between_lanes) {
  std::mt19937 random(1);
  over_seeds([&] {
    constexpr u32 kThreads = 128;
    std::vector<u32> in(kThreads), from(kThreads);
    for (u32& v : in) v = static_cast<u32>(random());
    for (u32& v : from) v = static_cast<u32>(random() % 64);  // lanes count modulo 32
    Memory<u32> in_memory(in), from_memory(from), shuffled(kThreads), voted(kThreads), transposed(kThreads);
    run(ask_lanes, one_block(kThreads), in_memory.data(), from_memory.data(), shuffled.data(), voted.data(),
        transposed.data());
    const std::vector<u32> got_shuffled = shuffled.read(), got_voted = voted.read(), got_transposed = transposed.read();
    for (u32 warp = 0; warp < kThreads; warp += 32) {
      u16 matrix[8][8];
      u32 votes = 0;
      for (u32 l = 0; l < 32; ++l) {
        matrix[l / 4][l % 4 * 2] = static_cast<u16>(in[warp + l]);
        matrix[l / 4][l % 4 * 2 + 1] = static_cast<u16>(in[warp + l] >> 16);
        if (in[warp + l] % 3 == 0) votes |= 1u << l;
      }
      for (u32 l = 0; l < 32; ++l) {
        const u32 row = l / 4, column = l % 4 * 2;
        expect(got_shuffled, warp + l, in[warp + from[warp + l] % 32]);
        expect(got_voted, warp + l, votes);
        expect(got_transposed, warp + l, matrix[column][row] | static_cast<u32>(matrix[column + 1][row]) << 16);
      }
    }
  });
}

// ------- the tensor cores

template <class T>
FUSEDNN_DEVICE u32 pair(float low, float high) {
  return narrow<T>(low).bits | static_cast<u32>(narrow<T>(high).bits) << 16;
}

// Two times d += a b, a of 16 x 16 and b of 16 x 8 elements, one problem a warp.
template <class T>
__global__ void product_16_bits(const float* a, const float* b, float* d) {
  const unsigned warp = warp_of_block(), g = lane_of_warp() / 4, t = lane_of_warp() % 4;
  a += warp * 256, b += warp * 128, d += warp * 128;
  const auto left = [&](unsigned row, unsigned k) { return pair<T>(a[row * 16 + k], a[row * 16 + k + 1]); };
  const auto right = [&](unsigned k, unsigned column) { return pair<T>(b[k * 8 + column], b[(k + 1) * 8 + column]); };
  const u32 fragment[4] = {left(g, 2 * t), left(g + 8, 2 * t), left(g, 2 * t + 8), left(g + 8, 2 * t + 8)};
  float* place[4] = {d + g * 8 + 2 * t, d + g * 8 + 2 * t + 1, d + g * 8 + 64 + 2 * t, d + g * 8 + 64 + 2 * t + 1};
  float sum[4] = {*place[0], *place[1], *place[2], *place[3]};
  for (int i = 0; i < 2; ++i) mma(T{}, sum, fragment, right(2 * t, g), right(2 * t + 8, g));
  for (int i = 0; i < 4; ++i) *place[i] = sum[i];
}

// The same of depth 8; `rest` are bits of the operands that must not matter.
__global__ void product_tf32(const float* a, const float* b, float* d, u32 rest) {
  const unsigned warp = warp_of_block(), g = lane_of_warp() / 4, t = lane_of_warp() % 4;
  a += warp * 128, b += warp * 64, d += warp * 128;
  const auto left = [&](unsigned row, unsigned k) { return to_tf32(a[row * 8 + k]) | rest; };
  const auto right = [&](unsigned k, unsigned column) { return to_tf32(b[k * 8 + column]) | rest; };
  const u32 fragment[4] = {left(g, t), left(g + 8, t), left(g, t + 4), left(g + 8, t + 4)};
  float* place[4] = {d + g * 8 + 2 * t, d + g * 8 + 2 * t + 1, d + g * 8 + 64 + 2 * t, d + g * 8 + 64 + 2 * t + 1};
  float sum[4] = {*place[0], *place[1], *place[2], *place[3]};
  for (int i = 0; i < 2; ++i) mma_tf32(sum, fragment, right(t, g), right(t + 4, g));
  for (int i = 0; i < 4; ++i) *place[i] = sum[i];
}

// The kernel gets a, b and d; all values are small integers, so that every order of summation gives the same.
template <class Launch>
void check_product(size_t depth, int largest, Launch launch_product) {
  constexpr size_t kWarps = 2;
  std::mt19937 random(2);
  over_seeds([&] {
    const auto integers = [&](size_t count) {
      std::vector<float> values(count);
      for (float& v : values) {
        v = static_cast<float>(static_cast<int>(random() % static_cast<unsigned>(2 * largest + 1)) - largest);
      }
      return values;
    };
    const std::vector<float> a = integers(kWarps * 16 * depth), b = integers(kWarps * depth * 8);
    const std::vector<float> d = integers(kWarps * 16 * 8);
    Memory<float> a_memory(a), b_memory(b), d_memory(d);
    launch_product(one_block(kWarps * 32), a_memory.data(), b_memory.data(), d_memory.data());
    const std::vector<float> got = d_memory.read();
    for (size_t w = 0; w < kWarps; ++w) {
      for (size_t row = 0; row < 16; ++row) {
        for (size_t column = 0; column < 8; ++column) {
          const size_t at = (w * 16 + row) * 8 + column;
          float expected = d[at];
          for (size_t k = 0; k < depth; ++k) {
            expected += 2 * a[(w * 16 + row) * depth + k] * b[(w * depth + k) * 8 + column];
          }
          CHECK(got[at] == expected, "row " << row << ", column " << column << ": " << got[at] << " != " << expected);
        }
      }
    }
  });
}

TEST(mma_of_bfloat16_is_a_matrix_product) {
  check_product(16, 100,
                [](const LaunchShape& s, float* a, float* b, float* d) { run(product_16_bits<BFloat16>, s, a, b, d); });
}

TEST(mma_of_float16_is_a_matrix_product) {
  check_product(16, 100,
                [](const LaunchShape& s, float* a, float* b, float* d) { run(product_16_bits<Float16>, s, a, b, d); });
}

TEST(mma_of_tf32_is_a_matrix_product) {
  check_product(8, 1000, [](const LaunchShape& s, float* a, float* b, float* d) { run(product_tf32, s, a, b, d, 0u); });
}

TEST(mma_of_tf32_ignores_the_last_13_bits) {
  check_product(8, 1000,
                [](const LaunchShape& s, float* a, float* b, float* d) { run(product_tf32, s, a, b, d, 0x1fffu); });
}

// Row i of the 32 rows lies at 16-byte place 5 i % 32.
template <bool kTransposed>
__global__ void load_four(const u16* in, u32* out) {
  u16* shared = shared_memory<u16>();
  const unsigned l = lane_of_warp();
  u16* row = shared + 5 * l % 32 * 8;
  for (int j = 0; j < 8; ++j) row[j] = in[l * 8 + j];
  warp_sync();
  u32 r[4];
  load_matrices<kTransposed>(r, row);
  for (int m = 0; m < 4; ++m) out[l * 4 + m] = r[m];
}

TEST(load_matrices_reads_four_matrices_straight_and_transposed) {
  over_seeds([] {
    const std::vector<u16> in = counting<u16>(256);
    const auto element = [&](u32 matrix, u32 row, u32 column) -> u32 { return in[(matrix * 8 + row) * 8 + column]; };
    Memory<u16> memory(in);
    Memory<u32> straight(128), transposed(128);
    run(load_four<false>, one_block(32, 512), memory.data(), straight.data());
    run(load_four<true>, one_block(32, 512), memory.data(), transposed.data());
    const std::vector<u32> got = straight.read(), got_transposed = transposed.read();
    for (u32 l = 0; l < 32; ++l) {
      for (u32 m = 0; m < 4; ++m) {
        const u32 i = l / 4, j = l % 4 * 2;
        expect(got, l * 4 + m, element(m, i, j) | element(m, i, j + 1) << 16);
        expect(got_transposed, l * 4 + m, element(m, j, i) | element(m, j + 1, i) << 16);
      }
    }
  });
}

// ------- memory

__global__ void load_wide(const u32* in, u32* out) {
  const Bytes16 constant = load_constant(in + threadIdx.x * 4), global = load_global(in + threadIdx.x * 4);
  for (int i = 0; i < 4; ++i) {
    out[threadIdx.x * 8 + i] = constant.word[i];
    out[threadIdx.x * 8 + 4 + i] = global.word[i];
  }
}

TEST(loads_of_16_bytes_bring_four_words_in_order) {
  const std::vector<u32> in = counting<u32>(128);
  Memory<u32> memory(in), out(256);
  run(load_wide, one_block(32), memory.data(), out.data());
  const std::vector<u32> got = out.read();
  for (size_t i = 0; i < 256; ++i) expect(got, i, in[i / 8 * 4 + i % 4]);
}

// Thread i copies i % (kBytes + 1) bytes to its place, and its mirror image reads them.
template <int kBytes>
__global__ void copy_some(const unsigned char* in, unsigned char* out) {
  unsigned char* shared = shared_memory<unsigned char>();
  for (int b = 0; b < kBytes; ++b) shared[threadIdx.x * kBytes + b] = 0xaa;
  block_sync();
  copy_async<kBytes>(shared + threadIdx.x * kBytes, in + threadIdx.x * kBytes,
                     static_cast<int>(threadIdx.x % (kBytes + 1)));
  copy_commit();
  copy_wait<0>();
  block_sync();
  const unsigned other = blockDim.x - 1 - threadIdx.x;
  for (int b = 0; b < kBytes; ++b) out[other * kBytes + b] = shared[other * kBytes + b];
}

template <int kBytes>
void check_copies() {
  over_seeds([] {
    constexpr unsigned kThreads = 64;
    const std::vector<unsigned char> in = counting<unsigned char>(kThreads * kBytes);
    Memory<unsigned char> memory(in), out(in.size());
    run(copy_some<kBytes>, one_block(kThreads, in.size()), memory.data(), out.data());
    const std::vector<unsigned char> got = out.read();
    for (size_t i = 0; i < in.size(); ++i) {
      const int expected = i % kBytes < i / kBytes % (kBytes + 1) ? in[i] : 0;
      CHECK(got[i] == expected, kBytes << " bytes: byte " << i << " is " << int{got[i]} << ", not " << expected);
    }
  });
}

TEST(asynchronous_copies_bring_the_valid_bytes_and_zeros) {
  check_copies<4>();
  check_copies<8>();
  check_copies<16>();
}

__global__ void copy_in_groups(const u32* in, u32* out) {
  u32* shared = shared_memory<u32>();
  const unsigned i = threadIdx.x, n = blockDim.x;
  for (unsigned group = 0; group < 4; ++group) {
    copy_async<4>(shared + group * 2 * n + i, in + group * 2 * n + i);
    copy_async<4>(shared + group * 2 * n + n + i, in + group * 2 * n + n + i);
    copy_commit();
  }
  const auto read = [&](unsigned group) {
    out[group * 2 * n + i] = shared[group * 2 * n + i];
    out[group * 2 * n + n + i] = shared[group * 2 * n + n + i];
  };
  copy_wait<3>();
  read(0);
  copy_wait<1>();
  read(1);
  read(2);
  copy_wait<0>();
  read(3);
}

TEST(asynchronous_copies_end_group_by_group) {
  over_seeds([] {
    const std::vector<u32> in = counting<u32>(512);
    Memory<u32> memory(in), out(512);
    run(copy_in_groups, one_block(64, 2048), memory.data(), out.data());
    CHECK(out.read() == in, "a copy that was waited for is not there");
  });
}

// ------- barriers of a block

__global__ void mirror(u32* out, u32 rounds) {
  u32* shared = shared_memory<u32>();
  u32 mine = threadIdx.x;
  for (u32 r = 0; r < rounds; ++r) {
    shared[threadIdx.x] = mine;
    block_sync();
    mine = 3 * shared[blockDim.x - 1 - threadIdx.x] + r;
    block_sync();
  }
  out[threadIdx.x] = mine;
}

TEST(block_sync_shows_every_thread_what_the_others_wrote) {
  over_seeds([] {
    Memory<u32> out(256);
    run(mirror, one_block(256, 1024), out.data(), 3u);
    const std::vector<u32> got = out.read();
    for (u32 i = 0; i < 256; ++i) {
      u32 expected = 255 - i;
      for (u32 r = 0; r < 3; ++r) expected = 3 * expected + r;
      expect(got, i, expected);
    }
  });
}

// 64 threads produce into two buffers, 64 others consume: barriers 1 and 2 say that a buffer is full, 3 and 4 that it
// is empty.
__global__ void produce_and_consume(u32* out, u32 rounds) {
  u32* shared = shared_memory<u32>();
  const unsigned i = threadIdx.x % 64;
  for (u32 r = 0; r < rounds; ++r) {
    u32* buffer = shared + r % 2 * 64;
    const unsigned full = 1 + r % 2, empty = 3 + r % 2;
    if (threadIdx.x < 64) {
      if (r >= 2) named_sync(empty, 128);
      buffer[i] = r * 100 + i;
      named_arrive(full, 128);
    } else {
      named_sync(full, 128);
      out[r * 64 + i] = buffer[63 - i];
      if (r + 2 < rounds) named_arrive(empty, 128);
    }
  }
}

TEST(named_barriers_hand_buffers_from_producers_to_consumers) {
  over_seeds([] {
    constexpr u32 kRounds = 7;
    Memory<u32> out(kRounds * 64);
    run(produce_and_consume, one_block(128, 512), out.data(), kRounds);
    const std::vector<u32> got = out.read();
    for (u32 r = 0; r < kRounds; ++r) {
      for (u32 i = 0; i < 64; ++i) expect(got, r * 64 + i, r * 100 + 63 - i);
    }
  });
}

// ------- mbarriers and clusters

__global__ void count_arrivals(u32* out, u32 phases) {
#if defined(FUSEDNN_EMULATE) || !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  u64* barrier = shared_memory<u64>();
  u32* data = shared_memory<u32>() + 2;
  if (threadIdx.x == 0) mbarrier_init(barrier, blockDim.x);
  block_sync();
  for (u32 p = 0; p < phases; ++p) {
    data[threadIdx.x] = p * 100 + threadIdx.x;
    mbarrier_arrive(barrier);
    while (!mbarrier_try(barrier, p % 2)) {
    }
    out[p * blockDim.x + threadIdx.x] = data[blockDim.x - 1 - threadIdx.x];
    block_sync();
  }
#endif
}

__global__ void count_bytes(u32* out, u32 phases) {
#if defined(FUSEDNN_EMULATE) || !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  u64* barrier = shared_memory<u64>();
  u32* data = shared_memory<u32>() + 2;
  if (threadIdx.x == 0) mbarrier_init(barrier, 1);
  mbarrier_init_fence();
  block_sync();
  for (u32 p = 0; p < phases; ++p) {
    if (threadIdx.x == 0) mbarrier_expect(barrier, blockDim.x * 4);
    store_async(shared_address(data + blockDim.x - 1 - threadIdx.x), p * 100 + threadIdx.x, shared_address(barrier));
    while (!mbarrier_try(barrier, p % 2)) {
    }
    out[p * blockDim.x + threadIdx.x] = data[threadIdx.x];
    block_sync();
  }
#endif
}

TEST(mbarriers_complete_a_phase_with_all_arrivals_and_all_bytes) {
  if (!clusters_exist()) return;
  over_seeds([] {
    constexpr u32 kPhases = 5;
    Memory<u32> by_arrivals(kPhases * 64), by_bytes(kPhases * 64);
    run(count_arrivals, one_block(64, 8 + 64 * 4), by_arrivals.data(), kPhases);
    run(count_bytes, one_block(64, 8 + 64 * 4), by_bytes.data(), kPhases);
    const std::vector<u32> got_arrivals = by_arrivals.read(), got_bytes = by_bytes.read();
    for (u32 p = 0; p < kPhases; ++p) {
      for (u32 i = 0; i < 64; ++i) {
        expect(got_arrivals, p * 64 + i, p * 100 + 63 - i);
        expect(got_bytes, p * 64 + i, p * 100 + 63 - i);
      }
    }
  });
}

// Every block tells what it is, and what it finds in each block of its cluster.
__global__ void look_around(u32* out) {
#if defined(FUSEDNN_EMULATE) || !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  u32* shared = shared_memory<u32>();
  const unsigned i = threadIdx.x;
  out += blockIdx.x * 8 * blockDim.x;
  for (u32 round = 0; round < 2; ++round) {
    shared[i] = round * 10000 + blockIdx.x * 100 + i;
    cluster_arrive();
    out[i * 8] = cluster_rank();
    out[i * 8 + 1] = cluster_size();
    cluster_wait();
    for (unsigned rank = 0; rank < cluster_size(); ++rank) {
      const unsigned other = blockDim.x - 1 - i;
      out[i * 8 + 2 + rank] = load_remote(remote_address(shared_address(shared + other), rank));
    }
    cluster_sync();
  }
#endif
}

TEST(clusters_know_their_blocks_and_read_their_shared_memory) {
  if (!clusters_exist()) return;
  over_seeds([] {
    Memory<u32> out(8 * 64 * 8);
    LaunchShape shape = blocks(8, 64, 64 * 4);
    shape.cluster = 4;
    run(look_around, shape, out.data());
    const std::vector<u32> got = out.read();
    for (u32 block = 0; block < 8; ++block) {
      for (u32 i = 0; i < 64; ++i) {
        const size_t at = (block * 64 + i) * 8;
        expect(got, at, block % 4);
        expect(got, at + 1, 4);
        for (u32 rank = 0; rank < 4; ++rank) {
          expect(got, at + 2 + rank, 10000 + (block / 4 * 4 + rank) * 100 + 63 - i);
        }
      }
    }
  });
}

// In each round every block sends 4 bytes a thread to the next block of the cluster and 16 to the one after it.
__global__ void send_around(u32* out, u32 rounds) {
#if defined(FUSEDNN_EMULATE) || !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  u64* barrier = shared_memory<u64>();
  u32* words = shared_memory<u32>() + 4;
  u32* wide = words + blockDim.x;
  const unsigned i = threadIdx.x, n = blockDim.x, size = cluster_size(), rank = cluster_rank();
  if (i == 0) mbarrier_init(barrier, 1);
  mbarrier_init_fence();
  cluster_sync();
  for (u32 r = 0; r < rounds; ++r) {
    if (i == 0) mbarrier_expect(barrier, n * 20);
    const u32 value = r * 10000 + blockIdx.x * 1000 + i * 10;
    const unsigned next = (rank + 1) % size, after = (rank + 2) % size;
    const u32 at = shared_address(barrier);
    store_async(remote_address(shared_address(words + n - 1 - i), next), value, remote_address(at, next));
    store_async(remote_address(shared_address(wide + 4 * i), after),
                Bytes16{{value + 1, value + 2, value + 3, value + 4}}, remote_address(at, after));
    while (!mbarrier_try(barrier, r % 2)) {
    }
    u32* place = out + ((r * gridDim.x + blockIdx.x) * n + i) * 5;
    place[0] = words[i];
    for (int w = 0; w < 4; ++w) place[1 + w] = wide[4 * i + w];
    cluster_sync();
  }
#endif
}

TEST(asynchronous_stores_reach_other_blocks_before_their_barrier_completes) {
  if (!clusters_exist()) return;
  over_seeds([] {
    constexpr u32 kRounds = 4, kBlocks = 8, kThreads = 64;
    Memory<u32> out(kRounds * kBlocks * kThreads * 5);
    LaunchShape shape = blocks(kBlocks, kThreads, 16 + kThreads * 20);
    shape.cluster = 4;
    run(send_around, shape, out.data(), kRounds);
    const std::vector<u32> got = out.read();
    for (u32 r = 0; r < kRounds; ++r) {
      for (u32 block = 0; block < kBlocks; ++block) {
        for (u32 i = 0; i < kThreads; ++i) {
          const size_t at = ((r * kBlocks + block) * kThreads + i) * 5;
          const u32 before = block / 4 * 4 + (block + 3) % 4, two_before = block / 4 * 4 + (block + 2) % 4;
          expect(got, at, r * 10000 + before * 1000 + (kThreads - 1 - i) * 10);
          for (u32 w = 1; w <= 4; ++w) expect(got, at + w, r * 10000 + two_before * 1000 + i * 10 + w);
        }
      }
    }
  });
}

// ------- between blocks

enum class HandOver { kRelease, kFence, kAdd };

// Two blocks write and read by turns; the flag counts the rounds written.
template <HandOver kHow>
__global__ void ping_pong(u32* data, u32* flag, u32* out, u32 rounds) {
  const unsigned i = threadIdx.x, n = blockDim.x;
  for (u32 r = 1; r <= rounds; ++r) {
    if (r % 2 == blockIdx.x) {
      store_relaxed(data + i, r * 100 + i);
      block_sync();
      if (i == 0) {
        if (kHow == HandOver::kAdd) {
          add_acq_rel(flag, 1);
        } else if (kHow == HandOver::kRelease) {
          store_release(flag, r);
        } else {
          fence_gpu();
          store_relaxed(flag, r);
        }
      }
    } else {
      if (i == 0) {
        while (load_acquire(flag) < r) spin("the other block");
      }
      block_sync();
      out[(r - 1) * n + i] = load_relaxed(data + n - 1 - i);
      block_sync();
    }
  }
}

template <HandOver kHow>
void check_hand_over() {
  over_seeds([] {
    constexpr u32 kRounds = 6;
    Memory<u32> data(64), flag(1), out(kRounds * 64);
    LaunchShape shape = blocks(2, 64);
    shape.cooperative = true;
    run(ping_pong<kHow>, shape, data.data(), flag.data(), out.data(), kRounds);
    const std::vector<u32> got = out.read();
    for (u32 r = 0; r < kRounds; ++r) {
      for (u32 i = 0; i < 64; ++i) expect(got, r * 64 + i, (r + 1) * 100 + 63 - i);
    }
  });
}

TEST(a_flag_stored_with_release_hands_data_to_another_block) {
  check_hand_over<HandOver::kRelease>();
}

TEST(a_fence_before_a_relaxed_flag_hands_data_to_another_block) {
  check_hand_over<HandOver::kFence>();
}

TEST(an_atomic_add_hands_data_to_another_block) {
  check_hand_over<HandOver::kAdd>();
}

enum class TakeOver { kAcquire, kFence, kAdd };

// Block 0 writes, block 1 waits for the flag and reads by relaxed loads.
template <TakeOver kHow>
__global__ void take_over(u32* data, u32* flag, u32* out) {
  const unsigned i = threadIdx.x, n = blockDim.x;
  if (blockIdx.x == 0) {
    store_relaxed(data + i, i + 1);
    block_sync();
    if (i == 0) store_release(flag, 1);
    return;
  }
  if (i == 0) {
    if (kHow == TakeOver::kAcquire) {
      while (load_acquire(flag) == 0) spin("the writer");
    } else if (kHow == TakeOver::kAdd) {
      while (add_acq_rel(flag, 0) == 0) spin("the writer");
    } else {
      while (load_relaxed(flag) == 0) spin("the writer");
      fence_gpu();
    }
  }
  block_sync();
  out[i] = load_relaxed(data + n - 1 - i);
}

template <TakeOver kHow>
void check_take_over() {
  over_seeds([] {
    Memory<u32> data(64), flag(1), out(64);
    LaunchShape shape = blocks(2, 64);
    shape.cooperative = true;
    run(take_over<kHow>, shape, data.data(), flag.data(), out.data());
    const std::vector<u32> got = out.read();
    for (u32 i = 0; i < 64; ++i) expect(got, i, 64 - i);
  });
}

TEST(an_acquiring_load_takes_data_from_another_block) {
  check_take_over<TakeOver::kAcquire>();
}

TEST(a_fence_behind_a_relaxed_flag_takes_data_from_another_block) {
  check_take_over<TakeOver::kFence>();
}

TEST(an_atomic_add_takes_data_from_another_block) {
  check_take_over<TakeOver::kAdd>();
}

__global__ void take_tickets(u32* counter, u32* taken) {
  taken[blockIdx.x * blockDim.x + threadIdx.x] = add_acq_rel(counter, 2);
}

TEST(atomic_adds_return_what_was_before) {
  over_seeds([] {
    Memory<u32> counter(1), taken(256);
    run(take_tickets, blocks(4, 64), counter.data(), taken.data());
    std::vector<u32> got = taken.read();
    std::sort(got.begin(), got.end());
    for (u32 i = 0; i < 256; ++i) expect(got, i, 2 * i);
    expect(counter.read(), 0, 512);
  });
}

// In each epoch a block stores one word and then adds up those of all blocks.
__global__ void add_up(u32* words, u32* arrivals, u32* out, u32 epochs) {
  const u32 count = gridDim.x * gridDim.y * gridDim.z;
  const u32 block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  for (u32 e = 0; e < epochs; ++e) {
    if (threadIdx.x == 0) store_relaxed(words + block, (e + 1) * (block + 1));
    grid_sync(arrivals, 2 * e + 1);
    u32 sum = 0;
    for (u32 i = 0; i < count; ++i) sum += load_relaxed(words + i);
    out[(e * count + block) * blockDim.x + threadIdx.x] = sum;
    grid_sync(arrivals, 2 * e + 2);
  }
}

TEST(grid_sync_holds_all_blocks_in_every_epoch) {
  over_seeds([] {
    constexpr u32 kEpochs = 4, kBlocks = 12;
    Memory<u32> words(kBlocks), arrivals(1), out(kEpochs * kBlocks * 64);
    LaunchShape shape = one_block(64);
    shape.grid[0] = 3, shape.grid[1] = 2, shape.grid[2] = 2;
    shape.cooperative = true;
    run(add_up, shape, words.data(), arrivals.data(), out.data(), kEpochs);
    const std::vector<u32> got = out.read();
    for (size_t i = 0; i < got.size(); ++i) {
      expect(got, i, static_cast<u32>(i / (kBlocks * 64) + 1) * kBlocks * (kBlocks + 1) / 2);
    }
  });
}

__global__ void mirror_after(const u32* in, u32* out) {
  dependency_launch();
  dependency_wait();
  const u32 i = blockIdx.x * blockDim.x + threadIdx.x, n = gridDim.x * blockDim.x;
  out[i] = 3 * in[n - 1 - i] + 1;
}

TEST(dependency_wait_sees_what_the_launches_in_front_wrote) {
  over_seeds([] {
    constexpr u32 kBlocks = 20, kThreads = 64, kLaunches = 6;
    const std::vector<u32> in = counting<u32>(kBlocks * kThreads);
    Memory<u32> a(in), b(in.size());
    LaunchShape shape = blocks(kBlocks, kThreads);
    for (u32 i = 0; i < kLaunches; ++i) {
      shape.programmatic = i > 0;
      start(mirror_after, shape, i % 2 == 0 ? a.data() : b.data(), i % 2 == 0 ? b.data() : a.data());
    }
    const char* failure = finish();
    CHECK(failure == nullptr, failure);
    const std::vector<u32> got = a.read();
    for (size_t i = 0; i < in.size(); ++i) {
      u32 expected = in[i];  // an even number of mirrors
      for (u32 l = 0; l < kLaunches; ++l) expected = 3 * expected + 1;
      expect(got, i, expected);
    }
  });
}

}  // namespace
