// Several layers in one launch of `grid`, forward, in the emulation: each against plain loops over the layer below's y.
#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "cuda/waits.h"
#include "tests/check.h"
#include "tests/emulated.h"
#include "tests/problem.h"

namespace {

using namespace fusednn;
using namespace fusednn::testing;

void append(Values& all, const Values& more) {
  all.insert(all.end(), more.begin(), more.end());
}

// W_ih y + b_ih for the rows of y, [N, H].
Values gates_of(const Problem& layer, const Values& y) {
  const size_t H = static_cast<size_t>(layer.hidden), lines = layer.w_ih.size() / H;
  Values gates;
  for (size_t row = 0; row < y.size() / H; ++row) {
    for (size_t line = 0; line < lines; ++line) {
      double sum = layer.bias ? layer.b_ih[line] : 0;
      for (size_t k = 0; k < H; ++k) sum += layer.w_ih[line * H + k] * y[row * H + k];
      gates.push_back(sum);
    }
  }
  return gates;
}

Outputs naive_layers(const Problem& p, const CellInfo& cell, Dtype dtype) {
  Outputs last = naive_forward(p, cell, dtype), all = last;
  for (Problem layer : p.above) {
    layer.gates = gates_of(layer, last.y);
    last = naive_forward(layer, cell, dtype);
    append(all.y, last.y), append(all.h_n, last.h_n), append(all.c_n, last.c_n), append(all.saved, last.saved);
  }
  return all;
}

Problem layers_of(long layers, const Size& size, const CellInfo& cell, Dtype dtype) {
  return with_layers(make_problem(size, cell, dtype, 5), layers, cell, dtype, 5);
}

Outputs run(const Problem& p, const CellInfo& cell, Dtype dtype, bool save = true) {
  ForwardCall call(p, cell, dtype, 1, save, "grid");
  call.run();
  return call.read();
}

// Cells with one product a step.
template <class Visit>
void for_each_served(Visit visit) {
  for_each_cell([&](const CellInfo& cell) {
    for (Dtype dtype : {Dtype::kFloat32, Dtype::kBFloat16}) {
      if (cell.second_gates == 0) visit(cell, dtype);
    }
  });
}

void agrees(long layers, const Size& size) {
  for_each_served([&](const CellInfo& cell, Dtype dtype) {
    const Problem p = layers_of(layers, size, cell, dtype);
    const Outputs truth = naive_layers(p, cell, dtype), got = run(p, cell, dtype);
    const double eps = dtype == Dtype::kFloat32 ? 0x1p-23 : 0x1p-7, limit = dtype == Dtype::kFloat32 ? 40 : 12;
    const std::string what = std::to_string(layers) + " " + cell.name + " " + text(size);
    CHECK(distance(got.y, truth.y, eps) < limit, what << " y " << distance(got.y, truth.y, eps));
    CHECK(distance(got.h_n, truth.h_n, eps) < limit, what << " h_n " << distance(got.h_n, truth.h_n, eps));
    CHECK(distance(got.c_n, truth.c_n, eps) < limit, what << " c_n " << distance(got.c_n, truth.c_n, eps));
    CHECK(distance(got.saved, truth.saved, eps) < limit, what << " saved " << distance(got.saved, truth.saved, eps));
  });
}

bool same(const Outputs& a, const Outputs& b) {
  return a.y == b.y && a.h_n == b.h_n && a.c_n == b.c_n && a.saved == b.saved;
}

struct Told {
  std::vector<std::pair<std::string, LaunchShape>> launches;
  std::string refusal;
};

Told ask(const char* cell, Dtype dtype, const char* strategy, int layers, long hidden, long directions = 1) {
  Told told;
  const std::vector<LayerWeights> above(static_cast<size_t>(layers));
  RecurrentForward a{};
  a.shape.cell = cell, a.shape.dtype = dtype, a.shape.strategy = strategy, a.shape.layers = layers;
  a.shape.hidden = a.shape.proj = hidden, a.shape.directions = directions;
  a.shape.batch = a.shape.heads = 1, a.shape.steps = a.shape.rows = 50, a.above = above.data();
  const Witness witness{[](void* context, const char* kernel, const LaunchShape& shape) {
                          static_cast<Told*>(context)->launches.emplace_back(kernel, shape);
                        },
                        &told};
  const char* error = provider_of(strategy).forward_launches(a, witness);
  told.refusal = error == nullptr ? "" : error;
  return told;
}

}  // namespace

TEST(layers_that_walk_together_agree_with_plain_loops) {
  agrees(2, {1, 1, 35, 0, 1});
  agrees(3, {9, 3, 35, 0, 1});
  agrees(3, {1, 17, 20, 0, 1});
  agrees(2, {9, 17, 35, 0, 1, true});
  agrees(2, {9, 3, 16, 0, 1, false, false});
}

TEST(columns_and_unit_tiles_that_share_a_block_agree_with_plain_loops) {
  const SmallGpu gpu(4, 0);
  agrees(2, {19, 4, 70, 0, 1, true});
  agrees(4, {9, 3, 20, 0, 1});
}

TEST(every_schedule_of_a_wavefront_gives_the_same_bits) {
  for_each_served([](const CellInfo& cell, Dtype dtype) {
    const Problem p = layers_of(3, {11, 4, 35, 0, 1, true}, cell, dtype);
    const Outputs first = run(p, cell, dtype);
    for_seeds(4, [&](uint64_t seed) { CHECK(same(run(p, cell, dtype), first), cell.name << " seed " << seed); });
  });
}

TEST(inference_gives_the_last_y_of_training_and_no_other) {
  for_each_served([](const CellInfo& cell, Dtype dtype) {
    const Problem p = layers_of(3, {9, 4, 20, 0, 1, true}, cell, dtype);
    const Outputs with = run(p, cell, dtype), without = run(p, cell, dtype, false);
    const Values last(with.y.end() - static_cast<long>(with.y.size() / 3), with.y.end());
    CHECK(without.y == last && without.h_n == with.h_n && without.c_n == with.c_n, cell.name);
  });
}

TEST(the_bits_of_a_row_do_not_depend_on_how_many_rows_walk_with_it) {
  for_each_served([](const CellInfo& cell, Dtype dtype) {
    const Problem p = layers_of(2, {17, 3, 35, 0, 1}, cell, dtype);
    const Outputs apart = run(p, cell, dtype);
    const SmallGpu gpu(6, 0);
    CHECK(same(run(p, cell, dtype), apart), cell.name);
  });
}

TEST(a_wait_that_expires_in_a_wavefront_poisons_the_last_layer_and_fails_the_next_call) {
  const CellInfo& cell = *find_cell("lstm");
  const Problem p = layers_of(2, {9, 6, 40, 0, 1}, cell, Dtype::kBFloat16);
  for_seeds(10, [&](uint64_t seed) {
    ForwardCall call(p, cell, Dtype::kBFloat16, 1, true, "grid");
    const cuda::u64 patience = cuda::wait_patience();
    cuda::wait_patience() = 0;
    call.run();
    cuda::wait_patience() = patience;
    const Outputs out = call.read();
    const auto last = out.h_n.begin() + static_cast<long>(out.h_n.size() / 2);
    CHECK(std::any_of(last, out.h_n.end(), [](double x) { return std::isnan(x); }), "seed " << seed);
    const char* error = provider_of("grid").forward(call.arguments());
    CHECK(error != nullptr && std::string(error).find("expired") != std::string::npos, "seed " << seed);
  });
}

TEST(any_number_of_layers_is_one_launch_behind_that_which_clears_the_mail) {
  for (int layers : {1, 2, 3, 8}) {
    const Told told = ask("gru", Dtype::kBFloat16, "grid", layers, 200);
    CHECK(told.launches.size() == 2, layers << " layers: " << told.refusal);
    const auto& [kernel, shape] = told.launches.back();
    CHECK(kernel == "persistent_forward<Gru, Bf16>" && shape.cooperative, kernel);
    CHECK(shape.grid[2] == static_cast<unsigned>(layers), "a layer is a slice of the grid");
  }
}

TEST(layers_that_cannot_walk_together_are_refused_with_the_reason) {
  const auto refuses = [](const Told& told, const char* part) {
    CHECK(told.refusal.find(part) != std::string::npos, "'" << told.refusal << "' does not say " << part);
  };
  refuses(ask("lstm", Dtype::kBFloat16, "cluster", 2, 40), "'grid'");
  refuses(ask("lstm", Dtype::kBFloat16, "grid", 2, 40, 2), "one direction");
  refuses(ask("gru_reset_before", Dtype::kBFloat16, "grid", 2, 40), "two products");
  refuses(ask("lstm", Dtype::kBFloat16, "grid", 9, 40), "at most 8 layers, got 9");
  refuses(ask("lstm", Dtype::kBFloat16, "grid", 2, 2048), "2 layers of lstm with H = 2048: ");
  const SmallGpu gpu(3, 0);
  refuses(ask("lstm", Dtype::kBFloat16, "grid", 4, 16), "no 4 blocks of it are resident together");
}
