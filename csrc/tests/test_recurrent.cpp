// A provider against plain loops, and its promises: see problem.h for which one.
#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "tests/check.h"
#include "tests/problem.h"

#if defined(FUSEDNN_EMULATE)
#include "emulation/machine.h"
#endif

namespace {

using namespace fusednn;
using namespace fusednn::testing;

constexpr Dtype kDtypes[] = {Dtype::kFloat64, Dtype::kFloat32, Dtype::kBFloat16, Dtype::kFloat16};
constexpr double kEps[] = {0x1p-52, 0x1p-23, 0x1p-7, 0x1p-10};

const Size kSizes[] = {
    {1, 1, 1, 0, 1},  {3, 5, 7, 0, 2},         {2, 4, 16, 0, 1},       {1, 3, 130, 0, 1},
    {7, 4, 33, 0, 2}, {5, 6, 17, 0, 1, true},  {9, 7, 20, 0, 2, true}, {4, 3, 8, 0, 1, false, false},
    {53, 2, 9, 0, 1}, {2, 3, 65, 0, 2, false},
};
const Size kProjected[] = {{3, 4, 20, 5, 1}, {5, 4, 9, 12, 2, true}, {1, 3, 33, 17, 1}, {49, 2, 7, 1, 1}};

// In the low precisions a state that falls on the other side of a rounding boundary moves everything after it by one
// rounding; relu's derivative can jump there.
double allowed(const CellInfo& cell, Dtype dtype) {
  const bool low = dtype == Dtype::kBFloat16 || dtype == Dtype::kFloat16;
  return low && std::string(cell.name) == "rnn_relu" ? 1e9 : low ? 12 : 40;
}

bool strategy_is(const char* name) {
  return cuda_strategy() != nullptr && std::string(cuda_strategy()) == name;
}

bool persistent() {
  return strategy_is("block") || strategy_is("cluster") || strategy_is("grid");
}

// Whether the provider under test can: the persistent kernels have no fp64, and one block holds 128 units.
bool serves(Dtype dtype, const Size& size) {
  return !(persistent() && dtype == Dtype::kFloat64) && !(strategy_is("block") && size.hidden > 128);
}

void compare(const CellInfo& cell, Dtype dtype, Problem p, int threads, const std::string& what) {
  const double eps = kEps[static_cast<int>(dtype)];
  double limit = allowed(cell, dtype);
  Outputs out = run_forward(p, cell, dtype, threads);
  const Outputs truth = naive_forward(p, cell, dtype);
  CHECK(distance(out.y, truth.y, eps) < std::min(limit, 40.), what << " y " << distance(out.y, truth.y, eps));
  CHECK(distance(out.h_n, truth.h_n, eps) < std::min(limit, 40.), what << " h_n");
  CHECK(distance(out.c_n, truth.c_n, eps) < limit, what << " c_n");
  CHECK(distance(out.saved, truth.saved, eps) < std::min(limit, 40.),
        what << " saved " << distance(out.saved, truth.saved, eps));
  CHECK(distance(out.states, truth.states, eps) < std::min(limit, 40.), what << " states");
  out.normed = truth.normed, out.rstd = truth.rstd;
  const Gradients g = run_backward(p, out, cell, dtype, threads), t = naive_backward(p, cell, dtype);
  // Layer norm divides by a deviation, and with it multiplies a gradient's rounding error.
  for (double steepness : truth.rstd) limit = std::max(limit, allowed(cell, dtype) * steepness);
  CHECK(distance(g.d_gates, t.d_gates, eps) < limit, what << " d_gates " << distance(g.d_gates, t.d_gates, eps));
  if (cell.split) CHECK(distance(g.d_recurrent, t.d_recurrent, eps) < limit, what << " d_recurrent");
  CHECK(distance(g.d_h0, t.d_h0, eps) < limit, what << " d_h0 " << distance(g.d_h0, t.d_h0, eps));
  CHECK(distance(g.d_c0, t.d_c0, eps) < limit, what << " d_c0");
  if (p.projection) CHECK(distance(g.d_proj, t.d_proj, eps) < limit, what << " d_proj");
  CHECK(distance(g.d_products, t.d_products, eps) < limit, what << " d_products");
}

void compare(const CellInfo& cell, Dtype dtype, const Size& size, int threads, const std::string& where,
             bool library_gemm = false) {
  if (!serves(dtype, size)) return;
  Problem p = make_problem(size, cell, dtype, 7);
  p.library_gemm = library_gemm;
  compare(cell, dtype, p, threads,
          where + " " + cell.name + " dtype " + std::to_string(static_cast<int>(dtype)) + " " + text(size));
}

bool has_projection() {
  return cuda_strategy() == nullptr || strategy_is("gemm");
}

bool same(const Values& a, const Values& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](double x, double y) { return x == y || (std::isnan(x) && std::isnan(y)); });
}

bool same(const Outputs& a, const Outputs& b) {
  return same(a.y, b.y) && same(a.h_n, b.h_n) && same(a.c_n, b.c_n) && same(a.saved, b.saved) &&
         same(a.states, b.states);
}

bool same(const Gradients& a, const Gradients& b) {
  return same(a.d_gates, b.d_gates) && same(a.d_recurrent, b.d_recurrent) && same(a.d_h0, b.d_h0) &&
         same(a.d_c0, b.d_c0) && same(a.d_proj, b.d_proj) && same(a.d_products, b.d_products);
}

// Row b of a tensor [T, B, ...] with one direction.
Values row_of(const Values& tensor, long batch, long b) {
  const size_t steps = 4, size = tensor.size() / (steps * static_cast<size_t>(batch));
  Values out;
  for (size_t t = 0; t < steps; ++t) {
    const auto from =
        tensor.begin() + static_cast<long>((t * static_cast<size_t>(batch) + static_cast<size_t>(b)) * size);
    out.insert(out.end(), from, from + static_cast<long>(size));
  }
  return out;
}

}  // namespace

TEST(every_cell_dtype_and_isa_agrees_with_plain_loops_at_odd_sizes) {
  for_each_isa([](const char* isa) {
    for_each_cell([&](const CellInfo& cell) {
      for (Dtype dtype : kDtypes) {
        for (const Size& size : kSizes) compare(cell, dtype, size, 1, isa);
      }
    });
  });
}

TEST(a_projection_agrees_with_plain_loops) {
  for_each_isa([](const char* isa) {
    for_each_cell([&](const CellInfo& cell) {
      for (const Size& size : kProjected) {
        if (cell.cell_state && has_projection()) {
          for (Dtype dtype : kDtypes) compare(cell, dtype, size, 1, isa);
        }
      }
    });
  });
}

TEST(a_single_step_by_library_gemm_agrees_with_plain_loops) {
  for_each_isa([](const char* isa) {
    for_each_cell([&](const CellInfo& cell) {
      for (Dtype dtype : kDtypes) {
        for (const Size& size : {Size{1, 1, 1, 0, 1}, Size{3, 1, 33, 0, 2}, Size{300, 1, 60, 0, 1}}) {
          compare(cell, dtype, size, 2, isa, true);
        }
        if (!cell.cell_state || !has_projection()) continue;
        compare(cell, dtype, {5, 1, 20, 7, 2}, 2, isa, true);
        compare(cell, dtype, {5, 1, 7, 20, 1}, 2, isa, true);
      }
    });
  });
}

// Of each direction's heads, and whether the step is one alone.
const std::pair<Size, long> kOptions[] = {
    {{3, 5, 7, 0, 3}, 3},
    {{5, 6, 17, 0, 4, true}, 2},
    {{2, 4, 33, 0, 2, false, false}, 1},
    {{4, 1, 20, 0, 6}, 3},
};

// The problem with all options that the provider under test has.
Problem asked(Problem p, long heads, const CellInfo& cell, Dtype dtype) {
  p = with_options(std::move(p), heads, cell, dtype, 9);
  if (cuda_strategy() != nullptr && !strategy_is("gemm")) p.norm.clear();
  return p;
}

TEST(options_agree_with_plain_loops) {
  for_each_isa([](const char* isa) {
    for_each_cell([&](const CellInfo& cell) {
      for (const auto& [size, heads] : kOptions) {
        for (Dtype dtype : {Dtype::kFloat64, Dtype::kFloat32}) {
          if (!serves(dtype, size)) continue;
          for (bool drawn : {true, false}) {
            Problem p = asked(make_problem(size, cell, dtype, 7), heads, cell, dtype);
            p.library_gemm = size.steps == 1;
            if (!drawn) p.seeds.clear();
            compare(cell, dtype, p, 2,
                    std::string(isa) + " " + cell.name + " dtype " + std::to_string(static_cast<int>(dtype)) +
                        (drawn ? " drawn " : " expected ") + text(size));
          }
        }
      }
      if (!cell.cell_state || !has_projection()) return;
      for (const Size& size : {Size{5, 4, 9, 12, 2, true}, Size{3, 1, 20, 5, 2}}) {
        Problem p = asked(make_problem(size, cell, Dtype::kFloat64, 7), 2, cell, Dtype::kFloat64);
        p.library_gemm = size.steps == 1;
        compare(cell, Dtype::kFloat64, p, 2, std::string(isa) + " " + cell.name + " " + text(size));
      }
    });
  });
}

TEST(options_give_the_same_bits_with_any_number_of_threads) {
  if (cuda_strategy() != nullptr) return;
  for_each_cell([](const CellInfo& cell) {
    for (const Size& size : {Size{2, 6, 70, 0, 2, true}, Size{9, 3, 40, 0, 4}}) {
      const Problem p = asked(make_problem(size, cell, Dtype::kFloat32, 3), 2, cell, Dtype::kFloat32);
      Outputs one = run_forward(p, cell, Dtype::kFloat32, 1);
      const Outputs truth = naive_forward(p, cell, Dtype::kFloat32);
      one.normed = truth.normed, one.rstd = truth.rstd;
      const Gradients back = run_backward(p, one, cell, Dtype::kFloat32, 1);
      for (int threads : {2, 3, 5}) {
        CHECK(same(run_forward(p, cell, Dtype::kFloat32, threads), one), cell.name << text(size) << threads);
        CHECK(same(run_backward(p, one, cell, Dtype::kFloat32, threads), back), cell.name << text(size) << threads);
      }
    }
  });
}

// Chunks of several steps and of one, their ends, packed rows, both directions, and widths on either side of a vector.
const std::pair<Size, long> kInputs[] = {
    {{1, 1, 1, 0, 1}, 1},
    {{3, 100, 7, 0, 2}, 17},
    {{130, 3, 20, 0, 1}, 5},
    {{9, 40, 33, 0, 2, true}, 130},
    {{1, 300, 16, 0, 1, false, false}, 4},
    {{40, 7, 18, 0, 1, true}, 70},
};

TEST(states_of_zeros_that_are_not_given_make_no_difference) {
  if (cuda_strategy() != nullptr) return;
  const auto check = [](Problem p, const CellInfo& cell, Dtype dtype, const Size& size, const std::string& where) {
    p.library_gemm = size.steps == 1;
    p.h0.assign(p.h0.size(), 0), p.c0.assign(p.c0.size(), 0);
    const Outputs given = run_forward(p, cell, dtype, 2);
    p.from_zero = true;
    CHECK(same(run_forward(p, cell, dtype, 2), given), where << " " << cell.name << " " << text(size));
  };
  for_each_isa([&](const char* isa) {
    for_each_cell([&](const CellInfo& cell) {
      for (Dtype dtype : kDtypes) {
        for (const Size& size : kSizes) check(make_problem(size, cell, dtype, 7), cell, dtype, size, isa);
      }
      for (const auto& [size, heads] : kOptions) {
        check(asked(make_problem(size, cell, Dtype::kFloat32, 7), heads, cell, Dtype::kFloat32), cell, Dtype::kFloat32,
              size, isa);
      }
      for (const Size& size : kProjected) {
        if (cell.cell_state) check(make_problem(size, cell, Dtype::kFloat32, 7), cell, Dtype::kFloat32, size, isa);
      }
    });
  });
}

TEST(the_input_part_of_a_sequence_agrees_with_plain_loops) {
  if (cuda_strategy() != nullptr) return;
  for_each_isa([](const char* isa) {
    for_each_cell([&](const CellInfo& cell) {
      for (Dtype dtype : kDtypes) {
        for (const auto& [size, inputs] : kInputs) {
          const Problem p = with_inputs(make_problem(size, cell, dtype, 7), inputs, cell, dtype, 8);
          const double eps = kEps[static_cast<int>(dtype)];
          const Outputs out = run_forward(p, cell, dtype, 1), truth = naive_forward(p, cell, dtype);
          const double y = distance(out.y, truth.y, eps), saved = distance(out.saved, truth.saved, eps);
          CHECK(std::max(y, saved) < 40,
                isa << " " << cell.name << " " << text(size) << " I" << inputs << " y " << y << " saved " << saved);
        }
      }
    });
  });
}

TEST(the_input_part_has_the_same_bits_with_any_number_of_threads_and_in_any_batch) {
  if (cuda_strategy() != nullptr) return;
  for_each_cell([](const CellInfo& cell) {
    for (const auto& [size, inputs] : kInputs) {
      const Problem p = with_inputs(make_problem(size, cell, Dtype::kFloat32, 7), inputs, cell, Dtype::kFloat32, 8);
      const Outputs one = run_forward(p, cell, Dtype::kFloat32, 1);
      for (int threads : {2, 3, 5}) {
        CHECK(same(run_forward(p, cell, Dtype::kFloat32, threads), one), cell.name << text(size) << threads);
      }
    }
    const Problem big =
        with_inputs(make_problem({55, 4, 37, 0, 1}, cell, Dtype::kFloat32, 5), 21, cell, Dtype::kFloat32, 8);
    const Outputs all = run_forward(big, cell, Dtype::kFloat32, 2);
    for (long b : {0L, 17L, 54L}) {
      Problem one = big;
      const auto state = [&](const Values& v) { return v.empty() ? v : Values(&v[0] + b * 37, &v[0] + (b + 1) * 37); };
      one.batch = 1, one.x = row_of(big.x, 55, b), one.h0 = state(big.h0), one.c0 = state(big.c0);
      CHECK(same(run_forward(one, cell, Dtype::kFloat32, 2).y, row_of(all.y, 55, b)), cell.name << " row " << b);
    }
  });
}

TEST(nan_in_one_row_of_x_reaches_no_other_row) {
  if (cuda_strategy() != nullptr) return;
  for_each_cell([](const CellInfo& cell) {
    Problem p = with_inputs(make_problem({8, 4, 20, 0, 1}, cell, Dtype::kFloat32, 2), 9, cell, Dtype::kFloat32, 3);
    const Outputs clean = run_forward(p, cell, Dtype::kFloat32, 2);
    for (size_t k = 0; k < 9; ++k) p.x[(8 + 3) * 9 + k] = std::numeric_limits<double>::quiet_NaN();  // step 1, row 3
    const Outputs out = run_forward(p, cell, Dtype::kFloat32, 2);
    for (long b = 0; b < 8; ++b) {
      if (b != 3) CHECK(same(row_of(out.y, 8, b), row_of(clean.y, 8, b)), cell.name << " row " << b);
    }
    CHECK(std::isnan(row_of(out.y, 8, 3)[20]), cell.name << " hides a NaN");
  });
}

TEST(any_number_of_threads_gives_the_same_bits) {
  if (cuda_strategy() != nullptr) return;
  for_each_isa([](const char* isa) {
    for_each_cell([&](const CellInfo& cell) {
      for (const Size& size : {Size{2, 6, 70, 0, 2, true}, Size{33, 3, 40, 0, 1}, Size{1, 4, 200, 0, 1}}) {
        const Problem p = make_problem(size, cell, Dtype::kFloat32, 3);
        const Outputs one = run_forward(p, cell, Dtype::kFloat32, 1);
        const Gradients back = run_backward(p, one, cell, Dtype::kFloat32, 1);
        for (int threads : {2, 3, 5, 16}) {
          CHECK(same(run_forward(p, cell, Dtype::kFloat32, threads), one), isa << cell.name << text(size) << threads);
          CHECK(same(run_backward(p, one, cell, Dtype::kFloat32, threads), back),
                isa << cell.name << text(size) << threads);
        }
      }
    });
  });
}

TEST(a_projection_with_threads_gives_the_same_bits) {
  for_each_cell([&](const CellInfo& cell) {
    if (!cell.cell_state || !has_projection()) return;
    for (const Size& size : kProjected) {
      const Problem p = make_problem(size, cell, Dtype::kFloat32, 3);
      const Outputs one = run_forward(p, cell, Dtype::kFloat32, 1);
      for (int threads : {2, 5}) {
        CHECK(same(run_forward(p, cell, Dtype::kFloat32, threads), one), text(size));
        CHECK(
            same(run_backward(p, one, cell, Dtype::kFloat32, threads), run_backward(p, one, cell, Dtype::kFloat32, 1)),
            text(size));
      }
    }
  });
}

TEST(a_row_has_the_same_bits_in_any_batch) {
  for_each_cell([&](const CellInfo& cell) {
    const Problem big = make_problem({55, 4, 37, 0, 1}, cell, Dtype::kFloat32, 5);
    const Outputs all = run_forward(big, cell, Dtype::kFloat32, 2);
    const Gradients all_back = run_backward(big, all, cell, Dtype::kFloat32, 2);
    for (long b : {0L, 17L, 54L}) {
      Problem one = big;
      one.batch = 1;
      const auto state = [&](const Values& v, long n) {
        return v.empty() ? v : Values(v.begin() + b * n, v.begin() + (b + 1) * n);
      };
      one.gates = row_of(big.gates, 55, b), one.grad_y = row_of(big.grad_y, 55, b);
      one.h0 = state(big.h0, 37), one.c0 = state(big.c0, 37);
      one.grad_h_n = state(big.grad_h_n, 37), one.grad_c_n = state(big.grad_c_n, 37);
      const Outputs out = run_forward(one, cell, Dtype::kFloat32, 2);
      CHECK(same(out.y, row_of(all.y, 55, b)), cell.name << " row " << b);
      const Gradients back = run_backward(one, out, cell, Dtype::kFloat32, 2);
      CHECK(same(back.d_gates, row_of(all_back.d_gates, 55, b)), cell.name << " row " << b);
    }
  });
}

TEST(results_are_bitwise_the_same_from_run_to_run) {
  for_each_cell([](const CellInfo& cell) {
    const Problem p = make_problem({6, 20, 65, 0, 2, true}, cell, Dtype::kFloat32, 11);
    const Outputs first = run_forward(p, cell, Dtype::kFloat32, 2);
    const Gradients back = run_backward(p, first, cell, Dtype::kFloat32, 2);
    for (int i = 0; i < (cuda_strategy() == nullptr ? 20 : 2); ++i) {
      CHECK(same(run_forward(p, cell, Dtype::kFloat32, 2), first), cell.name);
      CHECK(same(run_backward(p, first, cell, Dtype::kFloat32, 2), back), cell.name);
    }
  });
}

#if defined(FUSEDNN_EMULATE)

TEST(every_schedule_of_the_emulation_gives_the_same_bits) {
  if (cuda_strategy() == nullptr) return;
  const uint64_t before = emulation::seed();
  for_each_cell([](const CellInfo& cell) {
    for (Dtype dtype : {Dtype::kFloat32, Dtype::kBFloat16}) {
      const Problem p = make_problem({19, 3, 35, 0, 2, true}, cell, dtype, 4);
      emulation::set_seed(1);
      const Outputs first = run_forward(p, cell, dtype, 1);
      const Gradients back = run_backward(p, first, cell, dtype, 1);
      for (uint64_t seed = 2; seed < 6; ++seed) {
        emulation::set_seed(seed);
        CHECK(same(run_forward(p, cell, dtype, 1), first), cell.name << " seed " << seed);
        CHECK(same(run_backward(p, first, cell, dtype, 1), back), cell.name << " seed " << seed);
      }
    }
  });
  emulation::set_seed(before);
}

#endif

TEST(tf32_errs_by_a_rounding_to_11_bits_and_no_more) {
  if (cuda_strategy() == nullptr || strategy_is("gemm")) return;
  for_each_cell([](const CellInfo& cell) {
    for (const Size& size : {Size{3, 4, 33, 0, 2}, Size{9, 3, 70, 0, 1, true}}) {
      const Problem p = make_problem(size, cell, Dtype::kFloat32, 7);
      if (std::string(cell.name) == "rnn_relu") continue;  // its derivative jumps where a sign is decided by rounding
      allow_tf32(true);
      const Outputs out = run_forward(p, cell, Dtype::kFloat32, 1), truth = naive_forward(p, cell, Dtype::kFloat32);
      const Gradients g = run_backward(p, truth, cell, Dtype::kFloat32, 1),
                      t = naive_backward(p, cell, Dtype::kFloat32);
      allow_tf32(false);
      const double y = distance(out.y, truth.y, 0x1p-11), d = distance(g.d_gates, t.d_gates, 0x1p-11);
      CHECK(y < 4 && d < 8, cell.name << " y " << y << " d_gates " << d);
      CHECK(y > 0x1p-9, cell.name << " is as exact as fp32: TF32 did not run");
    }
  });
}

TEST(inference_gives_the_bits_of_training) {
  for_each_cell([](const CellInfo& cell) {
    const Problem p = make_problem({6, 5, 19, 0, 2, true}, cell, Dtype::kBFloat16, 11);
    const Outputs with = run_forward(p, cell, Dtype::kBFloat16, 1),
                  without = run_forward(p, cell, Dtype::kBFloat16, 1, false);
    CHECK(same(with.y, without.y) && same(with.h_n, without.h_n) && same(with.c_n, without.c_n), cell.name);
  });
}

TEST(nan_and_infinity_in_one_row_reach_no_other_row) {
  for_each_isa([](const char* isa) {
    for_each_cell([&](const CellInfo& cell) {
      for (double poison : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
        Problem p = make_problem({8, 4, 20, 0, 1}, cell, Dtype::kFloat32, 2);
        const Outputs clean = run_forward(p, cell, Dtype::kFloat32, 2);
        const Gradients clean_back = run_backward(p, clean, cell, Dtype::kFloat32, 2);
        const size_t row = 8 + 3;  // step 1, row 3
        for (int u = 0; u < 20; ++u)
          p.gates[row * static_cast<size_t>(cell.gates * 20) + static_cast<size_t>(u)] = poison;
        for (int u = 0; u < 20; ++u) p.grad_y[row * 20 + static_cast<size_t>(u)] = poison;
        const Outputs out = run_forward(p, cell, Dtype::kFloat32, 2);
        const Gradients back = run_backward(p, out, cell, Dtype::kFloat32, 2);
        for (long b = 0; b < 8; ++b) {
          if (b == 3) continue;
          CHECK(same(row_of(out.y, 8, b), row_of(clean.y, 8, b)), isa << " " << cell.name << " row " << b);
          CHECK(same(row_of(back.d_gates, 8, b), row_of(clean_back.d_gates, 8, b)),
                isa << " " << cell.name << " row " << b);
        }
        if (std::isnan(poison)) CHECK(std::isnan(row_of(out.y, 8, 3)[20]), isa << " " << cell.name << " hides a NaN");
      }
    });
  });
}

TEST(an_empty_batch_and_an_empty_sequence_work) {
  for_each_cell([](const CellInfo& cell) {
    for (int threads : {1, 2}) {
      const Problem none = make_problem({0, 3, 5, 0, 2}, cell, Dtype::kFloat32, 2);
      CHECK(run_forward(none, cell, Dtype::kFloat32, threads).y.empty(), cell.name);
      CHECK(run_backward(none, {}, cell, Dtype::kFloat32, threads).d_gates.empty(), cell.name);
      const Problem still = make_problem({3, 0, 5, 0, 2}, cell, Dtype::kFloat32, 2);
      const Outputs out = run_forward(still, cell, Dtype::kFloat32, threads);
      CHECK(same(out.h_n, still.h0) && same(out.c_n, still.c0), cell.name << ": states stay");
      CHECK(same(run_backward(still, out, cell, Dtype::kFloat32, threads).d_h0, still.grad_h_n), cell.name);
    }
  });
}

TEST(a_row_of_length_zero_keeps_its_state) {
  for_each_cell([](const CellInfo& cell) {
    Problem p = make_problem({3, 2, 5, 0, 2}, cell, Dtype::kFloat32, 2);
    p.batch_sizes = {2, 1};
    const size_t rows = 3 * 2;  // rows times directions
    p.gates.resize(rows * static_cast<size_t>(cell.gates) * 5), p.grad_y.resize(rows * 5);
    const Outputs out = run_forward(p, cell, Dtype::kFloat32, 2);
    const Gradients back = run_backward(p, out, cell, Dtype::kFloat32, 2);
    for (size_t d = 0; d < 2; ++d) {
      for (size_t u = 0; u < 5; ++u) {
        const size_t at = (d * 3 + 2) * 5 + u;
        CHECK(out.h_n[at] == p.h0[at], cell.name);
        CHECK(back.d_h0[at] == p.grad_h_n[at], cell.name);
      }
    }
  });
}

TEST(absent_gradients_count_as_zero) {
  for_each_cell([](const CellInfo& cell) {
    const Dtype dtype = persistent() ? Dtype::kFloat32 : Dtype::kFloat64;
    Problem p = make_problem({3, 4, 9, 0, 2}, cell, dtype, 2);
    std::fill(p.grad_h_n.begin(), p.grad_h_n.end(), 0.);
    std::fill(p.grad_c_n.begin(), p.grad_c_n.end(), 0.);
    const Outputs out = run_forward(p, cell, dtype, 1);
    const Gradients zeros = run_backward(p, out, cell, dtype, 1);
    p.grad_h_n.clear(), p.grad_c_n.clear();
    CHECK(same(run_backward(p, out, cell, dtype, 1), zeros), cell.name);
  });
}

TEST(every_finite_half_precision_number_survives_load_and_store) {
  const CellInfo& relu = *find_cell("rnn_relu");
  for_each_isa([&](const char* isa) {
    for (Dtype dtype : {Dtype::kBFloat16, Dtype::kFloat16}) {
      Problem p = make_problem({1, 1, 1, 0, 1}, relu, dtype, 1);
      p.steps = (dtype == Dtype::kBFloat16 ? 0x7f80 : 0x7c00) / 16,  // all finite ones
          p.hidden = p.proj = 16;
      p.gates.clear(), p.w_hh.assign(256, 0), p.b_hh.assign(16, 0), p.h0.assign(16, 0);
      const int mantissa = dtype == Dtype::kBFloat16 ? 7 : 10, least = dtype == Dtype::kBFloat16 ? -126 : -14;
      for (int bits = 0; bits < p.steps * 16; ++bits) {
        const int e = bits >> mantissa, m = bits & ((1 << mantissa) - 1);
        const double x =
            e == 0 ? std::ldexp(m, least - mantissa) : std::ldexp((1 << mantissa) + m, e - 1 + least - mantissa);
        p.gates.push_back(x);
      }
      CHECK(same(run_forward(p, relu, dtype, 1).y, p.gates), isa);
    }
  });
}

TEST(half_precision_rounds_to_nearest_and_ties_to_even) {
  const CellInfo& relu = *find_cell("rnn_relu");
  for_each_isa([&](const char* isa) {
    for (Dtype dtype : {Dtype::kBFloat16, Dtype::kFloat16}) {
      const double unit = dtype == Dtype::kBFloat16 ? 0x1p-7 : 0x1p-10;
      Problem p = make_problem({1, 1, 1, 0, 1}, relu, dtype, 1);
      p.hidden = p.proj = 64;
      p.gates.clear(), p.w_hh.assign(64 * 64, 0), p.b_hh.clear(), p.h0.assign(64, 0);
      for (int i = 0; i < 64; ++i) p.gates.push_back(1 + unit * (i / 8)), p.b_hh.push_back(unit * (i % 8) / 8);
      const Outputs out = run_forward(p, relu, dtype, 1);
      for (size_t i = 0; i < 64; ++i) CHECK(out.y[i] == round_to(dtype, p.gates[i] + p.b_hh[i]), isa << " " << i);
    }
  });
}

TEST(impossible_requests_are_refused_with_a_message) {
  RecurrentForward a{};
  RecurrentShape& s = a.shape;
  s.cell = "no_such_cell", s.strategy = cuda_strategy();
  s.dtype = Dtype::kFloat32;
  s.batch = s.steps = s.rows = s.hidden = s.proj = s.directions = s.heads = s.layers = s.threads = 1;
  CHECK(provider_of(cuda_strategy()).forward(a) != nullptr, "unknown cell");
  s.cell = "gru";
  a.w_hr = &a;
  CHECK(provider_of(cuda_strategy()).forward(a) != nullptr, "a projection of a cell without c");
  CHECK(set_isa("no_such_isa") != nullptr, "unknown instruction set");
}
