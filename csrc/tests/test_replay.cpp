// The rung `graph`: what is recorded and replayed gives the bits of `step`, whatever was replayed before. In the
// emulation; test_recurrent runs it too, also on a GPU, but with sequences that are too short for a replay.
#include <string>

#include "tests/check.h"
#include "tests/problem.h"

namespace {

using namespace fusednn;
using namespace fusednn::testing;

constexpr long kSteps[] = {1, 16, 17, 63, 64, 65, 200};

struct Results {
  Outputs out;
  Gradients back;
};

Results run(const Problem& p, const CellInfo& cell, Dtype dtype, const char* strategy) {
  ForwardCall forward(p, cell, dtype, 1, true, strategy);
  forward.run();
  const Outputs out = forward.read();
  BackwardCall backward(p, out, cell, dtype, 1, strategy);
  backward.run();
  return {out, backward.read()};
}

void same_as_step(const Size& size, const CellInfo& cell, Dtype dtype, unsigned seed) {
  const Problem p = make_problem(size, cell, dtype, seed);
  const Results got = run(p, cell, dtype, "graph"), want = run(p, cell, dtype, "step");
  const std::string what = std::string(cell.name) + " " + text(size);
  CHECK(got.out.y == want.out.y && got.out.saved == want.out.saved, what << " forward");
  CHECK(got.out.h_n == want.out.h_n && got.out.c_n == want.out.c_n, what << " last states");
  CHECK(got.back.d_gates == want.back.d_gates && got.back.d_recurrent == want.back.d_recurrent, what << " backward");
  CHECK(got.back.d_h0 == want.back.d_h0 && got.back.d_c0 == want.back.d_c0, what << " first states");
}

struct Counted {
  long calls, replays, replayed;
};

// Of forward.
Counted count(const char* cell, long steps) {
  RecurrentForward a{};
  a.shape.cell = cell, a.shape.strategy = "graph", a.shape.dtype = Dtype::kBFloat16;
  a.shape.batch = 3, a.shape.steps = steps, a.shape.hidden = a.shape.proj = 20, a.shape.directions = 2,
  a.shape.heads = a.shape.layers = 1;
  Counted counted{};
  const auto told = [](void* context, const char* kernel, const LaunchShape& shape) {
    Counted& c = *static_cast<Counted*>(context);
    (shape.replayed ? c.replayed : c.calls) += 1;
    c.replays += shape.threads == 0 && std::string(kernel) == "replay of 64 steps";
  };
  const char* error = provider_of("graph").forward_launches(a, {told, &counted});
  CHECK(error == nullptr, error);
  return counted;
}

}  // namespace

TEST(replays_give_the_bits_of_single_steps_for_every_number_of_steps) {
  for (const char* name : {"lstm", "gru_reset_before"}) {
    for (long steps : kSteps) same_as_step({3, steps, 5, 0, 1 + steps % 2}, *find_cell(name), Dtype::kFloat32, 1);
  }
}

TEST(replays_give_the_bits_of_single_steps_in_every_dtype_with_lengths_and_several_blocks) {
  for_each_cell([](const CellInfo& cell) {
    for (Dtype dtype : {Dtype::kFloat64, Dtype::kBFloat16, Dtype::kFloat16}) {
      same_as_step({17, 66, 18, 0, 1, true}, cell, dtype, 2);
    }
  });
}

TEST(a_call_replays_what_an_earlier_one_recorded_with_tensors_of_its_own) {
  const CellInfo& cell = *find_cell("lstm");
  for (unsigned seed : {3u, 4u, 5u}) same_as_step({4, 70, 7, 0, 1}, cell, Dtype::kBFloat16, seed);
  same_as_step({9, 130, 7, 0, 1, true}, cell, Dtype::kBFloat16, 6);  // another batch and length, the same launches
}

TEST(a_replay_is_one_launch_of_64_steps) {
  for (long steps : kSteps) {
    const long replays = steps / 64 + (steps % 64 > 16), single = replays * 64 < steps ? steps % 64 : 0;
    const Counted lstm = count("lstm", steps), two = count("gru_reset_before", steps);
    const long put = replays > 0;  // the call's tensors
    CHECK(lstm.replays == replays && two.replays == replays, steps << " steps: " << lstm.replays << " replays");
    CHECK(lstm.calls == 2 + put + replays + single, steps << " steps: " << lstm.calls << " launches");
    CHECK(two.calls == 1 + put + replays + 2 * single, steps << " steps: " << two.calls << " launches of two products");
    CHECK(lstm.replayed == replays * 65 && two.replayed == replays * 129, "a chunk is 64 steps and what finds them");
  }
}
